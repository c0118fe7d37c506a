"""What pretraining needs before it is started: the memory of a device, the largest batch that fits one, and hours.

Nothing is tried: ``models.cost`` counts what the network costs, and what it cannot know stands here with its source. The one
thing that is measured is this machine: its memory, its rate of matrix products, and what this process takes already.
``benchmarks/plan.py`` compares the prediction with real steps.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from models import cost
from models.cost import AttentionKernel, Checkpointing, Policy, Workload
from stages.device import Precision, device
from stages.errors import ConfigError

if TYPE_CHECKING:
    from models.quantizers import QuantizerConfig
    from stages.pretrain import Config
    from stages.views import ViewConfig

USABLE_SHARE = 0.92
"""Share of a device's memory to plan with. Our choice: the rest is for what the allocator cannot use between tensors."""

WORKSPACE_BYTES: Mapping[str, int] = MappingProxyType({"cpu": 100_000_000, "cuda": 1_000_000_000})
"""What libraries take for themselves. Our choice; on a GPU it is CUDA's context and the workspace of cuBLAS, which on Hopper is
32 MiB (torch's documentation of ``CUBLAS_WORKSPACE_CONFIG``), on a processor buffers of matrix products and pages that are not
given back: 80 MB were measured for ViT-S."""

GPU_FLOPS_PER_S: Mapping[Precision, float] = MappingProxyType({"bf16": 790e12, "fp32": 67e12})
"""What matrix products reach on an H100 or H200. bf16: 780 and 794 TFLOP/s were measured, of 989 in NVIDIA's data sheet (H. He,
"H100 peak matmul FLOPS"; S. Bekman, "Machine Learning Engineering", maximum achievable matmul FLOPS). fp32: the data sheet of
the H100 SXM, without TF32, which nothing here turns on."""

COMPILED_SHARE = 0.40
"""Share of that rate that a compiled training step reaches on a GPU. Our assumption for ViT-B and ViT-L: torchtitan reports
39 % of 989 TFLOP/s for Llama-3 8B on H100 (``benchmarks/llama3_h100_202412``), and narrower networks reach less."""

EAGER_SHARE = COMPILED_SHARE * 33 / 39
"""The same without a compiler: torchtitan reports 33 % for eager torch where it reports 39 % with one."""

PROCESSOR_SHARE = 0.80
"""Share of the rate of one large product that a training step reaches on a processor, compiled or not: 70 to 90 % were measured
for ViT-S and ViT-B in fp32 on an AMD EPYC."""

_MEASURED_S = 0.3
"""How long the rate of a device is measured."""
_PRODUCT_SIDE = MappingProxyType({"cpu": 512, "cuda": 8192})


class Device(NamedTuple):
    """Where a training would run."""

    name: str
    kind: Literal["cpu", "cuda"]
    memory_bytes: int
    flops_per_s: float
    """Of matrix products in the precision of the training."""
    taken_bytes: int = 0
    """Taken before the training begins, by the interpreter and the libraries it imported."""

    def sustained_share(self, *, compiled: bool) -> float:
        """The part of ``flops_per_s`` that a training step is assumed to reach."""
        if self.kind == "cpu":
            return PROCESSOR_SHARE
        return COMPILED_SHARE if compiled else EAGER_SHARE


