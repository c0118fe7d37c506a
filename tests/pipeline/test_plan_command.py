"""``lvmae plan``: numbers of the counts, of a recipe that nothing was made for yet; errors that say what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from models import cost
from models.cost import Policy, Workload
from pipeline.estimation import rates
from pipeline.estimation.estimates import forecast
from pipeline.recipe import Recipe, Request
from pipeline.recipe_files import recipe_names
from stages import estimate
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import commit_clips
from tests.pipeline.test_command import DEMO, invoke

FP32 = "pretrain.optimization.precision=fp32"
"""Of the recipe at full scale too, so that processors without bf16 need not imitate it while they are measured."""


def planned(*arguments: str, workspace: Workspace) -> dict[str, Any]:
    result = invoke("plan", *arguments, "--root", str(workspace.root), "--json")
    assert result.exit_code == 0, result.stderr
    assert not workspace.root.exists(), "nothing is written"
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def workload(recipe: Recipe) -> Workload:
    views, stage = recipe.precompute.views, recipe.pretrain
    grid = stage.model.patching.grid(views.num_frames, views.size_px)
    dim = recipe.tokenizer.model.quantizer.build().dim
    return Workload(stage.model, grid, stage.encoder_masking.count(grid), stage.decoder_masking.count(grid), dim)


def test_help_says_what_it_shows_and_that_status_is_something_else() -> None:
    result = invoke("plan", "--help")
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert "Example: lvmae plan lvmae" in text
    assert "no artifact needs to be there" in text
    assert "minutes are those that a unit took on this machine before, or unknown" in text
    assert "lvmae status" in text


def test_the_plan_comes_first_and_counts_what_a_recipe_says_before_anything_is_there(workspace: Workspace) -> None:
    record = planned(*DEMO, workspace=workspace)
    stages = {one["stage"]: one for one in record["stages"]}
    assert {name: (one["action"], one["units"]) for name, one in stages.items()} == {
        "shard": ("run", 22),
        "tokenizer": ("run", 300),
        "precompute": ("run", 44),
        "pretrain": ("run", 1000),
        "evaluate": ("run", 22),
        "export": ("run", 2),
    }
    assert all(one["minutes"] is None for one in stages.values()), "nothing was measured below this root"
    assert stages["precompute"]["is_bound"]
    text = invoke("plan", *DEMO, "--root", str(workspace.root), "--only", "pretrain").stdout
    first, _, row, unknown, *_ = text.splitlines()
    assert first == f"lvmae run lvmae --overlay demo --root {workspace.root} would"
    assert row.split()[:3] == ["pretrain", "wait", "<="]
    assert unknown == "pretrain: time unknown, for no run with these settings was recorded below this root"
    assert "needed by a step" in text


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_can_be_planned_at_full_scale(name: str, workspace: Workspace) -> None:
    """Steps that are counted in epochs are unknown while there are no clips; sizes of what is trained are not."""
    stages = {one.stage: one for one in forecast(Request(recipe=name, source="/no/such").load(), workspace)}
    assert stages["shard"].reason.startswith("cannot be foreseen: ")
    assert stages["shard"].units is None
    assert (stages["pretrain"].size_bytes or 0) > 100_000_000
    assert (stages["export"].size_bytes or 0) > 100_000_000


def test_minutes_are_those_of_this_machine_and_these_settings(smoke_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(smoke_root)
    request = Request(recipe="lvmae", overlays=("demo", "smoke"), overrides=("pretrain.seed=1",))
    found = {one.stage: one for one in forecast(request.load(), workspace)}
    measured = rates.measured(workspace, "pretrain", request.load().pretrain)
    assert measured
    assert found["pretrain"].minutes == pytest.approx(12 * measured.unit_s / 60)
    assert "measured once on this machine" in found["pretrain"].basis
    other = request.model_copy(update={"overrides": ("pretrain.optimization.batch_clips=8",)}).load()
    assert rates.measured(workspace, "pretrain", other.pretrain) is None
    monkeypatch.setattr(rates.socket, "gethostname", lambda: "another-machine")
    assert rates.measured(workspace, "pretrain", request.load().pretrain) is None


@pytest.mark.parametrize("overlays", [(), ("demo",)])
def test_numbers_are_those_of_the_counts(overlays: tuple[str, ...], workspace: Workspace) -> None:
    arguments = [part for name in overlays for part in ("--overlay", name)]
    record = planned("lvmae", *arguments, "--set", FP32, workspace=workspace)
    work = workload(Request(recipe="lvmae", overlays=overlays, overrides=(FP32,)).load())
    assert record["clip"]["tokens"] == work.grid.num_tokens
    assert record["clip"]["decoded_tokens"] == work.visible + work.predicted
    assert record["parameters"] == {"encoder": cost.parameters(work).encoder, "decoder": cost.parameters(work).decoder}
    assert record["flops_per_clip"]["training"] == 3 * cost.flops(work).forward
    assert record["kept_bytes_per_clip"]["checkpointing"] == cost.saved_bytes(work, Policy("fp32", "full"))
    for place in record["devices"]:
        needed = place["needed_bytes"]
        assert needed["total"] == sum(value for name, value in needed.items() if name != "total")
        assert needed["activations"] >= record["clips_at_once"] * cost.saved_bytes(work, Policy("fp32")) * 0.9


def test_the_recipe_at_full_scale_is_told_how_to_fit_80_and_141_gb(workspace: Workspace) -> None:
    record = planned("lvmae", "--set", FP32, workspace=workspace)
    assert record["clip"] == {
        "num_frames": 128, "size_px": 224, "tokens": 12_544, "visible_tokens": 1_280, "predicted_tokens": 1_881,
        "decoded_tokens": 3_161,
    }  # fmt: skip
    here, small, large = record["devices"]
    assert here["flops_per_s"] > 0
    assert [place["memory_bytes"] for place in (small, large)] == [80e9, 141e9]
    assert not small["fits"]
    for place in (small, large):
        largest = place["largest_clips_at_once"]
        assert largest["materialised"] < largest["plain"] < largest["checkpointing"]
        assert 512 // place["fitting_parts"] <= largest["plain"]
    assert large["largest_clips_at_once"]["plain"] > 1.5 * small["largest_clips_at_once"]["plain"]
    text = invoke("plan", "lvmae", "--set", FP32, "--root", str(workspace.root)).stdout
    assert f"accumulation_steps={small['fitting_parts']} makes it {512 // small['fitting_parts']} at once, which fit" in text
    assert "12,544 tokens: 1,280 visible (10.2%), 1,881 predicted (15.0%)" in text
    assert "give --clips N" in text


def test_a_batch_in_as_many_parts_as_it_was_told_fits(workspace: Workspace) -> None:
    (_, small, _) = planned("lvmae", "--set", FP32, workspace=workspace)["devices"]
    parts = f"pretrain.optimization.accumulation_steps={small['fitting_parts']}"
    (_, small, _) = planned("lvmae", "--set", FP32, "--set", parts, workspace=workspace)["devices"]
    assert small["fits"]


def test_hours_follow_the_number_of_clips_and_the_devices(workspace: Workspace) -> None:
    parts = "pretrain.optimization.accumulation_steps=8"
    options = ("lvmae", "--set", FP32, "--set", parts, "--clips", "51200", "--memory", "80")
    one, eight = (planned(*options, "--devices", str(count), workspace=workspace) for count in (1, 8))
    assert one["num_steps"] == 1600 * 100
    (_, alone), (_, shared) = one["devices"], eight["devices"]
    work = workload(Request(recipe="lvmae").load())
    epoch_s = 51_200 * cost.flops(work).training / estimate.GPU_FLOPS_PER_S["fp32"]
    assert alone["duration_s"]["epoch"]["floor"] == pytest.approx(epoch_s)
    assert alone["duration_s"]["training"]["eager"] == pytest.approx(1600 * epoch_s / estimate.EAGER_SHARE)
    assert shared["duration_s"]["step"]["compiled"] == pytest.approx(alone["duration_s"]["step"]["compiled"] / 8)


def test_a_snapshot_that_is_there_says_how_many_clips_there_are(recipe: Recipe, workspace: Workspace) -> None:
    before = planned(*DEMO, workspace=workspace)
    assert before["num_clips"] is None
    assert before["num_steps"] == recipe.pretrain.optimization.num_steps, (
        "a recipe that counts in steps needs no clips for that"
    )
    commit_clips(recipe, workspace)
    after = json.loads(invoke("plan", *DEMO, "--root", str(workspace.root), "--json").stdout)
    assert after["num_clips"] == 0, "the snapshot of this test is empty"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("lvma",), "error: unknown recipe 'lvma'; known: everest, lvmae"),
        (("lvmae", "--memory", "80,big"), "error: --memory '80,big': expected sizes in GB"),
        (("lvmae", "--memory", "-1"), "error: --memory '-1'"),
        (("lvmae", "--devices", "3"), "do not divide among 3 devices; make it a multiple"),
        (("lvmae", "--set", "precompute.views.size_px=220"), "a side of 220 px does not divide into patches of 16 px"),
    ],
)
def test_a_wrong_request_gives_one_message_and_exit_code_2(
    arguments: tuple[str, ...], message: str, workspace: Workspace
) -> None:
    result = invoke("plan", *arguments, "--root", str(workspace.root))
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""
