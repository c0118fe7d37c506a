"""What was foreseen of a run, and what then happened: for the scenarios of ``test_agreement.py``."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pipeline.estimation.estimates import Forecast, forecast
from pipeline.plan import Action, pinned_snapshot, selected
from pipeline.recipe import Recipe, Request
from pipeline.runner import Report, Run
from stages.fan_out import over_processes
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace

FEW = (
    "tokenizer.optimization.num_steps=2",
    "pretrain.optimization.num_steps=4",
    "shard.sources_per_shard=3",
    "shard.settle_s=0",
    "shard.num_workers=1",
    "shard.abandoned_s=0",
    "tokenizer.num_preview_windows=2",
    "tokenizer.adversarial=null",
    "precompute.verify_share=0",
)
"""Of a recipe that is shrunk already: as little work as shows whether a stage did any."""
TRAINED = ("shard", "tokenizer", "precompute", "pretrain")


class Killed(BaseException):
    """What ends a run in the middle, as an interrupt would."""


class Scene:
    """A root with a recipe asked for on it.

    Args:
        root: the root.
        source: folder of videos to take; ``None``: those that the recipe renders.
    """

    def __init__(self, root: Path, source: Path | None = None) -> None:
        self.root, self.source = root, source

    def request(self, *overrides: str, snapshot: str | None = None) -> Request:
        return Request(
            recipe="lvmae",
            overlays=("demo", "smoke"),
            source=str(self.source) if self.source else None,
            overrides=(*(FEW if self.source else ()), *overrides),
            snapshot=snapshot,
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    def foreseen(self, request: Request, stages: tuple[str, ...]) -> dict[str, Forecast]:
        recipe = request.load()
        pinned = pinned_snapshot(request, recipe, self.workspace)
        return {one.stage: one for one in forecast(recipe, self.workspace, stages, pinned=pinned)}

    def run(self, request: Request, stages: tuple[str, ...], *observers: Any) -> dict[str, Report]:
        run = Run(request, request.load(), str(self.root), observers)
        return {report.stage: report for report in run.stages(stages)}

    def killed(self, request: Request, stages: tuple[str, ...], *, stage: str, after: int) -> None:
        """Run, and end the run after so many steps or units of a stage."""
        victim = _Killer(stage, after)
        try:
            list(Run(request, request.load(), str(self.root), [victim], fan_out=victim.fan_out).stages(stages))
        except Killed:
            return
        raise AssertionError(f"{stage} came to its end before it was killed")


class _Killer:
    """An observer that ends the run in the middle of a stage."""

    def __init__(self, stage: str, after: int) -> None:
        self.stage, self.left, self.current = stage, after, ""

    def stage_started(self, upcoming: Any, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        self.current = upcoming.stage

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        if self.current == self.stage and self.stage != "shard":
            self.left -= amount
            if self.left < 0:
                raise Killed

    def fan_out(self, function: Callable[..., Any], tasks: Any, **settings: Any) -> Any:
        """Every piece of work as always, until enough were done."""
        for done in over_processes(function, tasks, **settings):
            yield done
            self.left -= 1
            if self.left == 0:
                raise Killed

    def log(self, step: int, values: Mapping[str, float]) -> None:
        pass

    def show(self, step: int, name: str, png: bytes) -> None:
        pass

    def stage_finished(self, report: Report) -> None:
        pass

    def stage_failed(self, stage: str, error: BaseException) -> None:
        pass

    def run_ended(self, error: BaseException | None) -> None:
        pass


def agree(scene: Scene, request: Request, stages: tuple[str, ...] | None = None) -> dict[str, str]:
    """Foresee a run, run it, and hold the two against each other; what was foreseen, by stage.

    Afterwards nothing may be left to do.
    """
    wanted = selected(snapshot=request.snapshot) if stages is None else stages
    before = {path: path.stat().st_mtime_ns for path in scene.root.rglob("*")} if scene.root.exists() else {}
    foreseen = scene.foreseen(request, wanted)
    after = {path: path.stat().st_mtime_ns for path in scene.root.rglob("*")} if scene.root.exists() else {}
    assert before == after, "foreseeing wrote something"
    happened = scene.run(request, wanted)
    assert tuple(foreseen) == tuple(happened) == wanted
    for stage, one in foreseen.items():
        _compare(one, happened[stage])
    later = scene.foreseen(request, wanted)
    assert {one.action for one in later.values()} <= {Action.LOOK, Action.REUSE}, later
    assert all(one.units == 0 for one in later.values()), later
    return {stage: _said(one) for stage, one in foreseen.items()}


def _said(one: Forecast) -> str:
    return f"{one.action} {'at most ' if one.is_bound and one.units else ''}{one.units}"


def _compare(foreseen: Forecast, report: Report) -> None:
    done, said = report.outcome.units_done, f"{foreseen} and {report.record()}"
    if foreseen.action is Action.WAIT:
        assert done in (0, foreseen.units), said
        return
    if foreseen.is_bound:
        assert foreseen.units is not None, said
        assert done <= foreseen.units, said
        return
    assert done == foreseen.units, said
    assert report.outcome.units_reused == foreseen.reused, said
    if foreseen.action is not Action.RUN:
        assert done == 0, said
    if foreseen.fingerprint and foreseen.stage != "shard":
        assert report.artifact.fingerprint == foreseen.fingerprint, said


def copy_of(root: Path, place: Path) -> Path:
    """A copy of a root that may be changed; what MLflow recorded of it stays behind."""
    shutil.copytree(root, place, ignore=shutil.ignore_patterns("mlartifacts", "outbox"))
    return place
