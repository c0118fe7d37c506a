"""The training step of our masked autoencoder against that of transformers' VideoMAE, on the same clips with the same weights.

    python benchmarks/pretrain_step.py [--device cpu|cuda] [--sizes S B] [--decoder B] [--frames N ...] [--quick]

A step is forward, backward and a fused AdamW update. Ours decodes 15 % of the tokens, or all that are hidden, which is the
peer's work to the last parameter: before anything is timed, both losses must agree. The decoder is ViT-B's, 4 blocks of 384,
whatever the encoder; VideoMAE's own for ViT-S has half that width, so that full decoding costs less there. Ours starts from
uint8 patches, the peer from pixels that were normalised beforehand, outside its step. Both have PyTorch's fused attention.

On a CPU the ways take turns, one clip per step, and the medians are seconds of processor time, which other programs disturb
least. On a GPU ours is compiled, every way has the largest batch that fits, and times are CUDA events; there this needs
nothing but torch, transformers and what ``models`` imports. What the forward pass keeps for the backward pass is counted
exactly, on tensors without values, and is the same on any machine.
"""

import argparse
import functools
import gc
import importlib.metadata
import itertools
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend

from benchmarks import _common, _videomae
from benchmarks._videomae import Case
from models.targets.pixels import StandardisedPixels
from models.videomae_weights import from_videomae

SPARSE, FULL, PEER, PEER_COMPILED = "ours, 15 %", "ours, all hidden", "transformers", "transformers, compiled"
SAVED = Case("ViT-B", num_frames=128, size_px=256)
"""Whose saved bytes are counted, at the size at which the models are meant to be trained."""
LARGEST_BATCH = 1024
TILE = 128
"""Tokens; cuDNN's attention wants whole tiles, see ``_videomae.num_decoded``."""
LARGEST_DIFFERENCE = 1e-3
"""Of the two losses; TF32 products differ by about as much."""


class Way(NamedTuple):
    """One way to make a training step."""

    name: str
    batch: Callable[[int], Any]
    """Of so many clips."""
    loss: Callable[[Any], Tensor]
    """Of a batch, operation by operation."""
    fast_loss: Callable[[Any], Tensor]
    """The same, compiled where this way is."""
    optimizer: torch.optim.Optimizer
    num_predicted: int
    flop_per_clip: int


class Measured(NamedTuple):
    """Of one way, per clip."""

    seconds: float
    others: Mapping[str, Any]
    """What else there is to say, by the name of its column."""


def main() -> None:
    """Check, time, count, and write ``pretrain_step.json``."""
    asked = _arguments()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    if asked.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    rate = _matmul_rate(asked)
    rows, differences = [], {}
    for size, num_frames in itertools.product(asked.sizes, asked.frames):
        case = Case(f"ViT-{size}", num_frames, asked.size, f"ViT-{asked.decoder}")
        ways, differences[f"{size} {num_frames}f"] = _ways(case, asked)
        measured = _on_cuda(ways, asked) if asked.device.type == "cuda" else _on_cpu(ways, asked)
        rows += [_row(size, case, way, measured[way.name], rate) for way in ways]
        _common.say(_common.table(rows[-len(ways) :]) + "\n")
        del ways
    saved = _saved()
    _common.say(_common.table([{"kept for backward": name, "MB/clip": value / 1e6} for name, value in saved.items()]) + "\n")
    result = {
        "machine": _machine(asked.device),
        "settings": {
            "size_px": asked.size,
            "decoder": asked.decoder,
            "precision": asked.precision,
            "threads": asked.threads,
            "rounds": asked.rounds,
            "attention": _attention_kernel(asked),
            "matmul_flop_per_s": _common.rounded(rate),
        },
        "relative_loss_difference": differences,
        "rows": rows,
        "saved_bytes_per_clip": {"model": SAVED.size, "frames": SAVED.num_frames, "size_px": SAVED.size_px, **saved},
        "ratios_at_frames": max(asked.frames),
        "ratios": _ratios(rows, saved, max(asked.frames)),
    }
    _common.finish("pretrain_step", result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=default, help=f"cpu or cuda ({default})")
    parser.add_argument("--sizes", nargs="+", choices=["S", "B", "L", "H"], help="of ViT (S B; S with --quick)")
    parser.add_argument("--decoder", choices=["S", "B", "L", "H"], default="B", help="the ViT whose decoder all have (B)")
    parser.add_argument("--frames", type=int, nargs="+", help="of a clip (16 128; 16 64 with --quick); ratios: of the longest")
    parser.add_argument("--size", type=int, help="side of a clip in pixels (112; 256 on cuda)")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of matrix products (fp32; bf16 on cuda)")
    parser.add_argument("--batch", type=int, help="clips per step (1; on cuda the largest power of two that fits)")
    parser.add_argument("--rounds", type=int, help="timed steps of each way (5; 20 on cuda; 2 with --quick)")
    parser.add_argument("--threads", type=int, default=1, help="of the processor (1)")
    parser.add_argument("--compile-peer", action="store_true", help="on cuda, time the peer compiled as well")
    asked = parser.parse_args()
    on_cuda = asked.device.type == "cuda"
    asked.sizes = asked.sizes or (["S"] if asked.quick else ["S", "B"])
    asked.frames = asked.frames or ([16, 64] if asked.quick else [16, 128])
    asked.size = asked.size or (256 if on_cuda else 112)
    asked.precision = asked.precision or ("bf16" if on_cuda else "fp32")
    asked.rounds = asked.rounds or (2 if asked.quick else 20 if on_cuda else 5)
    return asked