@dataclasses.dataclass(frozen=True)
class Run:
    """A pretraining, as far as its cost depends on it.

    Args:
        workload: the network and its clips.
        policy: how a step is computed.
        batch_clips: clips per step, over all devices.
        num_parts: equal parts of a batch, which go through the network one after the other or on different devices.
        num_devices: that share the parts.
        average: whether there is a moving average of the parameters.
        deterministic: whether the gradients of several parts are kept apart to be summed in a fixed order.
        compiled: whether the network goes through ``torch.compile``; it changes the time, and memory in ways not counted here.
        num_products: precomputed numbers per predicted token that the target reads.
        cache_bytes: decoded video that all processes keep in main memory, at most.
    """

    workload: Workload
    policy: Policy
    batch_clips: int
    num_parts: int = 1
    num_devices: int = 1
    average: bool = False
    deterministic: bool = False
    compiled: bool = False
    num_products: int = 0
    cache_bytes: int = 0

    @property
    def device_clips(self) -> int:
        """Clips per step on one device."""
        return self.batch_clips // self.num_devices

    @property
    def clips_at_once(self) -> int:
        """Clips that go through the network of one device together."""
        return self.batch_clips // self.num_parts

    @property
    def gradient_sets(self) -> int:
        """Sets of all gradients that are there before the last part's backward pass, and the one that it makes.

        Several parts add to one set; in a fixed order there is one more for every power of two, as branches of a tree.
        """
        device_parts = self.num_parts // self.num_devices
        if device_parts == 1:
            return 0
        return (device_parts - 1).bit_length() + 1 if self.deterministic else 1

    @property
    def clip_bytes(self) -> int:
        """What the loader sends of a clip: pixels as bytes, positions and products as int64, and which tokens are recorded."""
        work = self.workload
        pixels = (work.visible + work.predicted) * work.config.patching.patch_dim
        return pixels + 8 * (work.visible + work.predicted * (1 + self.num_products)) + work.grid.num_tokens


