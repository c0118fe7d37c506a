"""The sensor: a flow that looks at a source on a schedule, and starts the pipeline when something landed that no run has.

It is the guarantee behind the events of ``watch.py``: it looks at what is there, so nothing that was missed is lost,
and looking twice starts nothing twice.
"""

import datetime
import os
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.client.schemas.sorting import FlowRunSort
from prefect.deployments import run_deployment
from prefect.states import Completed

from pipeline.orchestration.landing import PIPELINE, Decision, Landing, Standing, decide
from pipeline.orchestration.parameters import (
    DatasetName,
    OverlayFiles,
    Overlays,
    Overrides,
    PlanOnly,
    RecipeFile,
    RecipeName,
    Root,
    Source,
)
from stages.arrivals import Arrivals
from stages.errors import SourceMissing
from stages.storage.workspace import Workspace

_RUNS = 200
"""How many runs are asked for at a time; what the server gives at most."""


def sensor_name() -> str:
    """The name of the current flow run: what it looks at, and for which recipe."""
    asked = runtime.flow_run.parameters
    return f"look at {asked['source'] or 'its source'} for {'+'.join([asked['recipe'], *asked['overlays']])}"


@flow(name="lvmae-sensor", flow_run_name=sensor_name, persist_result=False)
def run_sensor(
    recipe: RecipeName = "lvmae",
    recipe_file: RecipeFile = "",
    overlays: Overlays = [],  # noqa: B006  what the form shows
    overlay_files: OverlayFiles = [],  # noqa: B006
    source: Source = "",
    dataset: DatasetName = "",
    root: Root = "",
    overrides: Overrides = [],  # noqa: B006
    plan_only: PlanOnly = False,
) -> State[Any]:
    """Start the pipeline if a complete video landed that is not ingested and that no run was started for.

    The deployment pipeline is started with the same parameters.
    """
    landing = Landing(recipe, recipe_file, tuple(overlays), tuple(overlay_files), source, dataset, root, tuple(overrides))
    workspace = Workspace.at(root or os.environ.get("LVMAE_ROOT", "workspace"))
    try:
        found = landing.look(workspace)
    except SourceMissing as error:
        return _told(f"nothing new: {error}")
    decision = decide(landing, found, standing(), now=datetime.datetime.now(datetime.UTC))
    _show(found, decision)
    return _told(f"{decision.why}: {_start(landing, found, plan_only=plan_only)}" if decision.starts else decision.why)


def standing() -> list[Standing]:
    """The runs of the pipeline, newest first, without those that a schedule has made for another day."""
    flow_name, _, name = PIPELINE.partition("/")
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
            deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[name])),
            flow_run_filter=FlowRunFilter.model_validate({"expected_start_time": {"before_": soon}}),
            sort=FlowRunSort.EXPECTED_START_TIME_DESC,
            limit=_RUNS,
        )
    return [_standing(run) for run in found]


def _standing(run: FlowRun) -> Standing:
    return Standing(
        name=run.name,
        run=str(run.id),
        state_type=run.state_type.value if run.state_type else "",
        state=run.state_name or "",
        parameters=run.parameters,
        expected=run.expected_start_time,
        idempotency_key=run.idempotency_key or "",
    )


def _start(landing: Landing, found: Arrivals, *, plan_only: bool) -> str:
    """The name and id of the run; the one that is there already, if somebody was faster."""
    run = run_deployment(
        PIPELINE,
        parameters={**landing.parameters, "landed": found.digest, "plan_only": plan_only},
        timeout=0,
        idempotency_key=landing.key(found.digest),
        as_subflow=False,
    )
    assert isinstance(run, FlowRun)
    return f"{run.name!r} ({run.id})"


def _show(found: Arrivals, decision: Decision) -> None:
    """What waits and why, where a person sees it; nothing where nothing does, for the sensor looks often."""
    if found.waiting:
        rows = [{"source": one.key, "waits because it": one.why} for one in found.waiting]
        create_table_artifact(rows[:_RUNS], key="lvmae-landing", description=f"{decision.why}. Not complete: {len(rows)}.")


def _told(message: str) -> State[Any]:
    get_run_logger().info(message)
    return Completed(message=message)