def _ways(case: Case, asked: argparse.Namespace) -> tuple[list[Way], float]:
    """All ways, and the relative difference between our loss and the peer's at the same work.

    Raises:
        RuntimeError: the losses differ, so that the two would not do the same.
    """
    peer = _videomae.peer(case)
    ours = _videomae.ours(case)
    ours.load_state_dict(from_videomae(peer.state_dict()))
    ours, peer = ours.to(asked.device), peer.to(asked.device)
    our_loss = functools.partial(_videomae.our_loss, ours, StandardisedPixels(case.model.patching))
    peer_loss = functools.partial(_videomae.peer_loss, peer)
    difference = _difference(case, asked.device, our_loss, peer_loss)
    on_cuda = asked.device.type == "cuda"
    one_graph = torch.compile(our_loss, fullgraph=True, dynamic=False) if on_cuda else our_loss
    of_ours, of_peer = _adamw(ours), _adamw(peer)
    dense = functools.partial(_videomae.dense_batch, case, device=asked.device)
    ways = []
    for name, num_predicted in (
        (SPARSE, _videomae.num_decoded(case, tile=TILE if on_cuda else 1)),
        (FULL, case.num_hidden),
    ):
        batch = functools.partial(_videomae.sparse_batch, case, num_predicted=num_predicted, device=asked.device)
        flop = _videomae.step_flop(case, num_predicted)
        ways.append(Way(name, batch, our_loss, one_graph, of_ours, num_predicted, flop))
    ways.append(Way(PEER, dense, peer_loss, peer_loss, of_peer, case.num_hidden, flop))
    if on_cuda and asked.compile_peer:
        compiled = torch.compile(peer_loss, dynamic=False)
        ways.append(Way(PEER_COMPILED, dense, peer_loss, compiled, of_peer, case.num_hidden, flop))
    return ways, difference


def _difference(
    case: Case, device: torch.device, our_loss: Callable[[Any], Tensor], peer_loss: Callable[[Any], Tensor]
) -> float:
    with torch.no_grad():
        own = our_loss(_videomae.sparse_batch(case, 1, case.num_hidden, device)).item()
        theirs = peer_loss(_videomae.dense_batch(case, 1, device)).item()
    difference = abs(own - theirs) / theirs
    if not difference <= LARGEST_DIFFERENCE:
        raise RuntimeError(f"{case}: with the same weights the losses are {own} and the peer's {theirs}; they must agree")
    return _common.rounded(difference, 2)


def _adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1.5e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


def _step(way: Way, loss: Callable[[Any], Tensor], batch: Any, asked: argparse.Namespace) -> None:
    with torch.autocast(asked.device.type, dtype=torch.bfloat16, enabled=asked.precision == "bf16"):
        value = loss(batch)
    value.backward()
    way.optimizer.step()
    way.optimizer.zero_grad(set_to_none=True)


def _on_cpu(ways: Sequence[Way], asked: argparse.Namespace) -> dict[str, Measured]:
    """Medians of steps that take turns; the first round warms up."""
    num_clips = asked.batch or 1
    steps = {way.name: functools.partial(_step, way, way.loss, way.batch(num_clips), asked) for way in ways}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(asked.rounds + 1):
        for name, step in steps.items():
            begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
            step()
            spent[name].append((time.process_time() - begun_cpu_s, time.perf_counter() - begun_s))
    found = {}
    for name, times in spent.items():
        cpu_s, wall_s = (statistics.median(values) / num_clips for values in zip(*times[1:], strict=True))
        found[name] = Measured(cpu_s, {"batch": num_clips, "CPU s/clip": cpu_s, "wall s/clip": wall_s})
    return found


def _on_cuda(ways: Sequence[Way], asked: argparse.Namespace) -> dict[str, Measured]:
    """Medians of one way after the other, each at the largest batch that fits."""
    return {way.name: _alone_on_cuda(way, asked.batch or _largest_batch(way, asked), asked) for way in ways}


