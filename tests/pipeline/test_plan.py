"""The plan says what would run and why, and writes nothing."""

import shutil
from collections.abc import Callable

import pytest

from pipeline.plan import STAGES, Action, order, pinned_snapshot, pins, plan, selected
from pipeline.recipe import Recipe, Request
from stages.errors import ArtifactMissing, ConfigError
from stages.storage.artifact import Artifact
from stages.storage.workspace import FOLDERS, Workspace
from tests.pipeline.conftest import commit_clips, commit_stage


def actions(recipe: Recipe, workspace: Workspace) -> dict[str, str]:
    return {step.stage: step.action.value for step in plan(recipe, workspace)}


def test_inputs_come_before_what_reads_them_and_every_stage_has_a_folder() -> None:
    stages = order()
    assert all(stages.index(name) < stages.index(stage) for stage in stages for name in STAGES[stage].INPUTS)
    assert stages == tuple(FOLDERS)


def test_on_an_empty_root_everything_waits_for_the_first_stage(recipe: Recipe, workspace: Workspace) -> None:
    steps = plan(recipe, workspace)
    assert [step.action for step in steps] == [Action.RUN, *[Action.WAIT] * 5]
    assert steps[1].reason.startswith("waits for shard")
    assert steps[3].reason.startswith("waits for shard and precompute")
    assert not workspace.root.exists()


def test_a_fingerprint_is_known_as_soon_as_the_inputs_are(recipe: Recipe, workspace: Workspace) -> None:
    commit_clips(recipe, workspace)
    tokenizer = plan(recipe, workspace)[1]
    assert (tokenizer.action, tokenizer.reason) == (Action.RUN, "not made yet from this configuration and these inputs")
    assert commit_stage(recipe, workspace, "tokenizer").fingerprint == tokenizer.fingerprint


def test_what_a_killed_run_began_is_continued(recipe: Recipe, workspace: Workspace) -> None:
    commit_clips(recipe, workspace)
    fingerprint = plan(recipe, workspace)[1].fingerprint
    assert fingerprint
    workspace.artifact_folder("tokenizer", fingerprint).mkdir(parents=True)
    assert plan(recipe, workspace)[1].reason == "begun before, continues"


def test_what_is_there_is_reused(recipe: Recipe, workspace: Workspace, everything_made: Callable[[], object]) -> None:
    everything_made()
    assert list(actions(recipe, workspace).values()) == ["look", *["reuse"] * 5]


def test_a_deleted_artifact_runs_again_and_what_reads_it_waits_to_see_what_comes_out(
    recipe: Recipe, workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]
) -> None:
    made = everything_made()
    shutil.rmtree(made["precompute"].folder)
    assert actions(recipe, workspace) == {
        "shard": "look",
        "tokenizer": "reuse",
        "precompute": "run",
        "pretrain": "wait",
        "evaluate": "wait",
        "export": "wait",
    }
    commit_stage(recipe, workspace, "precompute")
    assert set(actions(recipe, workspace).values()) == {"look", "reuse"}


def test_an_input_that_comes_out_differently_reruns_what_reads_it(
    recipe: Recipe, workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]
) -> None:
    made = everything_made()
    shutil.rmtree(made["precompute"].folder)
    commit_stage(recipe, workspace, "precompute", data=b"other bytes")
    assert actions(recipe, workspace)["pretrain"] == "run"


def test_a_changed_setting_reruns_its_stage_and_not_the_ones_before(
    workspace: Workspace, everything_made: Callable[[], object]
) -> None:
    everything_made()
    changed = Request(recipe="lvmae", overlays=("demo",), overrides=("pretrain.seed=7",)).load()
    assert list(actions(changed, workspace).values()) == ["look", "reuse", "reuse", "run", "wait", "wait"]
    workers = Request(recipe="lvmae", overlays=("demo",), overrides=("pretrain.num_workers=7",)).load()
    assert set(actions(workers, workspace).values()) == {"look", "reuse"}


def test_new_clips_give_the_stages_that_read_them_new_fingerprints(
    recipe: Recipe, workspace: Workspace, everything_made: Callable[[], object]
) -> None:
    everything_made()
    commit_clips(recipe, workspace, shards=2)
    assert actions(recipe, workspace)["tokenizer"] == "run"


def test_a_stage_alone_names_the_command_that_makes_its_missing_input(
    request_: Request, recipe: Recipe, workspace: Workspace
) -> None:
    commit_clips(recipe, workspace)
    with pytest.raises(ArtifactMissing) as caught:
        pins(["pretrain"], request=request_, recipe=recipe, workspace=workspace)
    assert f"lvmae tokenizer lvmae --overlay demo --root {workspace.root}" in str(caught.value)


def test_a_run_pins_only_what_it_does_not_make_itself(
    request_: Request, recipe: Recipe, workspace: Workspace, everything_made: Callable[[], dict[str, Artifact]]
) -> None:
    made = everything_made()
    found = pins(["pretrain", "evaluate"], request=request_, recipe=recipe, workspace=workspace)
    assert {name: one.digest for name, one in found.items()} == {
        name: made[name].digest for name in ("shard", "tokenizer", "precompute")
    }


def test_stages_are_selected_by_name() -> None:
    assert selected() == order()
    assert selected(only="pretrain") == ("pretrain",)
    assert selected(first="pretrain") == ("pretrain", "evaluate", "export")
    assert selected(first="tokenizer", last="pretrain") == ("tokenizer", "precompute", "pretrain")
    assert selected(last="tokenizer", snapshot="3") == ("tokenizer",), "a snapshot that is given is not made"
    with pytest.raises(ConfigError, match="unknown stage 'train'; known, in their order: shard, tokenizer"):
        selected(only="train")
    with pytest.raises(ConfigError, match="contradict"):
        selected(only="pretrain", first="shard")
    with pytest.raises(ConfigError, match="comes after the last"):
        selected(first="evaluate", last="shard")
    with pytest.raises(ConfigError, match="shard makes snapshots"):
        selected(only="shard", snapshot="3")


def test_a_snapshot_that_is_asked_for_is_read_also_when_there_are_newer_ones(
    request_: Request, recipe: Recipe, workspace: Workspace
) -> None:
    first = commit_clips(recipe, workspace)
    made = commit_stage(recipe, workspace, "tokenizer")
    newest = commit_clips(recipe, workspace, shards=2)
    assert newest.digest != first.digest
    assert {step.stage: step.action for step in plan(recipe, workspace)}["tokenizer"] is Action.RUN
    for named in ("1", "000001", first.digest[:12]):
        asked = request_.model_copy(update={"snapshot": named})
        pinned = pinned_snapshot(asked, recipe, workspace)
        assert pinned is not None
        assert pinned.digest == first.digest
        assert pins(("tokenizer",), request=asked, recipe=recipe, workspace=workspace)["shard"].digest == first.digest
    (step,) = [step for step in plan(recipe, workspace, pinned=first) if step.stage == "tokenizer"]
    assert (step.action, step.artifact) == (Action.REUSE, made)
    with pytest.raises(ConfigError, match=r"no snapshot is called '7'; known: 1, 2\. Give one of them"):
        pinned_snapshot(request_.model_copy(update={"snapshot": "7"}), recipe, workspace)
