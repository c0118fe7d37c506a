"""Prefect flows: one for a whole recipe, one per stage. They decide when stages run and show it; never what is done.

A flow runs without any server (Prefect then starts a temporary one within the process), with a local server, and from a
deployment of ``prefect.yaml``. Repeating a run or one of its tasks repeats no work: the artifacts say what is there. A stage
is a task; what it can do in many places at once is tasks too, see ``pipeline/fan_out.py``.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Literal

from prefect import flow, runtime

from pipeline.console import Terminal
from pipeline.fan_out import OverTasks, as_task, chosen_runners
from pipeline.flow_records import Publisher
from pipeline.plan import selected
from pipeline.recipe import Request
from pipeline.runner import Observer, Report, Run
from pipeline.tracking import Tracker
from stages.storage.workspace import Workspace

Stage = Literal["shard", "tokenizer", "precompute", "pretrain", "evaluate", "export"]

_HELP = """{title}

What was made before from the same configuration and inputs is reused. A run that was stopped continues.

Args:
    recipe: Name of a recipe, or path of a YAML file on the worker.
    overlays: Names or paths of YAML files that change the recipe, in this order.
    source: Folder of videos on the worker, to take instead of the recipe's own source.
    root: Where artifacts lie. Empty means LVMAE_ROOT of the worker, or the folder workspace where it works.
    overrides: Single values, each spelled section.key=value, such as pretrain.seed=1.
    tracking: Whether what is executed is recorded in MLflow.
"""


def run_name() -> str:
    """The name of the current flow run: the recipe with its overlays."""
    parameters = runtime.flow_run.parameters
    return "+".join([parameters["recipe"], *parameters["overlays"]])


def _whole_flow() -> Callable[..., list[Report]]:
    def run_recipe(
        recipe: str = "lvmae",
        overlays: Sequence[str] = (),
        source: str | None = None,
        root: str | None = None,
        overrides: Sequence[str] = (),
        from_stage: Stage | None = None,
        tracking: bool = True,
    ) -> list[Report]:
        request = Request(recipe=recipe, overlays=tuple(overlays), source=source, overrides=tuple(overrides))
        return _run(request, root, selected(first=from_stage), tracking=tracking)

    first = "    from_stage: Begin with this stage; what it reads must be there.\n"
    run_recipe.__doc__ = _HELP.format(title="Run a recipe: all six stages, or those from one on.") + first
    return flow(name="lvmae", flow_run_name=run_name, persist_result=False)(run_recipe)


def _stage_flow(stage: Stage, title: str) -> Callable[..., list[Report]]:
    def run_stage(
        recipe: str = "lvmae",
        overlays: Sequence[str] = (),
        source: str | None = None,
        root: str | None = None,
        overrides: Sequence[str] = (),
        tracking: bool = True,
    ) -> list[Report]:
        request = Request(recipe=recipe, overlays=tuple(overlays), source=source, overrides=tuple(overrides))
        return _run(request, root, selected(only=stage), tracking=tracking)

    run_stage.__doc__ = _HELP.format(title=title)
    return flow(name=f"lvmae-{stage}", flow_run_name=run_name, persist_result=False)(run_stage)


def _run(request: Request, root: str | None, stages: Sequence[str], *, tracking: bool) -> list[Report]:
    """What came of each stage, one task per stage, with everything recorded."""
    recipe, runners = request.load(), chosen_runners()
    place = root or os.environ.get("LVMAE_ROOT", "workspace")
    workspace = Workspace.at(place)
    publisher = Publisher(workspace)
    observers: list[Observer] = [Terminal(sys.stderr), publisher]
    if tracking:
        tags = {"lvmae.request": request.spelled(), "prefect.flow_run_id": str(runtime.flow_run.id)}
        observers.append(Tracker(workspace, recipe, tags))
    run = Run(request, recipe, place, observers)
    publisher.plan(recipe)
    made = run.pins(stages)
    reports = []
    with run.open():
        for stage in stages:
            fanned = dataclasses.replace(run, fan_out=OverTasks(f"{stage}-unit", runners))
            report = as_task(functools.partial(fanned.stage, stage, made), name=stage)()
            made[stage] = report.artifact
            reports.append(report)
    return reports


run_recipe = _whole_flow()
run_shard = _stage_flow("shard", "Cut videos into normalised clips; what cannot be read goes to quarantine with a reason.")
run_tokenizer = _stage_flow("tokenizer", "Train the adaptive tokenizer on short windows of clips that are there.")
run_precompute = _stage_flow("precompute", "Store codes and priorities of every clip and view.")
run_pretrain = _stage_flow("pretrain", "Pretrain the masked autoencoder on long clips and stored targets.")
run_evaluate = _stage_flow("evaluate", "Measure the frozen encoder with probes, and write the report.")
run_export = _stage_flow("export", "Write the encoder in forms that work elsewhere, each compared with it.")
