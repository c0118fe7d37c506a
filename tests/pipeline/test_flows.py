"""The same pipeline as Prefect flows: started for real against a temporary server, reusing what is there."""

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TaskRun
from prefect.exceptions import ParameterTypeError
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from pipeline.orchestration import deploying, flow_names, flows
from pipeline.orchestration.flow_records import page
from pipeline.plan import STAGES
from pipeline.recipe import Recipe
from pipeline.recipe_files import overlay_names, recipe_names
from pipeline.runner import Report
from stages.errors import ConfigError, SourceMissing
from stages.storage.artifact import Outcome
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import COUNTS, commit_clips
from tests.pipelines import SMOKE, listing

CONTENT = yaml.safe_load(deploying.DEPLOYMENTS.read_text())
DEPLOYMENTS = CONTENT["deployments"]
OVERLAYS = [name for name in SMOKE[2:] if not name.startswith("--")]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own


@pytest.fixture
def copied_root(smoke_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    shutil.copytree(smoke_root, root)
    return root


def test_a_flow_runs_what_is_missing_and_reuses_the_rest(server: None, copied_root: Path) -> None:
    (made,) = (copied_root / "evaluate").iterdir()
    shutil.rmtree(made)
    reports = flows.run_recipe(recipe="lvmae", overlays=OVERLAYS, root=str(copied_root), tracking=False)
    assert {report.stage: report.state for report in reports} == dict.fromkeys(STAGES, "reused") | {"evaluate": "done"}
    assert (made / "manifest.json").exists()
    found = asyncio.run(last_run("lvmae"))
    assert found["name"] == "lvmae+demo+smoke"
    assert found["state"] == "COMPLETED"
    assert found["tasks"] == dict.fromkeys(STAGES, "COMPLETED")
    assert found["artifacts"] >= {"lvmae-plan", "lvmae-report", *(f"lvmae-{stage}" for stage in STAGES)}


def test_one_stage_is_a_flow_of_its_own(server: None, copied_root: Path) -> None:
    (report,) = flows.run_pretrain(recipe="lvmae", overlays=OVERLAYS, root=str(copied_root), tracking=False)
    assert (report.stage, report.state) == ("pretrain", "reused")


def test_a_plan_alone_says_what_would_run_and_runs_nothing(server: None, copied_root: Path) -> None:
    shutil.rmtree(copied_root / "evaluate")
    before = listing(copied_root)
    asked = {"recipe": "lvmae", "overlays": OVERLAYS, "root": str(copied_root), "tracking": False}
    assert flows.run_recipe(**asked, snapshot="1", to_stage="evaluate", plan_only=True) == []
    assert listing(copied_root) == before
    name = "lvmae+demo+smoke, shard to evaluate, snapshot 1, plan only"
    text = asyncio.run(artifact_of(name, "lvmae-plan"))
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    told = {row[1]: row[2] for row in rows if row[1] in STAGES}
    assert told == {"tokenizer": "reuse", "precompute": "reuse", "pretrain": "reuse", "evaluate": "run"}


def test_a_snapshot_is_read_without_a_look_at_the_source(server: None, copied_root: Path) -> None:
    (made,) = (copied_root / "evaluate").iterdir()
    shutil.rmtree(made)
    asked = {"recipe": "lvmae", "overlays": OVERLAYS, "root": str(copied_root), "tracking": False, "to_stage": "evaluate"}
    nowhere = str(copied_root / "nowhere")
    with pytest.raises(ConfigError, match=r"no snapshot is called '2'; known: 1\."):
        flows.run_recipe(**asked, snapshot="2")
    reports = flows.run_recipe(**asked, snapshot="1")
    assert [(report.stage, report.state) for report in reports] == [
        *((stage, "reused") for stage in ("tokenizer", "precompute", "pretrain")),
        ("evaluate", "done"),
    ]
    with pytest.raises(SourceMissing):
        flows.run_recipe(**asked, source=nowhere)


def test_a_run_that_meets_another_waits_for_it_and_says_so(
    server: None, copied_root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (made,) = (copied_root / "evaluate").iterdir()
    shutil.rmtree(made)
    other = Workspace(copied_root).hold(made)
    other.__enter__()
    waited: list[float] = []

    def until_it_is_free(seconds: float) -> None:
        waited.append(seconds)
        other.__exit__(None, None, None)

    monkeypatch.setattr(flows, "time", SimpleNamespace(sleep=until_it_is_free))  # the flow's own sleep, not everybody's
    (report,) = flows.run_evaluate(recipe="lvmae", overlays=OVERLAYS, root=str(copied_root), tracking=False)
    assert (report.stage, report.state) == ("evaluate", "done")
    assert len(waited) == 1
    assert f"evaluate/{made.name}: another run is making it" in caplog.text
    assert "This run waits" in caplog.text


def test_a_failed_run_says_why_what_to_do_and_how_to_resume(server: None, tmp_path: Path) -> None:
    state = flows.run_pretrain(recipe="lvmae", overlays=["demo"], root=str(tmp_path), tracking=False, return_state=True)
    assert state.is_failed()
    assert "there is none for this recipe in" in state.message
    assert "press Retry on this run: it does only what is missing" in state.message
    assert f"lvmae pretrain lvmae --overlay demo --root {tmp_path}" in state.message
    wrong = {"overrides": ["pretrain.sead=1"], "root": str(tmp_path), "tracking": False}
    state = flows.run_recipe(**wrong, from_stage="precompute", return_state=True)
    assert "did you mean 'seed'?" in state.message
    assert "Copy to new run" in state.message
    assert f"lvmae run lvmae --set pretrain.sead=1 --from precompute --root {tmp_path}" in state.message


def test_a_wrong_recipe_fails_the_flow_and_is_not_retried(server: None, tmp_path: Path) -> None:
    with pytest.raises(ParameterTypeError, match="unknown recipe"):
        flows.run_recipe(recipe="lvma", root=str(tmp_path), tracking=False)
    with pytest.raises(ConfigError, match="comes after the last"):
        flows.run_recipe(from_stage="evaluate", to_stage="shard", root=str(tmp_path), tracking=False)
    with pytest.raises(FileNotFoundError, match="lvmae shard lvmae"):
        flows.run_pretrain(recipe="lvmae", overlays=OVERLAYS, root=str(tmp_path), tracking=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_names_a_flow_and_parameters_that_it_takes(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert isinstance(flow, Flow)
    properties = parameter_schema(flow).properties
    assert set(deployment.get("parameters", {})) <= set(properties)
    assert all(described.get("description") for described in properties.values())
    assert deployment["description"]
    assert deployment["work_pool"]["name"] in {pool["name"] for pool in CONTENT["definitions"]["work_pools"].values()}
    if deployment["name"] != "node":  # started by a run that gives all of its parameters
        flow.validate_parameters(deployment["parameters"])


def test_the_whole_pipeline_and_every_stage_have_a_deployment_and_none_starts_by_itself() -> None:
    assert {deployment["name"] for deployment in DEPLOYMENTS} >= {"pipeline", *STAGES}
    assert not any(schedule["active"] for deployment in DEPLOYMENTS for schedule in deployment.get("schedules", []))


def test_a_stage_page_shows_counts_and_reasons(recipe: Recipe, workspace: Workspace) -> None:
    made = commit_clips(recipe, workspace)
    shown = page(Report("shard", Outcome(made, 5, 2, counts=COUNTS), 1.0), {"truncated": 1})
    assert "| quarantined | 1 |" in shown
    assert "| truncated | 1 |" in shown
    assert made.digest in shown


def test_the_form_offers_what_there_is() -> None:
    properties = parameter_schema(flows.run_recipe).properties
    assert properties["recipe"]["enum"] == recipe_names()
    assert properties["overlays"]["items"]["enum"] == overlay_names()
    assert properties["from_stage"]["enum"] == properties["to_stage"]["enum"] == list(STAGES)
    assert all(described["title"][0].isupper() for described in properties.values())
    with pytest.raises(ParameterTypeError, match="overrides"):
        flows.run_recipe.validate_parameters({"overrides": ["seed"]})
    as_the_command_gives = {
        "recipe": "./mine.yaml",
        "source": None,
        "snapshot": None,
        "from_stage": None,
        "overlays": ("demo",),
    }
    assert flows.run_recipe.validate_parameters(as_the_command_gives)["from_stage"] == "shard"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({}, "lvmae+demo"),
        ({"recipe_file": "/recipes/mine.yaml", "overlays": [], "overlay_files": ["../_fast.yml"]}, "mine+fast"),
        ({"from_stage": "precompute"}, "lvmae+demo, precompute to export"),
        ({"from_stage": "evaluate", "to_stage": "evaluate"}, "lvmae+demo, evaluate"),
        ({"overrides": ["pretrain.seed=1"], "source": "/data/may/"}, "lvmae+demo, pretrain.seed=1, from may"),
        ({"dataset": "may", "landed": "0123456789abcdef"}, "lvmae+demo, as may, landed 01234567"),
        ({"snapshot": "3", "plan_only": True}, "lvmae+demo, snapshot 3, plan only"),
    ],
)
def test_a_name_in_the_list_of_runs_says_what_was_asked_for(parameters: dict[str, Any], name: str) -> None:
    assert flow_names.spelled({"recipe": "lvmae", "overlays": ["demo"], **parameters}) == name


async def artifact_of(run_name: str, key: str) -> str:
    async with get_client() as client:
        (run,) = [run for run in await client.read_flow_runs() if run.name == run_name]
        assert {"recipe:lvmae", "dataset:synthetic"} <= set(run.tags)
        assert not await client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
        found = await client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
        (text,) = [one.data for one in found if one.key == key]
        return str(text)


async def last_run(flow_name: str) -> dict[str, Any]:
    """Name, state, tasks and artifact keys of the newest run of a flow; the server takes tasks in a little late."""
    for _ in range(60):
        found = await asked(flow_name)
        if len(found["tasks"]) == len(STAGES):
            break
        await asyncio.sleep(1)
    return found


async def asked(flow_name: str) -> dict[str, Any]:
    async with get_client() as client:
        (flow,) = [flow for flow in await client.read_flows() if flow.name == flow_name]
        (run, *_) = [run for run in await client.read_flow_runs() if run.flow_id == flow.id and run.name.count("+") == 2]
        tasks: list[TaskRun] = await client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
        artifacts = await client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run.id]}))
        return {
            "name": run.name,
            "state": run.state_type,
            "tasks": {task.name.partition("-")[0]: task.state_type for task in tasks},
            "artifacts": {artifact.key for artifact in artifacts},
        }
