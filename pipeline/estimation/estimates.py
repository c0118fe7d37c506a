"""What a run of a recipe would do, stage by stage: which are reused and why, how many units, bytes and minutes the others take.

Nothing is written. What it says of the next run is what that run then does, unless the sources or the artifacts change in
between; what cannot be known yet is said to be unknown.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pipeline.continuation import continued
from pipeline.estimation import rates
from pipeline.estimation.pretraining_cost import cost_lines, cost_record
from pipeline.plan import STAGES, Action, Step, config_of, pinned_snapshot, plan
from pipeline.recipe import Recipe, Request
from pipeline.wording import size, table
from pipeline.work import Amount, Extent, amount, size_bytes
from stages import shard
from stages.errors import PipelineError
from stages.prospect import Prospect, prospect
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace

HEAD = ("stage", "", "units", "reused", "disk", "time", "why")


@dataclasses.dataclass(frozen=True)
class Forecast:
    """What a run would do with one stage."""

    stage: str
    action: Action
    """``wait``: whether there is anything to do shows when an input is made again; ``units`` are those then."""
    reason: str
    units: int | None
    """To be done; ``None``: not known."""
    is_bound: bool
    """Whether ``units`` is the most that it can be: new sources may turn out to be copies or no videos, and make no clips."""
    reused: int | None
    """Units that are there."""
    size_bytes: int | None
    """What it needs on the disk; ``None``: not known."""
    minutes: float | None
    """By what a unit took on this machine before; ``None``: not measured here yet."""
    basis: str = ""
    """Where the minutes come from."""
    fingerprint: str | None = None
    """``None`` while an input is missing."""

    def record(self) -> dict[str, Any]:
        """The forecast as one JSON object."""
        plain = dataclasses.asdict(self)
        return plain | {"action": self.action.value, "bytes": plain.pop("size_bytes")}


class Outlook(NamedTuple):
    """What is known of a run before it begins."""

    stages: list[Forecast]
    """What it would do with each of its stages, in order."""
    ahead: Prospect | None
    """What lies before the first stage; ``None`` if that is not run, or its source cannot be looked at."""
    problem: str = ""
    """Why it cannot."""


def forecast(
    recipe: Recipe, workspace: Workspace, stages: Sequence[str] | None = None, *, pinned: Artifact | None = None
) -> list[Forecast]:
    """What a run of a recipe would do now, stage by stage. Writes nothing.

    Args:
        recipe: what is asked for.
        workspace: where artifacts lie.
        stages: those that are run; ``None``: all. The others stay as they are.
        pinned: snapshot of the clips that is read instead of looking at the source.

    Raises:
        PipelineError: a manifest cannot be read.
    """
    return outlook(recipe, workspace, stages, pinned=pinned).stages


def outlook(
    recipe: Recipe, workspace: Workspace, stages: Sequence[str] | None = None, *, pinned: Artifact | None = None
) -> Outlook:
    """The same with what was seen of the source."""
    steps = {step.stage: step for step in plan(recipe, workspace, pinned=pinned)}
    foresight = _Foresight(recipe, workspace, steps, tuple(steps) if stages is None else tuple(stages))
    found = foresight.stages()
    return Outlook(found, foresight.ahead, foresight.problem)


class _Foresight:
    """The stages one after the other, each with what is known of those before it."""

    def __init__(self, recipe: Recipe, workspace: Workspace, steps: Mapping[str, Step], stages: Sequence[str]) -> None:
        self.recipe, self.workspace, self.steps, self.run = recipe, workspace, steps, stages
        self.changed: dict[str, bool | None] = {}
        """By stage whether its artifact will be another one; ``None``: perhaps."""
        self.extent = Extent(steps["shard"].artifact, 0)
        self.ahead: Prospect | None = None
        self.problem = ""

    def stages(self) -> list[Forecast]:
        """All that are run, in order."""
        found = []
        for stage in self.steps:
            if stage not in self.run:
                self.changed[stage] = False
            elif stage == "shard":
                found.append(self._first())
            else:
                found.append(self._later(stage))
        return found

    def _first(self) -> Forecast:
        """The stage that looks at the sources."""
        step = self.steps["shard"]
        try:
            ahead = self.ahead = prospect(self.recipe.shard, self.workspace)
        except (PipelineError, OSError) as error:
            self.problem = str(error)
            self.changed["shard"], self.extent = False, Extent(step.artifact, None)  # as if it stayed as it is
            return self._of(step, Amount(None), None, reason=f"cannot be foreseen: {error}")
        self.changed["shard"] = self._snapshot_changes(ahead)
        self.extent = Extent(step.artifact, None if ahead.units is None else ahead.units + ahead.unnamed)
        action = Action.RUN if ahead.changes else Action.LOOK
        needed = _clip_bytes(ahead, step.artifact)
        return self._of(
            dataclasses.replace(step, action=action), Amount(ahead.units, ahead.committed), needed, reason=_found(ahead)
        )

    def _snapshot_changes(self, ahead: Prospect) -> bool | None:
        """Whether the clips will be others than any that were read before."""
        if not ahead.is_known:
            return None
        return None if ahead.changes and self._snapshot_was_lost() else ahead.changes

    def _snapshot_was_lost(self) -> bool:
        """Whether something was made from a snapshot of these clips that is not there any more, and may come out again."""
        dataset = Dataset(self.workspace, shard.dataset_name(self.recipe.shard))
        there = {made.digest for made in dataset.snapshots()}
        place = self.workspace.relative(dataset.folder)
        read = [made.manifest.inputs["shard"] for made in artifact.committed(self.workspace, "tokenizer")]
        return any(one.path == place and one.digest not in there for one in read)

    def _later(self, stage: str) -> Forecast:
        step, inputs = self.steps[stage], STAGES[stage].INPUTS
        new = [name for name in inputs if self.changed[name]]
        perhaps = [name for name in inputs if self.changed[name] is None]
        action, reason, fingerprint = step.action, step.reason, step.fingerprint
        if new:
            action, reason, fingerprint = Action.RUN, f"its {' and '.join(new)} will be new", None
        elif perhaps:
            action, reason, fingerprint = Action.WAIT, f"reused if its {' and '.join(perhaps)} comes out the same", None
        elif action is Action.WAIT and not self.problem:
            reason = f"{step.reason}; none of the stages that are run makes it"
        self.changed[stage] = self._changes(stage, action, fingerprint)
        todo = self._amount(stage, fingerprint) if action is not Action.REUSE else self._nothing(step)
        needed = 0 if action is Action.REUSE else size_bytes(self.recipe, stage, self.extent, todo.units)
        known = dataclasses.replace(step, action=action, fingerprint=fingerprint)
        return self._of(known, todo, needed, reason=reason)

    def _nothing(self, step: Step) -> Amount:
        """The work on what is there."""
        return Amount(0, step.artifact.manifest.counts["units"] if step.artifact else 0)

    def _amount(self, stage: str, fingerprint: str | None) -> Amount:
        inputs = {name: made for name in STAGES[stage].INPUTS if (made := self.steps[name].artifact)}
        if stage == "tokenizer" and self._keeps_tokenizer():
            return Amount(0)
        if fingerprint is not None:
            recipe = continued(self.recipe, stage, inputs, self.workspace).recipe
            return amount(recipe, stage, self.extent, inputs=inputs, workspace=self.workspace, fingerprint=fingerprint)
        if self.changed["tokenizer"] and not self._keeps_tokenizer():
            inputs = {}  # no unit of another tokenizer is adopted
        return amount(self.recipe, stage, self.extent, inputs=inputs, workspace=self.workspace)

    def _keeps_tokenizer(self) -> bool:
        """Whether new clips are given the tokenizer that is there."""
        return bool(self.changed["shard"] and self.recipe.tokenizer.on_new_data == "keep" and self.steps["tokenizer"].artifact)

    def _changes(self, stage: str, action: Action, fingerprint: str | None) -> bool | None:
        """Whether what comes out is another artifact than any that was read before: a fingerprint is part of a digest."""
        if action is Action.REUSE:
            return False
        if action is Action.WAIT:
            return None
        return None if fingerprint is not None and self._was_read(stage, fingerprint) else True

    def _was_read(self, stage: str, fingerprint: str) -> bool:
        """Whether something that is there was made from an artifact of this fingerprint."""
        return any(
            made.manifest.inputs[stage].fingerprint == fingerprint
            for reader in STAGES
            if stage in STAGES[reader].INPUTS
            for made in artifact.committed(self.workspace, reader)
        )

    def _of(self, step: Step, todo: Amount, size: int | None, *, reason: str) -> Forecast:
        minutes, basis = self._minutes(step.stage, todo.units)
        return Forecast(
            stage=step.stage,
            action=step.action,
            reason=reason,
            units=todo.units,
            is_bound=step.action is Action.WAIT or self._follows_new_shards(step.stage),
            reused=todo.reused,
            size_bytes=size,
            minutes=minutes,
            basis=basis,
            fingerprint=step.fingerprint,
        )

    def _follows_new_shards(self, stage: str) -> bool:
        return stage in ("precompute", "evaluate") and bool(self.changed["shard"]) and self.extent.new_shards != 0

    def _minutes(self, stage: str, units: int | None) -> tuple[float | None, str]:
        if units == 0:
            return 0.0, ""
        rate = rates.measured(self.workspace, stage, config_of(self.recipe, stage))
        if rate is None or units is None:
            return None, ""
        times = "once" if rate.num_runs == 1 else f"{rate.num_runs} times"
        return units * rate.unit_s / 60, f"{rate.unit_s:.3g} s per unit, measured {times} on this machine"


def _found(ahead: Prospect) -> str:
    if not ahead.is_known:
        return "many files were touched since they were last read; which of them are new shows when they are read again"
    parts = [
        f"{ahead.new_sources} new sources" if ahead.new_sources else "",
        f"{ahead.unfinished} units were planned and not made" if ahead.unfinished else "",
        f"{ahead.unnamed} units are in no snapshot yet" if ahead.unnamed else "",
        f"{ahead.waiting} sources are not complete and have to wait" if ahead.waiting else "",
    ]
    return ", ".join(filter(None, parts)) or "looks for files that are new in the source; there are none now"


def _clip_bytes(ahead: Prospect, snapshot: Artifact | None) -> int | None:
    """What new shards take: as those of the snapshot in the mean."""
    if ahead.units == 0:
        return 0
    if ahead.units is None:
        return None
    if snapshot is None:
        return None  # how many frames there are shows when they are decoded
    sizes = sum(record.size_bytes for record in snapshot.manifest.files.values())
    return round(ahead.units * sizes / max(1, ahead.committed - ahead.unnamed))


def show_plan(
    request: Request,
    *,
    stages: Sequence[str],
    root: str,
    num_devices: int,
    num_clips: int | None,
    memory_gb: str,
    as_json: bool,
) -> None:
    """Print what a run of some stages would do, and below it what pretraining costs.

    Raises:
        PipelineError: the recipe does not fit, the sizes of memory are no numbers, or a manifest cannot be read.
    """
    recipe, workspace = request.load(), Workspace.at(root)
    costs = cost_record(recipe, root=root, num_devices=num_devices, num_clips=num_clips, memory_gb=memory_gb)
    found = forecast(recipe, workspace, stages, pinned=pinned_snapshot(request, recipe, workspace))
    if as_json:
        lines = [json.dumps({"stages": [one.record() for one in found], **costs})]
    else:
        title = f"lvmae run {request.spelled()} --root {root} would"
        lines = [title, *forecast_lines(found), "", *cost_lines(costs)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def forecast_lines(stages: Sequence[Forecast]) -> list[str]:
    """A forecast as lines of a table, and below it where the times come from."""
    return [*table([HEAD, *map(row, stages)]), *notes(stages)]


def notes(stages: Sequence[Forecast]) -> list[str]:
    """Where the times of a forecast come from, and which are not known."""
    measured = [f"{one.stage}: {one.basis}" for one in stages if one.basis]
    unknown = [one.stage for one in stages if one.minutes is None]
    if unknown:
        measured.append(f"{', '.join(unknown)}: time unknown, for no run with these settings was recorded below this root")
    return measured


def row(one: Forecast) -> tuple[str, ...]:
    """A forecast as the cells under ``HEAD``."""
    at_most = "<= " if one.is_bound else ""
    return (
        one.stage,
        one.action.value,
        "?" if one.units is None else f"{at_most}{one.units:,}",
        "?" if one.reused is None else f"{one.reused:,}",
        "?" if one.size_bytes is None else f"{at_most}{size(one.size_bytes)}",
        "?" if one.minutes is None else f"{at_most}{one.minutes:.1f} min",
        one.reason,
    )
