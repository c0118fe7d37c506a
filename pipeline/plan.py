"""What would run and why: the graph of stages, and for each whether its artifact is there.

A stage's fingerprint is made of its configuration and the digests of its inputs. Deleting one artifact therefore reruns
that stage alone; those that read it run again only if the rebuilt artifact's digest differs. Until an input is there,
the fingerprint of what reads it is not known, and the plan says what it waits for.
"""

import dataclasses
import graphlib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Protocol

from models.config import Config
from pipeline.continuation import continued
from pipeline.recipe import Recipe, Request
from stages import evaluate, export, precompute, pretrain, shard, tokenizer
from stages.errors import ArtifactMissing, ConfigError
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace


class StageModule(Protocol):
    """What every stage module offers."""

    @property
    def INPUTS(self) -> tuple[str, ...]:  # noqa: N802
        """The stages whose artifacts it reads."""

    @property
    def VERSION(self) -> int:  # noqa: N802
        """Bumped by hand when the same configuration and inputs would give other bytes."""

    def run(self, config: Any, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
        """Make the artifact, or find it made."""


STAGES: Mapping[str, StageModule] = MappingProxyType(
    {
        "shard": shard,
        "tokenizer": tokenizer,
        "precompute": precompute,
        "pretrain": pretrain,
        "evaluate": evaluate,
        "export": export,
    }
)


class Action(StrEnum):
    """What a run would do with a stage."""

    LOOK = "look"
    """Look at the source: what is new is added, the rest is reused. Only the first stage."""
    REUSE = "reuse"
    """Nothing: the artifact is there."""
    RUN = "run"
    """Make the artifact, or continue making it."""
    WAIT = "wait"
    """Wait for an input: whether there is anything to do shows when that is made."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One stage of a plan."""

    stage: str
    action: Action
    reason: str
    fingerprint: str | None = None
    """``None`` while an input is missing."""
    artifact: Artifact | None = None
    """What is there already."""


_SHOWN_SNAPSHOTS = 10
_MAX_NUMBER_DIGITS = 6
"""What is longer is the beginning of a digest or fingerprint, also when it has no letter."""


def order() -> tuple[str, ...]:
    """The stages, inputs before what reads them."""
    graph = {name: module.INPUTS for name, module in STAGES.items()}
    return tuple(graphlib.TopologicalSorter(graph).static_order())


def selected(
    *, only: str | None = None, first: str | None = None, last: str | None = None, snapshot: str | None = None
) -> tuple[str, ...]:
    """The stages that a run is asked to do: all, one alone, or those from one to another.

    Args:
        only: this stage alone.
        first: begin with this stage.
        last: end with this stage.
        snapshot: of the clips, given by a person; the stage that looks at the source is left out then.

    Raises:
        ConfigError: a name is no stage, two of them contradict each other, or nothing is left to do.
    """
    stages = order()
    for name in (only, first, last):
        if name is not None and name not in stages:
            raise ConfigError(f"unknown stage {name!r}; known, in their order: {', '.join(stages)}")
    for option, name in (("--from", first), ("--to", last)):
        if only and name:
            raise ConfigError(f"--only {only} and {option} {name} contradict each other; give one of them")
    begin, end = stages.index(only or first or stages[0]), stages.index(only or last or stages[-1])
    if begin > end:
        raise ConfigError(f"the first stage, {first}, comes after the last, {last}; their order is {', '.join(stages)}")
    wanted = stages[begin : end + 1]
    if not snapshot:
        return wanted
    if wanted == ("shard",):
        raise ConfigError(
            f"nothing is left to do: snapshot {snapshot} is given, and shard makes snapshots; leave the snapshot out, "
            "or name a later stage"
        )
    return tuple(stage for stage in wanted if stage != "shard")


def config_of(recipe: Recipe, stage: str) -> Config:
    """The section of the recipe that configures a stage."""
    section: Config = getattr(recipe, stage)
    return section


def plan(recipe: Recipe, workspace: Workspace, *, pinned: Artifact | None = None) -> list[Step]:
    """What a run of the whole recipe would do, stage by stage, as far as it can be known now. Writes nothing.

    Args:
        recipe: what is asked for.
        workspace: where artifacts lie.
        pinned: snapshot of the clips that is read instead of looking at the source.
    """
    steps: dict[str, Step] = {}
    for stage in order():
        if pinned and stage == "shard":
            steps[stage] = Step(stage, Action.REUSE, "this snapshot is asked for", pinned.fingerprint, pinned)
            continue
        inputs = {name: steps[name].artifact for name in STAGES[stage].INPUTS}
        steps[stage] = step(recipe, workspace, stage, {name: found for name, found in inputs.items() if found})
    return list(steps.values())


def step(recipe: Recipe, workspace: Workspace, stage: str, inputs: Mapping[str, Artifact]) -> Step:
    """What a run would do with one stage, given those of its inputs that are there."""
    if stage == "shard":
        return _first_step(recipe, workspace)
    missing = [name for name in STAGES[stage].INPUTS if name not in inputs]
    if missing:
        return Step(stage, Action.WAIT, f"waits for {' and '.join(missing)}; runs if what comes out is new")
    chosen = continued(recipe, stage, inputs, workspace)
    fingerprint = artifact.fingerprint(stage, STAGES[stage].VERSION, config_of(chosen.recipe, stage), inputs)
    found = artifact.find_whole(workspace, stage, fingerprint)
    if found:
        return Step(stage, Action.REUSE, "made before from the same configuration and inputs", fingerprint, found)
    begun = workspace.artifact_folder(stage, fingerprint).exists()
    reason = "begun before, continues" if begun else "not made yet from this configuration and these inputs"
    return Step(stage, Action.RUN, f"{reason}; {chosen.reason}" if chosen.reason else reason, fingerprint)


def pins(stages: Sequence[str], *, request: Request, recipe: Recipe, workspace: Workspace) -> dict[str, Artifact]:
    """The artifacts that ``stages`` read and none of them makes, found by fingerprint and fixed for a whole run.

    Raises:
        ArtifactMissing: one is not there; the message says which command makes it.
    """
    pinned = pinned_snapshot(request, recipe, workspace)
    steps = {entry.stage: entry for entry in plan(recipe, workspace, pinned=pinned)}
    found = {}
    for reader in stages:
        for name in STAGES[reader].INPUTS:
            made = steps[name].artifact
            if name not in stages and made is None:
                raise ArtifactMissing(_missing(reader, name, steps, request=request, workspace=workspace))
            if name not in stages and made is not None:
                found[name] = made
    return found


def _missing(stage: str, name: str, steps: Mapping[str, Step], *, request: Request, workspace: Workspace) -> str:
    wanted = steps[name].fingerprint
    place = workspace.artifact_folder(name, wanted) if wanted else workspace.stage_folder(name)
    first = next(entry.stage for entry in steps.values() if entry.artifact is None)
    arguments = f"{request.spelled()} --root {workspace.root}"
    return (
        f"{stage} reads the artifact of {name}, and there is none for this recipe in {place}. "
        f"Make it with `lvmae {first} {arguments}`"
        + (f" and then the stages up to {name}" if first != name else "")
        + f", or run everything with `lvmae run {arguments}`."
    )


def pinned_snapshot(request: Request, recipe: Recipe, workspace: Workspace) -> Artifact | None:
    """The snapshot of clips that the request names; ``None`` when it names none.

    Raises:
        ConfigError: there is no such snapshot; the message says which there are.
    """
    if not request.snapshot:
        return None
    dataset = Dataset(workspace, shard.dataset_name(recipe.shard))
    known = dataset.snapshots()
    named = request.snapshot
    if named.isdecimal() and len(named) <= _MAX_NUMBER_DIGITS:
        found = [one for one in known if int(one.manifest_path.stem) == int(named)]
    else:
        found = [one for one in known if one.digest.startswith(named) or one.fingerprint.startswith(named)]
    if len(found) != 1:
        there = ", ".join(str(number) for number in range(1, len(known) + 1)[-_SHOWN_SNAPSHOTS:])
        raise ConfigError(
            f"{dataset.folder / 'snapshots'}: {'several snapshots are' if found else 'no snapshot is'} called {named!r}; "
            f"known: {there or 'none'}. Give one of them, or leave the snapshot out"
        )
    return found[0]


def _first_step(recipe: Recipe, workspace: Workspace) -> Step:
    found = newest_snapshot(recipe, workspace)
    if found is None:
        return Step("shard", Action.RUN, "no clips of this source and clip format yet")
    return Step("shard", Action.LOOK, "looks for files that are new in the source", found.fingerprint, found)


def newest_snapshot(recipe: Recipe, workspace: Workspace) -> Artifact | None:
    """The newest snapshot of the clips that the recipe's first section describes."""
    return Dataset(workspace, shard.dataset_name(recipe.shard)).newest_snapshot()
