"""What pretraining is said to need agrees with what the counts say, with what is really sent and kept, and with itself."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from models import cost
from models.cost import Policy
from models.mae import MaskedAutoencoder
from models.quantizers import QuantizerConfig, fsq
from stages import estimate, precompute, pretrain
from stages.errors import ConfigError
from stages.estimate import Device, Run
from stages.player import Player
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.views import ViewConfig
from tests.stages.target_world import NUM_FRAMES, SIZE_PX, grow, precompute_config, words

GPU = estimate.gpu(1, "fp32")
"""Small enough for batches that can be counted."""
CPU = Device("processor", "cpu", 8_000_000_000, 1e11, taken_bytes=300_000_000)


def config(**optimization: Any) -> pretrain.Config:
    return pretrain.Config.model_validate(
        {
            "model": {
                "encoder": {"width": 64, "depth": 3, "num_heads": 2},
                "decoder": {"width": 32, "depth": 1, "num_heads": 2},
            },
            "encoder_masking": {"name": "tube", "ratio": 0.75},
            "decoder_masking": "priority",
            "target": "code_vectors",
            "optimization": {"num_steps": 1, "batch_clips": 16, "learning_rate": 1e-3, **optimization},
        }
    )


def run_of(views: ViewConfig | None = None, quantizer: QuantizerConfig | None = None, **optimization: Any) -> Run:
    shape = views or ViewConfig(num_frames=128, size_px=64)
    return estimate.run_of(config(**optimization), shape, quantizer or fsq.Config())


def test_a_run_has_the_tokens_and_targets_of_its_recipe() -> None:
    run = run_of(precision="bf16", ema_decay=0.9, accumulation_steps=4)
    assert (run.workload.grid.num_tokens, run.workload.visible, run.workload.predicted) == (1024, 256, 102 + 51)
    assert run.workload.target_dim == fsq.Config().build().dim
    assert (run.policy.precision, run.average, run.clips_at_once, run.device_clips) == ("bf16", True, 4, 16)


def test_parts_that_do_not_divide_among_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"accumulation_steps=4 parts .* 3 devices; make it a multiple"):
        estimate.run_of(config(accumulation_steps=4), ViewConfig(), fsq.Config(), num_devices=3)


def test_views_that_are_no_whole_patches_are_refused() -> None:
    with pytest.raises(ConfigError, match="a side of 60 px does not divide into patches of 16 px"):
        run_of(ViewConfig(num_frames=128, size_px=60))


def test_what_a_clip_is_said_to_send_is_what_the_loader_sends(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    (tmp_path / "scratch").mkdir()
    snapshot, tokenizer = grow(workspace, 0, tmp_path / "scratch"), words(workspace)
    targets = precompute.run(precompute_config(), {"shard": snapshot, "tokenizer": tokenizer}, workspace).artifact
    reader = TargetReader(targets)
    task = pretrain._task(config(), snapshot, reader)
    sample = pretrain._stream(task, snapshot, reader)[0]
    sent = sum(value.nbytes for value in sample.values() if isinstance(value, torch.Tensor))
    assert run_of(ViewConfig(num_frames=NUM_FRAMES, size_px=SIZE_PX), task.quantizer).clip_bytes == sent


def test_memory_is_the_sum_of_what_is_counted() -> None:
    run = run_of()
    needed = estimate.memory(run, GPU)
    counted = sum(cost.state(run.workload)) + cost.peak(run.workload, run.policy, clips=16).total
    assert needed.total == counted + 16 * run.clip_bytes + estimate.WORKSPACE_BYTES["cuda"]


def test_parts_take_the_activations_of_one_part_and_all_gradients() -> None:
    whole, parts = (estimate.memory(run_of(accumulation_steps=count), GPU) for count in (1, 4))
    assert parts.activations == pytest.approx(whole.activations / 4)
    assert parts.batch == whole.batch / 4
    assert parts.gradients == parts.weights > whole.gradients


def test_a_fixed_order_of_summation_keeps_a_branch_for_every_power_of_two() -> None:
    found = [estimate.memory(run_of(accumulation_steps=count, deterministic=True), GPU) for count in (1, 2, 8)]
    assert [needed.gradients // needed.weights for needed in found] == [0, 2, 4]


def test_a_processor_holds_the_whole_batch_decoded_video_and_the_interpreter() -> None:
    run = dataclasses.replace(run_of(accumulation_steps=4), cache_bytes=7)
    there, here = estimate.memory(run, GPU), estimate.memory(run, CPU)
    assert (here.batch, here.video, here.taken) == (16 * run.clip_bytes, 7, CPU.taken_bytes)
    assert (there.batch, there.video, there.taken) == (4 * run.clip_bytes, 0, 0)


@pytest.mark.parametrize("policy", [Policy(), Policy("bf16", "full"), Policy(attention="materialised")])
def test_the_largest_batch_fits_and_one_clip_more_does_not(policy: Policy) -> None:
    run = dataclasses.replace(run_of(), policy=policy)
    device = estimate.gpu(2, "fp32")
    largest = estimate.largest_clips_at_once(run, device)
    assert largest > 1
    assert estimate.fits(estimate.memory(run, device, largest), device)
    assert not estimate.fits(estimate.memory(run, device, largest + 1), device)


def test_activation_checkpointing_makes_room_and_attention_that_is_not_fused_takes_it() -> None:
    run, device = run_of(), estimate.gpu(2, "fp32")
    plain, checkpointing, materialised = (
        estimate.largest_clips_at_once(dataclasses.replace(run, policy=policy), device)
        for policy in (Policy(), Policy(activation_checkpointing="full"), Policy(attention="materialised"))
    )
    assert checkpointing > 1.2 * plain
    assert materialised < 0.8 * plain


def test_no_clip_fits_where_the_parameters_do_not() -> None:
    assert estimate.largest_clips_at_once(run_of(), GPU) == 0, "the workspace alone is as large"


@pytest.mark.parametrize(
    ("devices", "largest", "parts"), [(1, 16, 1), (1, 15, 2), (1, 5, 4), (4, 16, 4), (8, 1, 16), (1, 0, None)]
)
def test_a_batch_is_cut_into_as_few_equal_parts_as_fit(devices: int, largest: int, parts: int | None) -> None:
    run = dataclasses.replace(run_of(), num_devices=devices)
    assert estimate.fitting_parts(run, largest) == parts


def test_a_checkpoint_takes_twice_what_the_training_keeps_in_it() -> None:
    settings = config(ema_decay=0.9)
    run = estimate.run_of(settings, ViewConfig(num_frames=8, size_px=32), fsq.Config())
    work = run.workload
    module = MaskedAutoencoder(work.config, work.grid, work.target_dim)
    player = Player(module, settings.optimization)
    for value in module.parameters():
        value.grad = torch.ones_like(value)
    player.optimizer.step()
    stored = sum(value.nbytes for value in player.state().values())
    assert estimate.checkpoint_bytes(run) == pytest.approx(stored, rel=0.01)


def test_time_follows_operations_devices_and_what_is_computed_again() -> None:
    run = run_of()
    alone = estimate.duration(run, CPU)
    assert alone.floor_s == pytest.approx(16 * 3 * cost.flops(run.workload).forward / CPU.flops_per_s)
    assert alone.expected_s == pytest.approx(alone.floor_s / estimate.PROCESSOR_SHARE)
    shared = estimate.duration(dataclasses.replace(run, num_devices=4), CPU)
    assert shared.expected_s == pytest.approx(alone.expected_s / 4)
    again = estimate.duration(dataclasses.replace(run, policy=Policy(activation_checkpointing="full")), CPU)
    assert again.floor_s == alone.floor_s
    assert 1.2 < again.expected_s / alone.expected_s < 1.34
    eager, compiled = (estimate.duration(dataclasses.replace(run, compiled=one), GPU) for one in (False, True))
    assert compiled.expected_s == pytest.approx(eager.expected_s * 33 / 39)


def test_this_machine_is_measured_in_less_than_a_second() -> None:
    begun_s = time.perf_counter()
    found = estimate.this_device("fp32")
    assert time.perf_counter() - begun_s < 5, "of which a third of a second is the measurement, and the rest a busy machine"
    assert found.flops_per_s > 1e8
    assert found.memory_bytes > found.taken_bytes
    if found.kind == "cpu":
        assert found.taken_bytes > 100_000_000, "torch alone takes more"