def _alone_on_cuda(way: Way, num_clips: int, asked: argparse.Namespace) -> Measured:
    torch.compiler.reset()
    state_bytes = torch.cuda.memory_allocated()
    batch = way.batch(num_clips)
    step = functools.partial(_step, way, way.fast_loss, batch, asked)
    for _ in range(3):
        step()
    syncs = _syncs(step)
    torch.cuda.reset_peak_memory_stats()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(asked.rounds + 1)]
    events[0].record()
    for event in events[1:]:
        step()
        event.record()
    torch.cuda.synchronize()
    seconds = statistics.median(begin.elapsed_time(end) / 1e3 for begin, end in itertools.pairwise(events)) / num_clips
    peak_bytes = torch.cuda.max_memory_allocated()
    del batch, step
    torch.cuda.empty_cache()
    others = {
        "batch": num_clips,
        "ms/clip": seconds * 1e3,
        "clips/s": 1 / seconds,
        "peak GB": peak_bytes / 1e9,
        "MB/clip": (peak_bytes - state_bytes) / num_clips / 1e6,
        "syncs/step": syncs,
    }
    return Measured(seconds, others)


def _largest_batch(way: Way, asked: argparse.Namespace) -> int:
    """The largest power of two that fits without being compiled, which takes more memory than compiled."""
    num_clips = 1
    while num_clips < LARGEST_BATCH and _fits(way, 2 * num_clips, asked):
        num_clips *= 2
    return num_clips


def _fits(way: Way, num_clips: int, asked: argparse.Namespace) -> bool:
    fits = True
    try:
        batch = way.batch(num_clips)
        for _ in range(2):
            _step(way, way.loss, batch, asked)
        torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        fits = False
    batch = None
    way.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()
    return fits


def _syncs(step: Callable[[], None]) -> int:
    """How often the processor waits for the GPU in one step."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def _matmul_rate(asked: argparse.Namespace) -> float:
    """Floating-point operations per second of a square matrix product in the precision of the steps; the best of ten."""
    on_cuda = asked.device.type == "cuda"
    side = 8192 if on_cuda else 1024
    dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=asked.device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        begun_s = time.perf_counter() if on_cuda else time.process_time()
        torch.mm(left, right)
        if on_cuda:
            torch.cuda.synchronize()
        seconds.append((time.perf_counter() if on_cuda else time.process_time()) - begun_s)
    return float(2 * side**3 / min(seconds))


def _attention_kernel(asked: argparse.Namespace) -> str:
    """What PyTorch takes for attention over long sequences here."""
    dtype = torch.bfloat16 if asked.precision == "bf16" else torch.float32
    tokens = torch.empty(1, 6, 8 * TILE, 64, device=asked.device, dtype=dtype, requires_grad=True)
    return str(SDPBackend(torch._fused_sdp_choice(tokens, tokens, tokens)).name)


def _row(size: str, case: Case, way: Way, measured: Measured, rate: float) -> dict[str, Any]:
    return {
        "model": size,
        "frames": case.num_frames,
        "way": way.name,
        "tokens": case.grid.num_tokens,
        "visible": case.num_visible,
        "predicted": way.num_predicted,
        **{name: _common.rounded(value) if isinstance(value, float) else value for name, value in measured.others.items()},
        "TFLOP/clip": _common.rounded(way.flop_per_clip / 1e12),
        "of matmul rate": _common.rounded(way.flop_per_clip / measured.seconds / rate, 3),
        "s/clip": _common.rounded(measured.seconds),
    }


def _saved() -> dict[str, int]:
    """Bytes that the forward pass keeps of a clip, by way."""
    return {
        SPARSE: _videomae.saved_bytes(SAVED, _videomae.num_decoded(SAVED, tile=TILE)),
        FULL: _videomae.saved_bytes(SAVED, SAVED.num_hidden),
        PEER: _videomae.peer_saved_bytes(SAVED, "sdpa"),
        f"{PEER}, attention written out": _videomae.peer_saved_bytes(SAVED, "eager"),
    }


def _ratios(rows: Sequence[Mapping[str, Any]], saved: Mapping[str, int], num_frames: int) -> dict[str, float | None]:
    """The peer's time over ours, for the longest clips, and our bytes over the peer's; ``None``: not measured."""
    seconds = {(row["model"], row["way"]): row["s/clip"] for row in rows if row["frames"] == num_frames}
    found: dict[str, float | None] = {}
    for size in ("S", "B"):
        for name, way in (("speedup", SPARSE), ("same_work", FULL)):
            measured = (size, way) in seconds
            ratio = seconds[size, PEER] / seconds[size, way] if measured else None
            found[f"{name}_{size.lower()}"] = _common.rounded(ratio, 3) if ratio else None
    return {**found, "saved_bytes_b": _common.rounded(saved[SPARSE] / saved[PEER], 3)}


def _machine(device: torch.device) -> dict[str, Any]:
    """Facts that decide a measurement; on a GPU machine without ffmpeg those that are about the GPU."""
    transformers = importlib.metadata.version("transformers")
    if device.type != "cuda":
        return {**_common.machine(), "transformers": transformers}
    found = torch.cuda.get_device_properties(device)
    return {
        "gpu": found.name,
        "gpu_memory_bytes": found.total_memory,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "transformers": transformers,
    }


if __name__ == "__main__":
    main()
