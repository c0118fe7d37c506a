"""Counts of cost, held against the modules, torch's counter of operations, and the tensors that autograd keeps."""

import contextlib
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from models.cost import (
    Policy,
    Workload,
    computed_again_flops,
    counted_training_flops,
    flops,
    parameters,
    parts,
    peak,
    saved_bytes,
    state,
)
from models.grid import Patching
from models.mae import Config, MaskedAutoencoder, masked_mse
from models.masking import none, priority, tube

SIZES = ("ViT-S", "ViT-B", "ViT-L", "ViT-H")
FUSED_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *shapes, **_: sdpa_backward_flop_count(
        *shapes[:4]
    ),
}
"""The processor's fused attention, which torch's counter does not know, counted as it counts those of a GPU."""
SHALLOW = {"encoder": {"width": 768, "depth": 2, "num_heads": 12}, "decoder": {"width": 384, "depth": 2, "num_heads": 6}}


def workload(model: Any, *, frames: int = 128, decode: str = "some", target_dim: int = 6) -> Workload:
    """Clips of 224 px; of the tokens 10 % are seen, and 15 % or all are predicted."""
    config = Config.model_validate({"encoder": model, "decoder": model} if isinstance(model, str) else model)
    grid = Patching().grid(frames, 224)
    masking = priority.Config() if decode == "some" else none.Config()
    return Workload(config, grid, tube.Config().count(grid), masking.count(grid), target_dim)


def on_meta(work: Workload) -> MaskedAutoencoder:
    with torch.device("meta"):
        return MaskedAutoencoder(work.config, work.grid, work.target_dim)


def clips(work: Workload, *, device: str, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        torch.zeros(batch, work.visible, work.config.patching.patch_dim, device=device),
        torch.zeros(batch, work.visible, dtype=torch.long, device=device),
        torch.zeros(batch, work.predicted, dtype=torch.long, device=device),
    )


# Counts


def test_full_size_clips_have_the_published_numbers_of_tokens() -> None:
    work = workload("ViT-B")
    assert (work.grid.num_tokens, work.visible, work.predicted) == (12_544, 1_280, 1_254 + 627)


@pytest.mark.parametrize(
    ("size", "encoder_millions", "total_millions"),
    [("ViT-S", 22, 24), ("ViT-B", 86, 94), ("ViT-L", 304, 318), ("ViT-H", 632, 646)],
)
def test_parameters_are_the_modules_and_the_published_ones(size: str, encoder_millions: int, total_millions: int) -> None:
    work = workload(size, target_dim=1536)
    module, counted = on_meta(work), parameters(work)
    assert counted.encoder == sum(value.numel() for value in module.encoder.parameters())
    assert counted.total == sum(value.numel() for value in module.parameters())
    assert round(counted.encoder / 1e6) == encoder_millions
    assert round(counted.total / 1e6) == total_millions


def test_state_is_sixteen_bytes_per_parameter_with_gradients_and_twenty_with_an_average() -> None:
    work = workload("ViT-B")
    total, plain, averaged = parameters(work).total, state(work), state(work, average=True)
    assert plain.weights + plain.moments + peak(work, clips=0).gradients == 16 * total
    assert averaged.average == 4 * total + plain.tables
    buffers = sum(value.nbytes for value in on_meta(work).buffers())
    assert plain.tables == buffers


# Operations


@pytest.mark.parametrize("decode", ["some", "all"])
@pytest.mark.parametrize("frames", [16, 128])
@pytest.mark.parametrize("size", SIZES)
def test_operations_are_those_that_torch_counts(size: str, frames: int, decode: str) -> None:
    work = workload(size, frames=frames, decode=decode)
    module = on_meta(work)
    with FlopCounterMode(display=False) as counter:
        predictions = module(*clips(work, device="meta"))
        forward = counter.get_total_flops()
        predictions.sum().backward()
    assert flops(work).forward == pytest.approx(forward, rel=0.005)
    assert counted_training_flops(work, "materialised") == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert flops(work).training == pytest.approx(counter.get_total_flops(), rel=0.01)
    by_operation = counter.get_flop_counts()["Global"]
    assert flops(work).attention * 3 == pytest.approx(by_operation[torch.ops.aten.bmm], rel=0.005)


def test_the_backward_pass_of_fused_attention_counts_five_products() -> None:
    work = workload(SHALLOW)
    module = on_meta(work)
    with FakeTensorMode(allow_non_fake_inputs=True):
        module = module.to_empty(device="cpu")
        with FlopCounterMode(display=False, custom_mapping=FUSED_ON_CPU) as counter:
            module(*clips(work, device="cpu")).sum().backward()
    assert counted_training_flops(work, "fused") == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert counted_training_flops(work, "fused") > 1.02 * counted_training_flops(work, "materialised")


def test_activation_checkpointing_computes_the_blocks_again() -> None:
    work = workload(SHALLOW)
    module = checkpointed(on_meta(work))
    with FlopCounterMode(display=False) as counter:
        module(*clips(work, device="meta")).sum().backward()
    expected = counted_training_flops(work, "materialised") + computed_again_flops(work, "full")
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.005)
    assert computed_again_flops(work, "none") == 0


# Bytes


def checkpointed(module: MaskedAutoencoder) -> MaskedAutoencoder:
    """The same network, whose blocks keep their input alone."""

    def again(block: torch.nn.Module) -> None:
        run = block.forward
        block.forward = lambda tokens: checkpoint(run, tokens, use_reentrant=False)  # type: ignore[method-assign]

    for block in [*module.encoder.blocks, *module.decoder]:
        again(block)
    return module


