"""MLflow gets what came of every stage that executed, and nothing that happens to it reaches a stage."""

import io
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline import environment
from pipeline.console import Terminal
from pipeline.plan import Action, Step, plan
from pipeline.recipe import Recipe, Request
from pipeline.runner import Report, Run
from pipeline.tracking.outbox import DATABASE, Letters
from pipeline.tracking.sending import Sender
from pipeline.tracking.tracker import Tracker, flattened
from stages.errors import ConfigError
from stages.storage.artifact import Artifact, Outcome
from stages.storage.workspace import Workspace
from tests.pipeline.mlflow_records import all_runs, client, empty_database, root

__all__ = ["empty_database", "root"]
environment.prepare()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy
Made = Callable[[], dict[str, Artifact]]


@pytest.fixture
def workspace(root: Path) -> Workspace:
    """A workspace with an empty store."""
    return Workspace(root)


def quiet(workspace: Workspace, recipe: Recipe, tags: Mapping[str, str] | None = None) -> Tracker:
    """A tracker without a process that sends; ``sent`` does that."""
    return Tracker(workspace, recipe, tags, sends=False)


def sent(workspace: Workspace) -> dict[str, Any]:
    """Send what waits, and give every run by its name."""
    Sender(workspace.root).send_all()
    return {run.info.run_name: run for run in all_runs(workspace.root)}


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
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tracker = quiet(workspace, recipe, {"prefect.flow_run_id": "abc"})
    step = step_of(recipe, workspace, "tokenizer", Action.RUN)
    executed(tracker, step, recipe, inputs={"shard": made["shard"]}, made=made["tokenizer"])
    tracker.run_ended(None)
    found = sent(workspace)
    parent, child = found[recipe.name], found["tokenizer"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert child.data.tags["lvmae.fingerprint"] == made["tokenizer"].fingerprint
    assert child.data.tags["lvmae.digest"] == made["tokenizer"].digest
    assert child.data.tags["lvmae.input.shard"] == made["shard"].fingerprint
    assert child.data.tags["lvmae.artifact_uri"] == made["tokenizer"].folder.as_uri()
    assert child.data.params["optimization.num_steps"] == str(recipe.tokenizer.optimization.num_steps)
    assert child.data.metrics.items() >= {"loss": 1.0, "result_psnr_db": 20.0, "count_steps": 3.0, "units_done": 2.0}.items()
    assert (workspace.root / "mlartifacts" / child.info.run_id / "artifacts" / "manifest.json").exists()
    assert parent.data.tags["prefect.flow_run_id"] == "abc"
    assert parent.data.tags["lvmae.fingerprint.tokenizer"] == made["tokenizer"].fingerprint


def test_a_first_stage_that_only_looked_leaves_no_run(recipe: Recipe, workspace: Workspace, everything_made: Made) -> None:
    made = everything_made()
    tracker = quiet(workspace, recipe)
    tracker.stage_started(step_of(recipe, workspace, "shard", Action.LOOK), recipe, {})
    tracker.stage_finished(Report("shard", Outcome(made["shard"], 0, 3, counts={}), 0.1))
    tracker.run_ended(None)
    assert sent(workspace) == {}


def test_a_first_stage_that_found_something_new_is_recorded(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    step = step_of(recipe, workspace, "shard", Action.LOOK)
    executed(quiet(workspace, recipe), step, recipe, inputs={}, made=made["shard"])
    assert sent(workspace)["shard"].data.tags["lvmae.fingerprint"] == made["shard"].fingerprint


@pytest.mark.parametrize(("error", "status"), [(ConfigError("wrong"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_stage_that_stopped_says_how(
    recipe: Recipe, workspace: Workspace, everything_made: Made, error: BaseException, status: str
) -> None:
    everything_made()
    tracker = quiet(workspace, recipe)
    tracker.stage_started(step_of(recipe, workspace, "pretrain", Action.RUN), recipe, {})
    tracker.stage_failed("pretrain", error)
    tracker.run_ended(error)
    found = sent(workspace)
    assert {run.info.status for run in found.values()} == {status}
    assert found["pretrain"].data.tags["lvmae.error"].startswith(type(error).__name__)


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


def test_a_nested_configuration_becomes_flat_names() -> None:
    plain = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": "text", "g": {}}
    assert flattened(plain) == {"a.b": "1", "a.c.d": "null", "e": "[1, 2]", "f": "text", "g": "{}"}


def test_what_was_shown_and_measured_of_a_first_stage_is_recorded_once_it_found_something(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tracker = quiet(workspace, recipe)
    tracker.stage_started(step_of(recipe, workspace, "shard", Action.LOOK), recipe, {})
    tracker.log(1, {"speed": 2.0})
    tracker.show(3, "first", b"png")
    assert Letters.below(workspace.root) == []
    tracker.stage_finished(Report("shard", Outcome(made["shard"], 1, 0, counts={}), 0.1))
    run = sent(workspace)["shard"]
    assert run.data.metrics["speed"] == 2.0
    picture = workspace.root / "mlartifacts" / run.info.run_id / "artifacts" / "pictures" / "first-00000003.png"
    assert picture.read_bytes() == b"png"


def test_every_run_is_found_by_the_prefect_runs_that_made_it(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    tasks = iter(("task-1", "task-2"))
    tracker = Tracker(
        workspace,
        recipe,
        {"prefect.flow_run_id": "flow"},
        stage_tags=lambda: {"prefect.task_run_id": next(tasks)},
        sends=False,
    )
    for stage in ("tokenizer", "pretrain"):
        executed(tracker, step_of(recipe, workspace, stage, Action.RUN), recipe, inputs={}, made=made[stage])
    tracker.run_ended(None)
    sent(workspace)
    asked = client(workspace.root)
    (experiment,) = [each.experiment_id for each in asked.search_experiments() if each.name == recipe.name]
    flow = asked.search_runs([experiment], "tags.`prefect.flow_run_id` = 'flow'")
    task = asked.search_runs([experiment], "tags.`prefect.task_run_id` = 'task-2'")
    assert {run.info.run_name for run in flow} == {recipe.name, "tokenizer", "pretrain"}
    assert [run.info.run_name for run in task] == ["pretrain"]


def test_a_run_names_those_that_made_what_it_reads(recipe: Recipe, workspace: Workspace, everything_made: Made) -> None:
    made = everything_made()
    tracker = quiet(workspace, recipe)
    executed(tracker, step_of(recipe, workspace, "shard", Action.RUN), recipe, inputs={}, made=made["shard"])
    step = step_of(recipe, workspace, "tokenizer", Action.RUN)
    executed(tracker, step, recipe, inputs={"shard": made["shard"]}, made=made["tokenizer"])
    found = sent(workspace)
    assert found["tokenizer"].data.tags["lvmae.producer.shard"] == found["shard"].info.run_id
    assert found["tokenizer"].inputs.dataset_inputs[0].dataset.digest == made["shard"].digest[:36]


def test_the_page_of_a_run_is_known_once_a_server_was_told_of_it(
    recipe: Recipe, workspace: Workspace, everything_made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything_made()
    tracker = quiet(workspace, recipe)
    tracker.stage_started(step_of(recipe, workspace, "pretrain", Action.RUN), recipe, {})
    assert tracker.run_id("pretrain") is None
    run = sent(workspace)["pretrain"].info
    assert tracker.run_id("pretrain") == tracker.run_id() == run.run_id
    assert tracker.run_url() is None, "a file has no pages"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.test/")
    assert tracker.run_url("pretrain") == f"https://mlflow.test/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    assert tracker.run_url("evaluate") is None


TIMES = ("step_s", "clips_per_s", "data_wait_share", "duration_s", "units_reused")
"""What no two runs have in common."""


def test_a_server_that_is_away_for_a_whole_pretraining_costs_no_measurement(
    smoke_root: Path,
    workspace: Workspace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With the real process that sends, which gives up when the run ends; compared with the same run, undisturbed."""
    request = Request(recipe="lvmae", overlays=("demo", "smoke"))
    for folder in ("clips", "sources", "tokenizers", "targets"):
        shutil.copytree(smoke_root / folder, workspace.root / folder)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, logger="pipeline"):
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        observers = [Tracker(workspace, request.load())]
        list(Run(request, request.load(), str(workspace.root), observers).stages(("pretrain",)))
    (letters,) = Letters.below(workspace.root)
    assert str(letters.path) in caplog.text
    assert "lvmae track sync" in caplog.text
    assert len([record for record in caplog.records if record.name == "pipeline.tracking.tracker"]) <= 2
    found = sent(workspace)
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert Letters.below(workspace.root) == []
    (other := tmp_path / "undisturbed").mkdir()
    shutil.copy(smoke_root / DATABASE, other)
    (undisturbed,) = [run for run in all_runs(other) if run.info.run_name == "pretrain"]
    measured = measurements(workspace.root, found["pretrain"])
    assert len(measured["loss"]) >= 6
    assert measured == measurements(other, undisturbed)
    assert found["pretrain"].data.params == undisturbed.data.params


def measurements(root: Path, run: Any) -> dict[str, list[tuple[int, float | None]]]:
    """Every measurement of a run by name, in order; of times only the steps."""
    history = {name: client(root).get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(each.step, None if name in TIMES or name.endswith("_per_s") else each.value) for each in every]
        for name, every in history.items()
    }
