"""Running stages in order and telling observers: the same for the command line, a Prefect flow and the tests."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from pipeline.continuation import continued
from pipeline.plan import STAGES, Step, config_of, pins, step
from pipeline.recipe import RECORD, Recipe, Request
from pipeline.work import needed_bytes
from stages.errors import ArtifactBusy, ArtifactMissing
from stages.fan_out import FanOut, over_processes
from stages.preflight import check_room, saying_when_full
from stages.progress import Monitor
from stages.storage.artifact import Artifact, Outcome
from stages.storage.locks import Readers
from stages.storage.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of one stage."""

    stage: str
    outcome: Outcome
    duration_s: float

    @property
    def artifact(self) -> Artifact:
        """What the stage made or found made."""
        return self.outcome.artifact

    @property
    def state(self) -> str:
        """``done`` or, when nothing was left to do, ``reused``."""
        return "done" if self.outcome.units_done else "reused"

    def record(self) -> dict[str, Any]:
        """The report as one JSON object; the counts stand beside the fixed keys, the metrics below their own."""
        return {
            **self.outcome.counts,
            "stage": self.stage,
            "state": self.state,
            "fingerprint": self.artifact.fingerprint,
            "digest": self.artifact.digest,
            "path": str(self.artifact.folder),
            "units_done": self.outcome.units_done,
            "units_reused": self.outcome.units_reused,
            "duration_s": round(self.duration_s, 3),
            "metrics": dict(self.outcome.metrics),
        }


class Observer(Monitor, Protocol):
    """Who is told about a run: the terminal, MLflow, Prefect. What it does changes nothing in the run."""

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """A stage begins, with what the plan says of it."""

    def stage_finished(self, report: Report) -> None:
        """A stage came to its end."""

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """A stage raised, or was interrupted."""

    def run_ended(self, error: BaseException | None) -> None:
        """The run is over; ``error`` is what ended it early."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a recipe below one root.

    Args:
        request: what was asked for, for messages.
        recipe: what it came to.
        root: path or URL of the workspace.
        observers: told of everything, in this order.
        fan_out: where independent pieces of a stage's work run.
        patience: waits for a while when another run holds what a stage makes, and then the stage tries again; without it
            the stage fails.
        readers: keeps what the run reads from being collected.
        elsewhere: what to call in place of a stage's own function, such as a launch of several processes.
    """

    request: Request
    recipe: Recipe
    root: str
    observers: Sequence[Observer] = ()
    fan_out: FanOut = over_processes
    patience: Callable[[ArtifactBusy], None] | None = None
    elsewhere: Mapping[str, Callable[..., Outcome]] = dataclasses.field(default_factory=dict)
    readers: Readers = dataclasses.field(default_factory=Readers)

    @property
    def workspace(self) -> Workspace:
        """The workspace, with this run's monitor and the resolved recipe as the record beside every artifact."""
        records = {RECORD: self.recipe.resolved()}
        return Workspace.at(self.root, monitor=_Relay(self.observers), records=records, fan_out=self.fan_out)

    def pins(self, stages: Sequence[str]) -> dict[str, Artifact]:
        """What ``stages`` read and none of them makes.

        Raises:
            ArtifactMissing: one is not there; the message says which command makes it.
        """
        return pins(stages, request=self.request, recipe=self.recipe, workspace=self.workspace)

    def stage(self, stage: str, made: Mapping[str, Artifact]) -> Report:
        """Run one stage on artifacts that are there.

        Raises:
            PipelineError: the stage failed.
        """
        inputs = {name: made[name] for name in STAGES[stage].INPUTS}
        recipe = continued(self.recipe, stage, inputs, self.workspace).recipe
        workspace = dataclasses.replace(self, recipe=recipe).workspace
        upcoming = step(self.recipe, workspace, stage, inputs)
        self._tell(lambda observer: observer.stage_started(upcoming, recipe, inputs))
        started = time.monotonic()
        try:
            self._keep(inputs)
            with saying_when_full(workspace.root, stage):
                check_room(workspace.root, needed_bytes(recipe, upcoming, inputs, workspace), stage)
                outcome = self._outcome(stage, recipe, inputs, workspace)
        except BaseException as error:
            failure = error
            self._tell(lambda observer: observer.stage_failed(stage, failure))
            raise
        report = Report(stage, outcome, time.monotonic() - started)
        self._tell(lambda observer: observer.stage_finished(report))
        return report

    def _keep(self, inputs: Mapping[str, Artifact]) -> None:
        """Keep inputs from being collected, until the run is over.

        Raises:
            ArtifactMissing: one is being collected.
        """
        for made in inputs.values():
            try:
                self.readers.take(made.manifest_path)
            except FileNotFoundError as error:
                raise ArtifactMissing(f"{error}; run again, which makes it anew") from error

    def _outcome(self, stage: str, recipe: Recipe, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
        while True:
            try:
                run: Callable[..., Outcome] = self.elsewhere.get(stage) or STAGES[stage].run
                return run(config_of(recipe, stage), inputs, workspace)
            except ArtifactBusy as busy:
                if self.patience is None:
                    raise
                self.patience(busy)

    def stages(self, stages: Sequence[str]) -> Iterator[Report]:
        """Run stages in the given order, each on what the ones before made, and yield what came of each.

        Raises:
            PipelineError: a stage failed, or an input that none of them makes is missing.
        """
        made = self.pins(stages)
        with self.open():
            for stage in stages:
                report = self.stage(stage, made)
                made[stage] = report.artifact
                yield report

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The time within which stages run; observers are told when it is over, and of what ended it early."""
        try:
            yield
        except BaseException as error:
            failure = error
            self._tell(lambda observer: observer.run_ended(failure))
            raise
        finally:
            self.readers.close()
        self._tell(lambda observer: observer.run_ended(None))

    def _tell(self, message: Callable[[Observer], None]) -> None:
        for observer in self.observers:
            message(observer)


class _Relay:
    """One monitor for the stage, which passes everything on to all observers."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        for observer in self._observers:
            observer.begin(label, total=total, done=done)

    def advance(self, amount: int = 1) -> None:
        for observer in self._observers:
            observer.advance(amount)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.log(step, values)

    def show(self, step: int, name: str, png: bytes) -> None:
        for observer in self._observers:
            observer.show(step, name, png)