def attention(policy: Policy) -> contextlib.AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.FLASH_ATTENTION if policy.attention == "fused" else SDPBackend.MATH)


def kept_by_autograd(work: Workload, policy: Policy, batch: int) -> int:
    """Bytes of all different tensors that the backward pass needs, parameters and buffers aside."""
    found: dict[int, torch.UntypedStorage] = {}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        found[storage._cdata] = storage  # kept alive: no other storage may get its number
        return value

    module = on_meta(work)
    with FakeTensorMode(allow_non_fake_inputs=True), attention(policy):
        module = module.to_empty(device="cpu")
        own = {value.untyped_storage()._cdata for value in [*module.parameters(), *module.buffers()]}
        hooks = torch.autograd.graph.saved_tensors_hooks(note, lambda value: value)
        with hooks, torch.autocast("cpu", dtype=torch.bfloat16, enabled=policy.precision == "bf16"):
            predictions = module(*clips(work, device="cpu", batch=batch))
            weight, targets = torch.ones(batch, work.predicted), torch.zeros(batch, work.predicted, work.target_dim)
            loss = masked_mse(predictions, targets, weight)
        assert loss.requires_grad
        return sum(storage.nbytes() for number, storage in found.items() if number not in own)


@pytest.mark.parametrize("attention_kernel", ["fused", "materialised"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_bytes_of_a_full_size_clip_are_those_of_autograd(precision: Any, attention_kernel: Any) -> None:
    work, policy = workload("ViT-B"), Policy(precision, attention=attention_kernel)
    copies = sum(part.copied_bytes for part in parts(work, policy))
    assert saved_bytes(work, policy) + copies == pytest.approx(kept_by_autograd(work, policy, batch=1), rel=0.005)


@pytest.mark.parametrize(("frames", "decode", "target_dim", "batch"), [(16, "some", 6, 3), (64, "all", 1536, 2)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_kept_bytes_follow_the_sizes_of_clips_targets_and_batches(
    precision: Any, frames: int, decode: str, target_dim: int, batch: int
) -> None:
    work, policy = workload("ViT-S", frames=frames, decode=decode, target_dim=target_dim), Policy(precision)
    copies = sum(part.copied_bytes for part in parts(work, policy))
    kept = kept_by_autograd(work, policy, batch)
    assert batch * saved_bytes(work, policy) + copies == pytest.approx(kept, rel=0.005)


def most_in_a_step(work: Workload, policy: Policy, batch: int, *, num_parts: int = 1) -> int:
    """Bytes at the worst moment of the second of two steps, as torch's tracker sees every tensor come and go."""
    module = on_meta(work)
    with FakeTensorMode(allow_non_fake_inputs=True), attention(policy):
        module = module.to_empty(device="cpu")
        module = checkpointed(module) if policy.activation_checkpointing == "full" else module
        optimizer = torch.optim.AdamW(module.parameters(), fused=True)
        tracker = MemTracker()
        tracker.track_external(module, optimizer)
        with tracker:
            for _ in range(2):
                for _ in range(num_parts):
                    tracker.reset_mod_stats()
                    _backward(module, work, policy, batch)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            (found,) = tracker.get_tracker_snapshot("peak").values()
    return next(value for name, value in found.items() if str(name) == "Total")


def _backward(module: MaskedAutoencoder, work: Workload, policy: Policy, batch: int) -> None:
    """A part of a batch, as the stage pretrain computes it."""
    pixels, visible, predict = clips(work, device="cpu", batch=batch)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=policy.precision == "bf16"):
        wanted = torch.zeros(batch, work.predicted, work.target_dim)
        weight = torch.ones(batch, work.predicted)
        predicted = module(pixels, visible, predict)
        loss = masked_mse(predicted.float(), wanted, weight)
        masked_mse(wanted.mean(dim=(0, 1), keepdim=True).expand_as(wanted), wanted, weight)
    del wanted, predicted
    loss.backward()


@pytest.mark.parametrize(
    ("policy", "frames", "decode", "target_dim", "num_parts"),
    [
        (Policy("fp32"), 128, "some", 6, 1),
        (Policy("bf16"), 128, "some", 6, 2),
        (Policy("bf16"), 64, "all", 1536, 1),
        (Policy("bf16", "full"), 128, "all", 6, 2),
        (Policy("fp32", attention="materialised"), 32, "all", 6, 1),
    ],
)
def test_the_worst_moment_of_a_step_is_the_one_that_torch_sees(
    policy: Policy, frames: int, decode: str, target_dim: int, num_parts: int
) -> None:
    work = workload(SHALLOW, frames=frames, decode=decode, target_dim=target_dim)
    counted = peak(work, policy, clips=2, gradient_sets=num_parts - 1).total + sum(state(work))
    assert counted == pytest.approx(most_in_a_step(work, policy, 2, num_parts=num_parts), rel=0.05)


def test_a_small_batch_is_at_its_worst_when_all_gradients_are_there() -> None:
    work = workload("ViT-L", frames=16)
    worst = peak(work, Policy("bf16"), clips=1)
    assert worst == (4 * parameters(work).total, 0, 0)
    assert peak(work, Policy("bf16"), clips=64).activations > 50 * saved_bytes(work, Policy("bf16"))