class Memory(NamedTuple):
    """Bytes on one device at the worst moment of a training step."""

    weights: int
    moments: int
    average: int
    tables: int
    gradients: int
    activations: int
    copies: int
    """bf16 copies of weights."""
    batch: int
    """What the loader sent."""
    video: int
    """Decoded video that is kept at most, on a processor; on a GPU it lies elsewhere."""
    workspace: int
    taken: int
    """By the interpreter and its libraries, on a processor."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


class Duration(NamedTuple):
    """Seconds of one step; neither transport between devices nor waiting for data is in them."""

    floor_s: float
    """If every operation that counts went at the rate of one large matrix product."""
    expected_s: float
    """At the share of that rate that training steps reach, with what is computed a second time."""


def run_of(
    config: "Config",
    views: "ViewConfig",
    quantizer: "QuantizerConfig",
    *,
    num_devices: int = 1,
    activation_checkpointing: Checkpointing = "none",
    attention: AttentionKernel = "fused",
    compiled: bool = False,
) -> Run:
    """A recipe's pretraining.

    Args:
        config: of the stage pretrain.
        views: frames and pixels of its clips.
        quantizer: the tokenizer's, whose codes may be what is predicted.
        num_devices: that share every batch.
        activation_checkpointing: what is kept of a block for its backward pass.
        attention: the kernel.
        compiled: whether the network goes through ``torch.compile``.

    Raises:
        ConfigError: clips do not divide into patches, or batches among the devices.
    """
    optimization = config.optimization
    if optimization.accumulation_steps % num_devices:
        raise ConfigError(
            f"pretrain.optimization.accumulation_steps={optimization.accumulation_steps} parts of a batch do not divide among "
            f"{num_devices} devices; make it a multiple, such as --set pretrain.optimization.accumulation_steps={num_devices}"
        )
    try:
        grid = config.model.patching.grid(views.num_frames, views.size_px)
    except ValueError as error:
        raise ConfigError(f"precompute.views does not fit pretrain.model.patching: {error}") from error
    visible, predicted = config.encoder_masking.count(grid), config.decoder_masking.count(grid)
    target_dim = config.target.build(config.model.patching, quantizer).dim
    return Run(
        Workload(config.model, grid, visible, predicted, target_dim),
        Policy(optimization.precision, activation_checkpointing, attention),
        optimization.batch_clips,
        optimization.accumulation_steps,
        num_devices,
        average=optimization.ema_decay is not None,
        deterministic=optimization.deterministic,
        compiled=compiled,
        num_products=len(config.target.needs),
        cache_bytes=config.cache_bytes * max(1, config.num_workers),
    )


def this_device(precision: Precision) -> Device:
    """The GPU of this machine, or its processor; its rate is measured, which takes less than a second."""
    place = device()
    rate = matmul_flops_per_s(place, precision)
    if place.type == "cuda":
        properties = torch.cuda.get_device_properties(place)
        return Device(properties.name, "cuda", properties.total_memory, rate)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("this processor", "cpu", memory, rate, taken_bytes())


def gpu(memory_gb: float, precision: Precision) -> Device:
    """A GPU of the class of H100 and H200 with so much memory, in units of 10^9 bytes."""
    return Device(f"GPU of {memory_gb:g} GB", "cuda", int(memory_gb * 1e9), GPU_FLOPS_PER_S[precision])


def memory(run: Run, place: Device, clips_at_once: int | None = None) -> Memory:
    """What a training step needs at its worst moment.

    Args:
        run: the training.
        place: where.
        clips_at_once: clips that go through the network together as one of several parts; ``None``: as the run says.
    """
    clips = run.clips_at_once if clips_at_once is None else clips_at_once
    sets = run.gradient_sets if clips_at_once is None else max(1, run.gradient_sets)
    on_processor = place.kind == "cpu"
    loaded_clips = max(run.device_clips, clips) if on_processor else clips  # parts are moved one by one
    return Memory(
        *cost.state(run.workload, average=run.average),
        *cost.peak(run.workload, run.policy, clips=clips, gradient_sets=sets),
        batch=loaded_clips * run.clip_bytes,
        video=run.cache_bytes if on_processor else 0,
        workspace=WORKSPACE_BYTES[place.kind],
        taken=place.taken_bytes,
    )


def fits(needed: Memory, place: Device) -> bool:
    """Whether a device has room for it."""
    return needed.total <= USABLE_SHARE * place.memory_bytes


def largest_clips_at_once(run: Run, place: Device) -> int:
    """The most clips that go through the network of one device together, as one of several parts; 0 if not even one does."""
    lowest, above = 0, 1
    while fits(memory(run, place, above), place):
        lowest, above = above, 2 * above
    while above - lowest > 1:
        middle = (lowest + above) // 2
        lowest, above = (middle, above) if fits(memory(run, place, middle), place) else (lowest, middle)
    return lowest


def fitting_parts(run: Run, largest: int) -> int | None:
    """The fewest parts into which a batch can be cut so that each fits and all devices get equally many; ``None``: none do.

    Args:
        run: the training.
        largest: the most clips that fit at once.
    """
    counts = range(run.num_devices, run.batch_clips + 1, run.num_devices)
    return next((count for count in counts if run.batch_clips % count == 0 and run.batch_clips // count <= largest), None)


def checkpoint_bytes(run: Run) -> int:
    """Size of a checkpoint: parameters, moments and average. Where they lie on a GPU, main memory holds a copy while one is
    written; a processor needs none beside the tensors themselves.
    """
    state = cost.state(run.workload, average=run.average)
    return sum(state) - state.tables


def duration(run: Run, place: Device) -> Duration:
    """How long a step takes on every one of the devices."""
    useful = run.device_clips * cost.flops(run.workload).training
    again = run.device_clips * cost.computed_again_flops(run.workload, run.policy.activation_checkpointing)
    sustained = place.flops_per_s * place.sustained_share(compiled=run.compiled)
    return Duration(useful / place.flops_per_s, (useful + again) / sustained)


def taken_bytes() -> int:
    """Memory that this process takes now, with what a training imports later; shared libraries count."""
    torch.optim.AdamW([torch.zeros(1)])  # torch imports a good part of itself for the first optimizer
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def matmul_flops_per_s(place: torch.device, precision: Precision) -> float:
    """The best rate of a square matrix product within a fraction of a second."""
    side = _PRODUCT_SIDE[place.type]
    numbers = torch.linspace(-1, 1, side**2, device=place).reshape(side, side)
    matrix = numbers.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    best_s, until_s = float("inf"), time.perf_counter() + _MEASURED_S
    while time.perf_counter() < until_s:
        begun_s = time.perf_counter()
        torch.mm(matrix, matrix)
        if place.type == "cuda":
            torch.cuda.synchronize()
        best_s = min(best_s, time.perf_counter() - begun_s)
    return float(2 * side**3 / best_s)
