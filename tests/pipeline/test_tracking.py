"""MLflow gets what came of every stage that executed, and nothing that happens to it reaches a stage."""

import io
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import environment
from pipeline.console import Terminal
from pipeline.plan import Action, Step, plan
from pipeline.recipe import Recipe, Request
from pipeline.runner import Report, Run
from pipeline.tracking import WAITING_PICTURES, Tracker, flattened
from stages.errors import ConfigError
from stages.storage.artifact import Artifact, Outcome
from stages.storage.workspace import Workspace

environment.prepare()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
Made = Callable[[], dict[str, Artifact]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one SQLite store for all tests of this file: making one takes seconds."""
    address = f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = address
    yield address
    os.environ.pop("MLFLOW_TRACKING_URI")
    if before:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture
def experiment(recipe: Recipe, request: pytest.FixtureRequest) -> Recipe:
    """The recipe under a name of its own, so that every test reads its own experiment."""
    return recipe.model_copy(update={"name": request.node.name})


def runs(store: str, recipe: Recipe) -> dict[str, Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    found = client.get_experiment_by_name(recipe.name)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])} if found else {}


def step_of(recipe: Recipe, workspace: Workspace, stage: str, action: Action) -> Step:
    (found,) = [step for step in plan(recipe, workspace) if step.stage == stage]
    return Step(stage, action, "", found.fingerprint, found.artifact)


def executed(tracker: Tracker, step: Step, recipe: Recipe, *, inputs: Mapping[str, Artifact], made: Artifact) -> None:
    tracker.stage_started(step, recipe, inputs)
    tracker.log(1, {"loss": 2.0})
    tracker.log(2, {"loss": 1.0})
    outcome = Outcome(made, units_done=2, units_reused=1, counts={"steps": 3}, metrics={"psnr_db": 20.0})
    tracker.stage_finished(Report(step.stage, outcome, 1.5))


def test_a_stage_that_executed_is_a_child_with_all_that_came_of_it(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tracker = Tracker(workspace, experiment, {"prefect.flow_run_id": "abc"})
    step = step_of(experiment, workspace, "tokenizer", Action.RUN)
    executed(tracker, step, experiment, inputs={"shard": made["shard"]}, made=made["tokenizer"])
    tracker.run_ended(None)
    found = runs(store, experiment)
    parent, child = found[experiment.name], found["tokenizer"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["lvmae.fingerprint"] == made["tokenizer"].fingerprint
    assert child.data.tags["lvmae.digest"] == made["tokenizer"].digest
    assert child.data.tags["lvmae.input.shard"] == made["shard"].fingerprint
    assert child.data.tags["lvmae.artifact_uri"] == made["tokenizer"].folder.as_uri()
    assert child.data.params["optimization.num_steps"] == str(experiment.tokenizer.optimization.num_steps)
    assert child.data.metrics.items() >= {"loss": 1.0, "result_psnr_db": 20.0, "count_steps": 3.0, "units_done": 2.0}.items()
    assert (workspace.root / "mlartifacts" / child.info.run_id / "artifacts" / "manifest.json").exists()
    assert parent.data.tags["prefect.flow_run_id"] == "abc"
    assert parent.data.tags["lvmae.fingerprint.tokenizer"] == made["tokenizer"].fingerprint


def test_a_first_stage_that_only_looked_leaves_no_run(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tracker = Tracker(workspace, experiment)
    tracker.stage_started(step_of(experiment, workspace, "shard", Action.LOOK), experiment, {})
    tracker.stage_finished(Report("shard", Outcome(made["shard"], 0, 3, counts={}), 0.1))
    tracker.run_ended(None)
    assert runs(store, experiment) == {}


def test_a_first_stage_that_found_something_new_is_recorded(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    step = step_of(experiment, workspace, "shard", Action.LOOK)
    executed(Tracker(workspace, experiment), step, experiment, inputs={}, made=made["shard"])
    assert runs(store, experiment)["shard"].data.tags["lvmae.fingerprint"] == made["shard"].fingerprint


@pytest.mark.parametrize(("error", "status"), [(ConfigError("wrong"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_stage_that_stopped_says_how(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made, error: BaseException, status: str
) -> None:
    everything_made()
    tracker = Tracker(workspace, experiment)
    tracker.stage_started(step_of(experiment, workspace, "pretrain", Action.RUN), experiment, {})
    tracker.stage_failed("pretrain", error)
    tracker.run_ended(error)
    found = runs(store, experiment)
    assert {run.info.status for run in found.values()} == {status}
    assert found["pretrain"].data.tags["lvmae.error"].startswith(type(error).__name__)


def test_what_a_killed_process_left_open_is_closed_by_the_next(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    everything_made()
    killed = Tracker(workspace, experiment, {"lvmae.pid": str(pid_of_a_dead_process())})
    killed.stage_started(step_of(experiment, workspace, "pretrain", Action.RUN), experiment, {})
    alive = Tracker(workspace, experiment, {"lvmae.pid": str(os.getppid())})
    alive.stage_started(step_of(experiment, workspace, "evaluate", Action.RUN), experiment, {})
    found = runs(store, experiment)
    assert found["pretrain"].info.status == "KILLED"
    Tracker(workspace, experiment).stage_started(step_of(experiment, workspace, "tokenizer", Action.RUN), experiment, {})
    assert runs(store, experiment)["evaluate"].info.status == "RUNNING"


def test_pictures_on_the_way_lie_beside_the_run_under_their_steps(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything_made()
    monkeypatch.setattr("pipeline.tracking.FLUSH_S", 0.0)
    tracker = Tracker(workspace, experiment)
    tracker.stage_started(step_of(experiment, workspace, "pretrain", Action.RUN), experiment, {})
    tracker.show(10, "held-out", b"first")
    run = runs(store, experiment)["pretrain"].info.run_id
    folder = workspace.root / "mlartifacts" / run / "artifacts" / "pictures"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"held-out-00000010.png": b"first"}, "while it runs"
    tracker.show(200, "held-out", b"second")
    assert (folder / "held-out-00000200.png").read_bytes() == b"second"


def test_what_a_stage_shows_reaches_every_observer_of_its_run(recipe: Recipe, request_: Request, tmp_path: Path) -> None:
    class Gallery(Terminal):
        """A terminal that keeps what it is shown."""

        def show(self, step: int, name: str, png: bytes) -> None:
            super().show(step, name, png)
            shown.append((step, name, png))

    shown: list[tuple[int, str, bytes]] = []
    run = Run(request_, recipe, str(tmp_path / "root"), observers=[Gallery(io.StringIO()), Gallery(io.StringIO())])
    run.workspace.monitor.show(3, "held-out", b"png")
    assert shown == [(3, "held-out", b"png")] * 2


def test_of_the_pictures_for_a_store_that_is_away_the_latest_are_kept_and_sent_later(
    store: str, experiment: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tracker = Tracker(workspace, experiment)
    step = step_of(experiment, workspace, "pretrain", Action.RUN)
    tracker.stage_started(step, experiment, {})
    run = runs(store, experiment)["pretrain"].info.run_id
    (folder := workspace.root / "mlartifacts" / run / "artifacts").mkdir(parents=True, exist_ok=True)
    (folder / "pictures").write_text("in the way of the folder")
    for number in range(WAITING_PICTURES + 3):
        tracker.show(number, "held-out", str(number).encode())
    tracker.stage_failed("pretrain", ConfigError("wrong"))
    assert (folder / "pictures").is_file()
    (folder / "pictures").unlink()
    outcome = Outcome(made["pretrain"], units_done=2, units_reused=1, counts={})
    tracker.stage_finished(Report("pretrain", outcome, 1.5))
    kept = sorted(int(path.read_bytes()) for path in (folder / "pictures").iterdir())
    assert kept == list(range(3, WAITING_PICTURES + 3))


def test_a_store_that_is_away_costs_one_warning_and_little_time(
    experiment: Recipe,
    workspace: Workspace,
    everything_made: Made,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = everything_made()
    started = time.monotonic()
    tracker = Tracker(workspace, experiment)
    with caplog.at_level(logging.WARNING, logger="pipeline"):
        for stage in ("tokenizer", "precompute"):
            step = step_of(experiment, workspace, stage, Action.RUN)
            executed(tracker, step, experiment, inputs={}, made=made[stage])
        tracker.run_ended(None)
    assert len([record for record in caplog.records if record.name.startswith("pipeline")]) == 1
    assert time.monotonic() - started < 30


def test_a_file_that_is_no_database_does_not_stop_a_stage(
    experiment: Recipe, workspace: Workspace, everything_made: Made, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken.db").write_bytes(b"not a database" * 100)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'broken.db'}")
    made = everything_made()
    step = step_of(experiment, workspace, "tokenizer", Action.RUN)
    executed(Tracker(workspace, experiment), step, experiment, inputs={}, made=made["tokenizer"])


def test_a_nested_configuration_becomes_flat_names() -> None:
    plain = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": "text", "g": {}}
    assert flattened(plain) == {"a.b": "1", "a.c.d": "null", "e": "[1, 2]", "f": "text", "g": "{}"}


def pid_of_a_dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    return process.pid
