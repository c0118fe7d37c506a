"""The same pipeline as Prefect flows: started for real against a temporary server, reusing what is there."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import TaskRun
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from pipeline import flows
from pipeline.flow_records import page
from pipeline.plan import STAGES
from pipeline.recipe import Recipe
from pipeline.runner import Report
from stages.errors import ConfigError
from stages.storage.artifact import Outcome
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import COUNTS, commit_clips
from tests.pipelines import SMOKE

DEPLOYMENTS = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())["deployments"]
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


def test_a_wrong_recipe_fails_the_flow_and_is_not_retried(server: None, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown recipe"):
        flows.run_recipe(recipe="lvma", root=str(tmp_path), tracking=False)
    with pytest.raises(FileNotFoundError, match="lvmae shard lvmae"):
        flows.run_pretrain(recipe="lvmae", overlays=OVERLAYS, root=str(tmp_path), tracking=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_every_deployment_names_a_flow_and_parameters_that_it_takes(deployment: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    assert isinstance(flow, Flow)
    properties = parameter_schema(flow).properties
    assert set(deployment["parameters"]) <= set(properties)
    assert all(described["description"] for described in properties.values())
    flow.validate_parameters(deployment["parameters"])


def test_the_whole_pipeline_and_every_stage_have_a_deployment_and_none_starts_by_itself() -> None:
    assert [deployment["name"] for deployment in DEPLOYMENTS] == ["pipeline", *STAGES]
    assert not any(schedule["active"] for deployment in DEPLOYMENTS for schedule in deployment.get("schedules", []))


def test_a_stage_page_shows_counts_and_reasons(recipe: Recipe, workspace: Workspace) -> None:
    made = commit_clips(recipe, workspace)
    shown = page(Report("shard", Outcome(made, 5, 2, counts=COUNTS), 1.0), {"truncated": 1})
    assert "| quarantined | 1 |" in shown
    assert "| truncated | 1 |" in shown
    assert made.digest in shown


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
