"""Tracking: what came of each stage that executed, as a child of one parent run per pipeline run.

The store never decides whether something is done, and never stops a stage: when it cannot be reached, one warning is
written, measurements and the latest pictures wait in memory, and they are offered again now and then and when the stage ends.
Nothing is opened, and nothing written, until a stage really executes.
"""

import collections
import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline import environment
from pipeline.plan import Action, Step, config_of
from pipeline.recipe import RECORD, Recipe
from pipeline.runner import Report
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace

if TYPE_CHECKING:
    from pipeline.mlflow_store import MlflowStore

FLUSH_VALUES = 500
FLUSH_S = 15.0
"""Measurements are sent in batches: at this many, or after this long, whichever is first."""
PAUSE_S = 60.0
"""How long a store that failed is left alone."""
WAITING_PICTURES = 16
"""The latest pictures, which wait for a store that is away; a picture is a thousand times as large as a measurement."""

_log = logging.getLogger(__name__)


class StoreUnreachable(Exception):
    """The store refused or could not be reached; tracking goes on without it."""


class Measurement(NamedTuple):
    """One number at one step."""

    name: str
    value: float
    time_ms: int
    step: int


class Picture(NamedTuple):
    """One picture at one step."""

    name: str
    step: int
    png: bytes


class Tracker:
    """An observer that records a run in MLflow.

    Args:
        workspace: below whose root the store lies, unless ``MLFLOW_TRACKING_URI`` names another.
        recipe: its name is that of the experiment.
        tags: further tags of the parent run, such as the id of the Prefect run.
    """

    def __init__(self, workspace: Workspace, recipe: Recipe, tags: Mapping[str, str] | None = None) -> None:
        self._workspace = workspace
        self._recipe = recipe
        self._tags = dict(tags or {})
        self._store: MlflowStore | None = None
        self._child: str | None = None
        self._upcoming: tuple[Step, Mapping[str, Artifact], int] | None = None
        self._waiting: list[Measurement] = []
        self._pictures: collections.deque[Picture] = collections.deque(maxlen=WAITING_PICTURES)
        self._next_flush_s = 0.0
        self._warned = False
        self._fingerprints: dict[str, str] = {}

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Open a child run for a stage that will execute; for the others wait and see whether they do."""
        self._upcoming, self._child, self._waiting = (upcoming, inputs, _now_ms()), None, []
        self._pictures.clear()
        if upcoming.action is Action.RUN:
            with self._guarded():
                self._open()

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Nothing: progress is no measurement."""

    def advance(self, amount: int = 1) -> None:
        """Nothing: progress is no measurement."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep measurements, and send them when there are many or it was a while ago."""
        self._waiting += [Measurement(name, float(value), _now_ms(), step) for name, value in values.items()]
        self._flush_if_due()

    def show(self, step: int, name: str, png: bytes) -> None:
        """Keep a picture, and send it with the measurements."""
        self._pictures.append(Picture(name, step, png))
        self._flush_if_due()

    def stage_finished(self, report: Report) -> None:
        """Close the child run with what came out; a stage that had nothing to do has none."""
        self._fingerprints[f"lvmae.fingerprint.{report.stage}"] = report.artifact.fingerprint
        if report.outcome.units_done:
            with self._guarded():
                self._close(report)

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Close the child run as failed, or as killed when a person interrupted it."""
        if self._store and self._child:
            with self._guarded():
                self._flush()
                self._store.tag(self._child, {"lvmae.error": f"{type(error).__name__}: {error}"})
                self._store.end(self._child, _status(error))

    def run_ended(self, error: BaseException | None) -> None:
        """Close the parent run, which names the artifacts of all stages, reused ones as well."""
        if self._store:
            with self._guarded():
                self._store.tag(self._store.parent, self._fingerprints)
                self._store.end(self._store.parent, _status(error))

    def _open(self) -> None:
        environment.prepare()
        from pipeline.mlflow_store import MlflowStore

        assert self._upcoming is not None
        step, inputs, started_ms = self._upcoming
        self._store = self._store or MlflowStore(
            self._workspace.root, self._recipe.name, tags=self._tags, started_ms=started_ms
        )
        tags = {"lvmae.stage": step.stage, **{f"lvmae.input.{name}": made.fingerprint for name, made in inputs.items()}}
        if step.fingerprint:
            tags["lvmae.fingerprint"] = step.fingerprint
        self._child = self._store.begin(step.stage, tags, started_ms)
        self._store.parameters(self._child, flattened(config_of(self._recipe, step.stage).model_dump(mode="json")))
        self._store.inputs(self._child, {name: (made.digest, made.folder.as_uri()) for name, made in inputs.items()})
        self._next_flush_s = time.monotonic() + FLUSH_S

    def _close(self, report: Report) -> None:
        if self._child is None:
            self._open()
        assert self._store is not None
        assert self._child is not None
        outcome, made = report.outcome, report.artifact
        values = {f"count_{name}": float(value) for name, value in outcome.counts.items()}
        values |= {f"result_{name}": value for name, value in outcome.metrics.items()}
        values |= {"duration_s": report.duration_s, "units_done": outcome.units_done, "units_reused": outcome.units_reused}
        self._waiting += [Measurement(name, float(value), _now_ms(), 0) for name, value in values.items()]
        self._flush()
        tags = {"lvmae.fingerprint": made.fingerprint, "lvmae.digest": made.digest, "lvmae.artifact_uri": made.folder.as_uri()}
        self._store.tag(self._child, tags)
        self._store.text(self._child, "manifest.json", made.manifest_path.read_text())
        self._store.text(self._child, RECORD, self._recipe.resolved().decode())
        self._store.end(self._child, _status(None))

    def _flush_if_due(self) -> None:
        early_s = FLUSH_S if len(self._waiting) >= FLUSH_VALUES else 0
        if self._child and time.monotonic() >= self._next_flush_s - early_s:
            with self._guarded():
                self._flush()

    def _flush(self) -> None:
        if self._store and self._child:
            self._store.measurements(self._child, self._waiting)
            self._waiting, self._next_flush_s = [], time.monotonic() + FLUSH_S
            while self._pictures:
                self._store.picture(self._child, self._pictures[0])
                self._pictures.popleft()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except StoreUnreachable as error:
            self._next_flush_s = time.monotonic() + PAUSE_S
            if not self._warned:
                _log.warning("MLflow: %s; the stages go on, and what was measured is offered again later", error)
            self._warned = True


def flattened(plain: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of dotted names; lists are spelled as JSON, names of extensions as they are."""
    flat: dict[str, str] = {}
    for key, value in plain.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _status(error: BaseException | None) -> str:
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
