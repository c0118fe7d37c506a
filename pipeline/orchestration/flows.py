"""Prefect flows: one for a whole recipe, one per stage. They decide when stages run and show it; never what is done.

A flow runs without any server (Prefect then starts a temporary one within the process), with a local server, and from a
deployment of ``prefect.yaml``. Repeating a run or one of its tasks repeats no work: the artifacts say what is there. A stage
is a task; what it can do in many places at once is tasks too, see ``fan_out.py``. The parameters, and what may be given for
them, stand in ``parameters.py``.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefect import flow, get_run_logger, runtime
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Failed

from pipeline.console import Terminal
from pipeline.estimation.estimates import forecast, forecast_lines
from pipeline.launching.launch import chosen_launch
from pipeline.launching.nodes import beside
from pipeline.orchestration.fan_out import OverTasks, as_task, chosen_runners
from pipeline.orchestration.flow_names import run_name, tags_of
from pipeline.orchestration.flow_records import Publisher
from pipeline.orchestration.parameters import (
    FIRST,
    LAST,
    DatasetName,
    FromStage,
    Landed,
    OverlayFiles,
    Overlays,
    Overrides,
    PlanOnly,
    RecipeFile,
    RecipeName,
    Root,
    Snapshot,
    Source,
    ToStage,
    Tracking,
    asked,
)
from pipeline.orchestration.resumption import commands, failure_message
from pipeline.orchestration.stage_pages import forecast_page
from pipeline.plan import order, pinned_snapshot, selected
from pipeline.promotion import Promoter
from pipeline.recipe import Recipe, Request
from pipeline.runner import Observer, Report, Run
from pipeline.tracking.tracker import Tracker
from stages.errors import ArtifactBusy, PipelineError
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace

Outcome = list[Report] | State[Any]
"""What a flow returns: what came of each stage or, when it fails, the state that says so. The caller of a flow gets the former,
and the error as an exception."""

_BUSY_S = 10.0
"""How often a run looks whether what it waits for is free."""

_log = logging.getLogger(__name__)


def _whole_flow() -> Callable[..., Any]:
    def run_recipe(
        recipe: RecipeName = "lvmae",
        recipe_file: RecipeFile = "",
        overlays: Overlays = [],  # noqa: B006 - shown in the form as it stands here
        overlay_files: OverlayFiles = [],  # noqa: B006
        source: Source = "",
        dataset: DatasetName = "",
        root: Root = "",
        snapshot: Snapshot = "",
        from_stage: FromStage = FIRST,
        to_stage: ToStage = LAST,
        overrides: Overrides = [],  # noqa: B006
        plan_only: PlanOnly = False,
        landed: Landed = "",
        tracking: Tracking = True,
    ) -> Outcome:
        """Run a recipe: all six stages, or those from one to another.

        What was made before from the same configuration and inputs is reused. A run that was stopped continues.
        """
        request = asked(recipe, recipe_file, overlays, overlay_files, source, dataset, overrides, snapshot)
        with _failing(request, root) as ran:
            stages = selected(first=from_stage, last=to_stage, snapshot=snapshot)
            ran.begin(stages)
            ran.reports = _run(request, ran, plan_only=plan_only, tracking=tracking)
        return ran.outcome

    return flow(name="lvmae", flow_run_name=run_name, persist_result=False)(run_recipe)


def _stage_flow(stage: str, title: str) -> Callable[..., Any]:
    def run_stage(
        recipe: RecipeName = "lvmae",
        recipe_file: RecipeFile = "",
        overlays: Overlays = [],  # noqa: B006 - shown in the form as it stands here
        overlay_files: OverlayFiles = [],  # noqa: B006
        source: Source = "",
        dataset: DatasetName = "",
        root: Root = "",
        snapshot: Snapshot = "",
        overrides: Overrides = [],  # noqa: B006
        plan_only: PlanOnly = False,
        tracking: Tracking = True,
    ) -> Outcome:
        request = asked(recipe, recipe_file, overlays, overlay_files, source, dataset, overrides, snapshot)
        with _failing(request, root) as ran:
            ran.begin(selected(only=stage, snapshot=snapshot))
            ran.reports = _run(request, ran, plan_only=plan_only, tracking=tracking)
        return ran.outcome

    run_stage.__doc__ = f"{title}\n\nWhat was made before from the same configuration and inputs is reused."
    return flow(name=f"lvmae-{stage}", flow_run_name=run_name, persist_result=False)(run_stage)


@dataclasses.dataclass
class _Ran:
    """How far a flow run came."""

    request: Request
    root: str
    stages: Sequence[str] = ()
    stage: str | None = None
    reports: list[Report] = dataclasses.field(default_factory=list)
    failed: State[Any] | None = None

    def begin(self, stages: Sequence[str]) -> None:
        self.stages = stages

    @property
    def outcome(self) -> Outcome:
        return self.failed or self.reports


@contextlib.contextmanager
def _failing(request: Request, root: str) -> Iterator[_Ran]:
    """Turns an error into the state of the run, whose message says what to do and how to resume."""
    ran = _Ran(request, root or os.environ.get("LVMAE_ROOT", "workspace"))
    try:
        yield ran
    except Exception as error:  # noqa: BLE001 - whatever it is, a person is told how to go on
        message = failure_message(error, stage=ran.stage, stages=ran.stages or order(), request=request, root=ran.root)
        get_run_logger().error("%s", message, exc_info=not isinstance(error, PipelineError))
        ran.failed = Failed(message=message, data=error)


def _run(request: Request, ran: _Ran, *, plan_only: bool, tracking: bool) -> list[Report]:
    """What came of each stage, one task per stage, with everything recorded."""
    recipe, runners = request.load(), chosen_runners()
    workspace = Workspace.at(ran.root)
    _tag(recipe)
    if plan_only:
        _show_plan(request, recipe, workspace, ran.stages)
        return []
    tracker = _tracker(request, recipe, workspace) if tracking else None
    resume = commands(ran.stages, request, str(workspace.root))
    publisher = Publisher(workspace, commands=resume, run_url=tracker.run_url if tracker else None)
    promoter = Promoter(workspace, recipe, _show_champion)
    observers: list[Observer] = [Terminal(sys.stderr), publisher]
    if tracker:
        observers += [tracker, promoter]
    launch = chosen_launch(request, ran.root, beside)
    run = Run(request, recipe, ran.root, observers, patience=_wait, elsewhere=launch)
    reports = []
    with run.open():
        made = _pins(run, ran.stages, publisher)
        for stage in ran.stages:
            ran.stage = stage
            fanned = dataclasses.replace(run, fan_out=OverTasks(f"{stage}-unit", runners))
            report = as_task(functools.partial(fanned.stage, stage, made), name=stage, run_name=stage)()
            made[stage] = report.artifact
            reports.append(report)
    return reports


def _pins(run: Run, stages: Sequence[str], publisher: Publisher) -> dict[str, Artifact]:
    """What the stages read and none of them makes; what is missing is shown as the failure of the first."""
    try:
        publisher.plan(run.recipe, pinned=pinned_snapshot(run.request, run.recipe, run.workspace))
        return run.pins(stages)
    except PipelineError as error:
        publisher.stage_failed(stages[0], error)
        raise


def _tracker(request: Request, recipe: Recipe, workspace: Workspace) -> Tracker:
    tags = {"lvmae.request": request.spelled(), "prefect.flow_run_id": str(runtime.flow_run.id)}
    return Tracker(workspace, recipe, tags, stage_tags=lambda: {"prefect.task_run_id": str(runtime.task_run.id)})


def _show_champion(page: str) -> None:
    create_markdown_artifact(page, key="lvmae-champion", description="Whether the new encoder is the one to use, and why.")


def _wait(busy: ArtifactBusy) -> None:
    _log.warning("%s. This run waits, and looks again in %.0f s", busy, _BUSY_S)
    time.sleep(_BUSY_S)


def _show_plan(request: Request, recipe: Recipe, workspace: Workspace, stages: Sequence[str]) -> None:
    """Leave the plan as the run's artifact, and in its log."""
    pinned = pinned_snapshot(request, recipe, workspace)
    found = forecast(recipe, workspace, stages, pinned=pinned)
    get_run_logger().info("plan only, nothing is run\n%s", "\n".join(forecast_lines(found)))
    page = forecast_page(found)
    create_markdown_artifact(page, key="lvmae-plan", description="What a run would do with each stage, and why.")


def _tag(recipe: Recipe) -> None:
    """Give the flow run tags by which the run list can be narrowed down."""
    context = FlowRunContext.get()
    if context and context.flow_run:
        tags = sorted({*context.flow_run.tags, *tags_of(recipe)})
        context.client.update_flow_run(context.flow_run.id, tags=tags)


run_recipe = _whole_flow()
run_shard = _stage_flow("shard", "Cut videos into normalised clips; what cannot be read goes to quarantine with a reason.")
run_tokenizer = _stage_flow("tokenizer", "Train the adaptive tokenizer on short windows of clips that are there.")
run_precompute = _stage_flow("precompute", "Store codes and priorities of every clip and view.")
run_pretrain = _stage_flow("pretrain", "Pretrain the masked autoencoder on long clips and stored targets.")
run_evaluate = _stage_flow("evaluate", "Measure the frozen encoder with probes, and write the report.")
run_export = _stage_flow("export", "Write the encoder in forms that work elsewhere, each compared with it.")
