"""New data: a recipe begins anew or goes on from the newest earlier weights, always from the same ones, and says so."""

import shutil
from pathlib import Path

import pytest

from pipeline.continuation import continued
from pipeline.plan import STAGES, Action, Step, config_of, plan
from pipeline.recipe import Recipe, Request
from stages.pretrain import Initial
from stages.storage import artifact
from stages.storage.artifact import Artifact, Work
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import commit_clips

GOES_ON = ("pretrain.on_new_data=continue", "tokenizer.on_new_data=keep")


def asked(*overrides: str) -> Recipe:
    return Request(recipe="lvmae", overlays=("demo",), overrides=overrides).load()


@pytest.fixture(scope="module")
def going_on() -> Recipe:
    return asked(*GOES_ON)


def train(recipe: Recipe, workspace: Workspace, *stages: str) -> dict[str, Artifact]:
    """Artifacts of the first stages as a run would make them, each with weights of its own; clips must be there."""
    made = {}
    for stage in stages or ("tokenizer", "precompute", "pretrain"):
        steps = {step.stage: step.artifact for step in plan(recipe, workspace)}
        inputs = {name: one for name in STAGES[stage].INPUTS if (one := steps[name])}
        config = config_of(continued(recipe, stage, inputs, workspace).recipe, stage)
        name = artifact.fingerprint(stage, STAGES[stage].VERSION, config, inputs)

        def make(folder: Path, name: str = name) -> Work:
            for file in ("model", "encoder", "decoder"):
                publish_bytes(folder / f"{file}.safetensors", f"{file} {name}".encode())
            return Work(units_done=1, units_reused=0, counts={})

        version = STAGES[stage].VERSION
        made[stage] = artifact.produce(
            stage, version=version, config=config, inputs=inputs, workspace=workspace, make=make
        ).artifact
    return made


def step_of(recipe: Recipe, workspace: Workspace, stage: str = "pretrain") -> Step:
    return next(step for step in plan(recipe, workspace) if step.stage == stage)


def initial_of(made: Artifact) -> str | None:
    """The digest of the encoder that an artifact began with."""
    initial = made.manifest.config["initial"]
    return initial and str(initial["encoder"]["sha256"])


def encoder_of(made: Artifact) -> str:
    return made.manifest.files["encoder.safetensors"].sha256


def test_the_policy_is_no_part_of_what_is_made_and_restarting_is_the_default(going_on: Recipe, workspace: Workspace) -> None:
    recipe = asked()
    assert (recipe.pretrain.on_new_data, recipe.tokenizer.on_new_data) == ("restart", "retrain")
    commit_clips(recipe, workspace)
    train(recipe, workspace)
    assert step_of(going_on, workspace).action is Action.REUSE, "there is nothing earlier to go on from"
    commit_clips(recipe, workspace, shards=2)
    assert initial_of(train(recipe, workspace)["pretrain"]) is None


def test_it_goes_on_from_the_newest_earlier_snapshot_and_the_plan_says_so(going_on: Recipe, workspace: Workspace) -> None:
    encoders = []
    for shards in (1, 2, 3):
        commit_clips(going_on, workspace, shards=shards)
        train(going_on, workspace, "tokenizer", "precompute")
        step = step_of(going_on, workspace)
        assert step.action is Action.RUN
        if encoders:
            assert f"goes on from pretrain {encoders[-1].fingerprint[:8]} of snapshot {shards - 1}" in step.reason
        encoders.append(train(going_on, workspace, "pretrain")["pretrain"])
        assert encoders[-1].fingerprint == step.fingerprint
        assert step_of(going_on, workspace).action is Action.REUSE
    assert [initial_of(made) for made in encoders] == [None, encoder_of(encoders[0]), encoder_of(encoders[1])]


def test_the_earlier_tokenizer_is_kept_with_the_same_weights(going_on: Recipe, workspace: Workspace) -> None:
    commit_clips(going_on, workspace)
    first = train(going_on, workspace, "tokenizer")["tokenizer"]
    commit_clips(going_on, workspace, shards=2)
    assert f"goes on from tokenizer {first.fingerprint[:8]} of snapshot 1" in step_of(going_on, workspace, "tokenizer").reason
    second = train(going_on, workspace, "tokenizer")["tokenizer"]
    assert second.manifest.config["weights"] == {"sha256": first.manifest.files["model.safetensors"].sha256}


def test_what_was_made_is_found_again_when_what_it_began_with_is_gone(going_on: Recipe, workspace: Workspace) -> None:
    commit_clips(going_on, workspace)
    first = train(going_on, workspace)
    commit_clips(going_on, workspace, shards=2)
    second = train(going_on, workspace)
    shutil.rmtree(first["pretrain"].folder)
    shutil.rmtree(first["tokenizer"].folder)
    assert step_of(going_on, workspace).fingerprint == second["pretrain"].fingerprint
    assert {step.action for step in plan(going_on, workspace)[1:4]} == {Action.REUSE}


def test_a_run_that_was_begun_goes_on_from_where_it_began_whatever_came_since(going_on: Recipe, workspace: Workspace) -> None:
    commit_clips(going_on, workspace)
    train(going_on, workspace)
    commit_clips(going_on, workspace, shards=2)
    train(going_on, workspace, "tokenizer", "precompute")
    begun = step_of(going_on, workspace).fingerprint
    assert begun
    workspace.artifact_folder("pretrain", begun).mkdir()
    other = asked(*GOES_ON, "pretrain.initial=null", "precompute.views.num_views=3")
    train(other, workspace, "precompute", "pretrain")
    step = step_of(going_on, workspace)
    assert (step.fingerprint, step.reason.partition(";")[0]) == (begun, "begun before, continues")


def test_weights_of_another_model_or_of_other_clips_are_not_gone_on_from(going_on: Recipe, workspace: Workspace) -> None:
    narrow = asked(*GOES_ON, "pretrain.model.encoder.depth=2")
    other = asked(*GOES_ON, "shard.dataset=others")
    for shards, recipe in ((1, narrow), (3, other)):
        commit_clips(recipe, workspace, shards=shards)
        train(recipe, workspace)
    commit_clips(going_on, workspace, shards=2)
    assert initial_of(train(going_on, workspace)["pretrain"]) is None


def test_what_a_stage_begins_with_is_in_the_recipe_beside_it(going_on: Recipe, workspace: Workspace) -> None:
    commit_clips(going_on, workspace)
    first = train(going_on, workspace)["pretrain"]
    commit_clips(going_on, workspace, shards=2)
    train(going_on, workspace, "tokenizer", "precompute")
    steps = {step.stage: step.artifact for step in plan(going_on, workspace)}
    inputs = {name: one for name in STAGES["pretrain"].INPUTS if (one := steps[name])}
    initial = continued(going_on, "pretrain", inputs, workspace).recipe.pretrain.initial
    assert isinstance(initial, Initial)
    assert initial.decoder is not None
    assert Path(initial.encoder.path) == first.folder / "encoder.safetensors"
    assert Path(initial.decoder.path) == first.folder / "decoder.safetensors"
