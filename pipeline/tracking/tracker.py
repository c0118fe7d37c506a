"""Tracking: what came of each stage that executed, as a child of one parent run per pipeline run.

The store never decides whether something is done, and never stops or delays a stage: what is to be recorded goes to a file
below the root, and a process of its own sends it to MLflow, see ``outbox.py`` and ``sending.py``. When the
store cannot be reached, one warning is written, and what waits is sent later, by this run or by another one. Nothing is
opened, and nothing written, until a stage really executes.
"""

import collections
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pipeline.plan import Action, Step, config_of
from pipeline.recipe import RECORD, Recipe
from pipeline.runner import Report
from pipeline.tracking.outbox import Letters, Outbox, Progress, address, now_ms, spelled_number
from pipeline.tracking.sending import SenderProcess
from stages.storage.artifact import Artifact
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.workspace import Workspace

_HELD_EVENTS = 1000
"""The latest events of a stage of which it is not known yet whether it has anything to do."""
_WORK_CHARS = 16

_log = logging.getLogger(__name__)


class _Upcoming(NamedTuple):
    """A stage that began."""

    step: Step
    inputs: Mapping[str, Artifact]
    started_ms: int
    tags: Mapping[str, str]


class Tracker:
    """An observer that records a run in MLflow.

    Args:
        workspace: below whose root the store lies, unless ``MLFLOW_TRACKING_URI`` names another.
        recipe: its name is that of the experiment.
        tags: further tags of the parent run, such as the id of the Prefect run.
        stage_tags: asked when a stage begins for further tags of its run, such as the id of the Prefect task run.
        sends: whether a process is started that sends; otherwise all waits for one.
    """

    def __init__(
        self,
        workspace: Workspace,
        recipe: Recipe,
        tags: Mapping[str, str] | None = None,
        *,
        stage_tags: Callable[[], Mapping[str, str]] = dict,
        sends: bool = True,
    ) -> None:
        self._workspace = workspace
        self._recipe = recipe
        self._tags = dict(tags or {})
        self._stage_tags = stage_tags
        self._sends = sends
        self._outbox = Outbox(workspace.root)
        self._sender: SenderProcess | None = None
        self._upcoming: _Upcoming | None = None
        self._child: str | None = None
        self._children: dict[str, str] = {}
        self._held: collections.deque[tuple[str, Mapping[str, Any], int]] = collections.deque(maxlen=_HELD_EVENTS)
        self._warned = False
        self._last_progress = Progress()
        self._fingerprints: dict[str, str] = {}

    def run_id(self, stage: str | None = None) -> str | None:
        """MLflow's id of the run of a stage, otherwise of the stage under way; ``None`` until MLflow was told of it."""
        own = self._children.get(stage) if stage else self._child
        return self._progress().runs.get(own) if own else None

    def run_url(self, stage: str | None = None) -> str | None:
        """The page of that run on an MLflow server; ``None`` where there is none yet, as it was not sent.

        A store that is a database file has no pages of its own.
        """
        run, server = self.run_id(stage), address(self._workspace.root)
        if run is None or not server.startswith(("http://", "https://")):
            return None
        return f"{_without_password(server)}/#/experiments/{self._progress().experiment_id}/runs/{run}"

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Open a child run for a stage that will execute; for the others wait and see whether they do."""
        self._recipe = recipe  # with what the stage goes on from
        self._upcoming, self._child = _Upcoming(upcoming, inputs, now_ms(), dict(self._stage_tags())), None
        self._held.clear()
        if upcoming.action is Action.RUN:
            self._open()

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Nothing: progress is no measurement."""

    def advance(self, amount: int = 1) -> None:
        """Nothing: progress is no measurement."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record measurements."""
        self._add("measurements", _measured(step, values))

    def show(self, step: int, name: str, png: bytes) -> None:
        """Record a picture."""
        self._add("picture", {"name": name, "step": step, "png": png})

    def stage_finished(self, report: Report) -> None:
        """Close the child run with what came out; a stage that had nothing to do has none."""
        self._fingerprints[f"lvmae.fingerprint.{report.stage}"] = report.artifact.fingerprint
        if report.outcome.units_done:
            self._close(report)
        self._warn_of_a_problem()

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Close the child run as failed, or as killed when a person interrupted it."""
        if self._child:
            self._add("tags", {"tags": {"lvmae.error": f"{type(error).__name__}: {error}"}})
            self._add("end", {"status": _status(error)})

    def run_ended(self, error: BaseException | None) -> None:
        """Close the parent run, which names the artifacts of all stages, reused ones as well; and have the rest sent."""
        if self._outbox.num_events:
            self._outbox.add(self._outbox.key, "tags", {"tags": self._fingerprints})
            self._outbox.add(self._outbox.key, "end", {"status": _status(error)})
        self._outbox.close()
        self._progress()
        if self._sender is not None:
            self._sender.finish()
            self._sender = None
            self._say_what_waits()

    def _add(self, kind: str, body: Mapping[str, Any]) -> None:
        if self._child is None:
            self._held.append((kind, body, now_ms()))
        else:
            self._outbox.add(self._child, kind, body)

    def _open(self) -> None:
        assert self._upcoming is not None
        step, inputs, started_ms, tags = self._upcoming
        if not self._outbox.num_events:
            self._open_parent(started_ms)
        self._child = self._children[step.stage] = f"{self._outbox.key}/{self._outbox.num_events}-{step.stage}"
        configuration = config_of(self._recipe, step.stage).model_dump(mode="json")
        shared = {name: value for name, value in self._tags.items() if name.startswith("prefect.")}
        tags = {"lvmae.stage": step.stage, "lvmae.work": step.fingerprint or _digest(configuration), **shared, **tags}
        tags |= {f"lvmae.input.{name}": made.fingerprint for name, made in inputs.items()}
        if step.fingerprint:
            tags["lvmae.fingerprint"] = step.fingerprint
        self._add_run(self._child, step.stage, tags, started_ms, parent=self._outbox.key)
        self._add("parameters", {"values": flattened(configuration)})
        self._add("inputs", {"made": {name: _input(one) for name, one in inputs.items()}})
        while self._held:
            kind, body, time_ms = self._held.popleft()
            self._outbox.add(self._child, kind, body, time_ms=time_ms)

    def _open_parent(self, started_ms: int) -> None:
        root = str(self._workspace.root)
        owner = {"lvmae.host": socket.gethostname(), "lvmae.pid": str(os.getpid()), "lvmae.root": root}
        owner["lvmae.work"] = _digest([root, self._recipe.model_dump(mode="json")])
        self._add_run(self._outbox.key, self._recipe.name, {**owner, **self._tags}, started_ms, parent=None)
        if self._sends:
            try:
                self._sender = SenderProcess(self._workspace.root)
            except OSError as error:
                _log.warning("MLflow: no process could be started that sends (%s); a later run sends", error)

    def _add_run(self, own: str, name: str, tags: Mapping[str, str], started_ms: int, *, parent: str | None) -> None:
        body = {"experiment": self._recipe.name, "name": name, "parent": parent, "tags": tags}
        self._outbox.add(own, "open", body, time_ms=started_ms)

    def _close(self, report: Report) -> None:
        if self._child is None:
            self._open()
        outcome, made = report.outcome, report.artifact
        values = {f"count_{name}": float(value) for name, value in outcome.counts.items()}
        values |= {f"result_{name}": value for name, value in outcome.metrics.items()}
        values |= {"duration_s": report.duration_s, "units_done": outcome.units_done, "units_reused": outcome.units_reused}
        tags = {"lvmae.fingerprint": made.fingerprint, "lvmae.digest": made.digest, "lvmae.artifact_uri": made.folder.as_uri()}
        self._add("measurements", _measured(0, values))
        self._add("tags", {"tags": tags})
        self._add("text", {"name": "manifest.json", "text": made.manifest_path.read_text()})
        self._add("text", {"name": RECORD, "text": self._recipe.resolved().decode()})
        self._add("end", {"status": _status(None)})

    def _letters(self) -> Letters:
        return Letters(self._outbox.path)

    def _progress(self) -> Progress:
        """How far this run was sent; it stays known when the outbox is gone, as all was."""
        self._last_progress = self._letters().progress(otherwise=self._last_progress)
        return self._last_progress

    def _warn_of_a_problem(self) -> None:
        problem = self._progress().problem
        if problem and not self._warned:
            _log.warning("MLflow: %s; the stages go on, and what is recorded is sent later", problem)
            self._warned = True

    def _say_what_waits(self) -> None:
        letters = self._letters()
        waiting = letters.num_waiting()
        if waiting:
            _log.warning(
                "MLflow: %s; %d records wait in %s: the next run below this root sends them, or `lvmae track sync --root %s`",
                letters.progress().problem or "not everything could be sent in time",
                waiting,
                letters.path,
                self._workspace.root,
            )


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
    return "FAILED" if isinstance(error, Exception) else "KILLED"


def _measured(step: int, values: Mapping[str, float]) -> dict[str, Any]:
    return {"step": step, "values": {name: spelled_number(float(value)) for name, value in values.items()}}


def _input(made: Artifact) -> dict[str, str]:
    return {"fingerprint": made.fingerprint, "digest": made.digest, "uri": made.folder.as_uri()}


def _digest(plain: Any) -> str:
    return sha256_bytes(canonical_json(plain))[:_WORK_CHARS]


def _without_password(server: str) -> str:
    scheme, _, rest = server.rstrip("/").partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
