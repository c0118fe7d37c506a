"""What targets cost: making them, against the tokenizer alone; reading a sample's, against decoding it; and their bytes.

    python benchmarks/targets.py [--data FOLDER] [--weights FILE] [--frames N] [--size PX] [--rounds N] [--quick]

The videos of a folder (or generated ones) are made into clips of 256 px in two shards or more by the stage ``shard``; the
stage ``tokenizer`` publishes one of variant ``tiny``, with weights from a file or untrained ones, which cost the same. Then:

* making: the stage ``precompute`` with nothing there yet, in turn with the limit: ``tokenize`` of the same views, whose pixels
  lie decoded in memory as uint8, in the same batches, threads and precision. Making floats of them is part of both, since no
  network can do without. The stage computes one clip in a hundred twice, and at least one batch per run, which would be much
  of the few clips here and is next to nothing of a data set. So it is timed without, and ``precompute_vs_forward`` is what is
  left after one clip in a hundred more: a run of ``n`` batches, fewer than a hundred, has ``1 / n`` more instead.
* reading: places and values of codes and priorities of drawn clips, as a training reads them, and the same through zarr;
  against decoding the same samples, on one thread.
* bytes: per clip and view, against 18 bits per code and 16 per priority. Codes of untrained weights compress otherwise
  than those of trained ones; the result says which they were.

Processor time is that of the process; wall time depends on what else runs. Ratios are medians over the rounds, each within one
round, and of the precisions that the processor has that of the worst one.
"""

import argparse
import dataclasses
import functools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import zarr

from benchmarks import _common
from models.extension import load
from models.tokenizers import Tokenizer
from stages import precompute, shard, tokenizer
from stages.batches import ClipFrames
from stages.device import Precision, autocast, precisions
from stages.networks import load_tokenizer
from stages.storage import checkpoints
from stages.storage.artifact import Artifact, find
from stages.storage.index import Clip, Index
from stages.storage.publish import sha256_file
from stages.storage.targets.layout import CODES, PRIORITY, STORE
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.tokenizing import Network
from stages.views import ViewConfig, cut, draw_view, stored_view

MODEL = {"name": "adaptive", "variant": "tiny", "top_k": 0.49}
PRECISIONS = precisions(torch.device("cpu"))
STAGE, BARE = "stage precompute", "limit: tokenize alone"
OURS, ZARR, DECODE = "place and values", "the same through zarr", "decoding its pixels"
VERIFY_SHARE: float = precompute.Config.model_fields["verify_share"].default
NAMES = (CODES.name, PRIORITY.name)


class Cost(NamedTuple):
    """Seconds per clip and view."""

    wall_s: float
    cpu_s: float


@dataclasses.dataclass(frozen=True)
class Data:
    """What targets are made of."""

    snapshot: Artifact
    tokenizer: Artifact
    workspace: Workspace
    views: ViewConfig


def main() -> None:
    """Measure, print tables, write the result."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        data = _data(asked, Path(scratch))
        made, costs = _in_turn(data, rounds=1 if asked.quick else asked.rounds)
        reading = _reading(data, made, samples=8 if asked.quick else 48)
        _report(asked, data, made, costs, reading)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="videos to make targets of; generated ones otherwise")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights of a trained tokenizer of variant tiny")
    parser.add_argument("--frames", type=int, default=128, help="frames of a view (128)")
    parser.add_argument("--size", type=int, default=224, help="side of a view in pixels (224)")
    parser.add_argument("--rounds", type=int, default=3, help="times that stage and limit take turns (3; 1 with --quick)")
    return parser.parse_args()


# What is worked on


def _data(asked: argparse.Namespace, scratch: Path) -> Data:
    _common.say("making clips ...")
    folder = asked.data or _common.videos([], scratch / "videos", every=10 if asked.quick else 8)[0]
    size_px = asked.size * 8 // 7
    clip = {"num_frames": asked.frames, "slack_frames": asked.frames // 4, "size_px": size_px, "motion_vectors": False}
    source = {"name": "folder", "path": str(folder.resolve())}
    num_videos = sum(1 for path in folder.rglob("*") if path.is_file())
    config = {
        "source": source,
        "clip": clip,
        "max_failed_share": 1,
        "settle_s": 0,
        "sources_per_shard": max(1, num_videos // 2),
    }
    workspace = Workspace(scratch / "root")
    snapshot = shard.run(shard.Config.model_validate(config), {}, workspace).artifact
    views = ViewConfig(num_views=1, num_frames=asked.frames, size_px=asked.size)
    return Data(snapshot, _tokenizer(asked.weights or _untrained(scratch), snapshot, workspace), workspace, views)


def _untrained(scratch: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = load("models.tokenizers", MODEL).build()
    path = scratch / "untrained.safetensors"
    checkpoints.write_tensors(path, module.state_dict())
    return path


def _tokenizer(weights: Path, snapshot: Artifact, workspace: Workspace) -> Artifact:
    """The weights, published as a frozen tokenizer is."""
    optimization = {"num_steps": 1, "batch_clips": 1, "learning_rate": 1e-3, "warmup_share": 0, "weight_decay": 0.0}
    config = tokenizer.Config.model_validate(
        {
            "model": MODEL,
            "weights": {"path": str(weights), "sha256": sha256_file(weights)},
            "size_px": 32,
            "optimization": optimization,
            "adversarial": None,
            "health": {"min_code_entropy_share": 0.0, "min_channel_entropy_bits": 0.0, "min_psnr_over_flat_db": -100.0},
            "num_preview_windows": 2,
        }
    )
    return tokenizer.run(config, {"shard": snapshot}, workspace).artifact


# Making


def _in_turn(data: Data, *, rounds: int) -> tuple[Artifact, dict[tuple[str, str], list[Cost]]]:
    """The targets, and the costs of stage and limit in every precision by round."""
    module = load_tokenizer(data.tokenizer)
    batches = _batches(data, module)
    costs: dict[tuple[str, str], list[Cost]] = {(way, precision): [] for precision in PRECISIONS for way in (STAGE, BARE)}
    count = sum(map(len, batches))
    for number in range(rounds):
        for precision in PRECISIONS:
            _common.say(f"making, round {number + 1} of {rounds}, {precision} ...")
            bare = functools.partial(_bare, data, module, precision)
            bare(batches[:1])  # warms up
            ways: dict[str, Callable[[], Any]] = {
                STAGE: functools.partial(_stage, data, precision),
                BARE: functools.partial(bare, batches),
            }
            for way in sorted(ways, reverse=number % 2 == 0):
                costs[way, precision].append(_cost(ways[way], count))
    (made,) = (find(data.workspace, "precompute", path.name) for path in data.workspace.stage_folder("precompute").iterdir())
    assert made is not None, "the stage ended well"
    return made, costs


def _batches(data: Data, module: Tokenizer) -> list[list[torch.Tensor]]:
    """The pixels of every clip's view, as they go through the network together: within one shard."""
    config, frames, found = _config(data, "fp32"), ClipFrames(data.snapshot), []
    size = Network(module, config.windows, data.views.num_frames, config.precision, torch.device("cpu")).batch_clips
    for clips in Index(data.snapshot).by_shard().values():
        views = [cut(frames, clip, draw_view(clip, 0, data.views), data.views.num_frames) for clip in clips]
        found += [[torch.from_numpy(view) for view in views[first : first + size]] for first in range(0, len(views), size)]
    return found


def _config(data: Data, precision: str) -> precompute.Config:
    return precompute.Config.model_validate({"views": data.views.model_dump(), "precision": precision, "verify_share": 0})


def _stage(data: Data, precision: str) -> Artifact:
    """The stage, with nothing there that it could take over."""
    shutil.rmtree(data.workspace.stage_folder("precompute"), ignore_errors=True)
    inputs = {"shard": data.snapshot, "tokenizer": data.tokenizer}
    return precompute.run(_config(data, precision), inputs, data.workspace).artifact


@torch.inference_mode()
def _bare(data: Data, module: Tokenizer, precision: Precision, batches: Sequence[Sequence[torch.Tensor]]) -> None:
    windows = _config(data, precision).windows
    for batch in batches:
        clips = torch.stack(list(batch)).permute(0, 4, 1, 2, 3)
        with autocast(torch.device("cpu"), precision):
            module.tokenize(clips.float() / 255, windows)


def _cost(work: Callable[[], Any], count: int) -> Cost:
    begun_s, begun_cpu_s = time.perf_counter(), time.process_time()
    work()
    return Cost((time.perf_counter() - begun_s) / count, (time.process_time() - begun_cpu_s) / count)


# Reading


def _reading(data: Data, made: Artifact, *, samples: int) -> dict[str, float]:
    """Processor milliseconds per sample: the median over drawn clips, each of the least of some repetitions."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    _common.say("reading ...")
    clips, reader, frames = Index(data.snapshot), TargetReader(made), ClipFrames(data.snapshot)
    store = zarr.open_group(made.folder / STORE, mode="r")
    arrays = {(ordinal, name): store[f"{ordinal:06d}/{name}"] for ordinal in clips.ordinals() for name in NAMES}
    source = torch.Generator().manual_seed(0)
    drawn = [clips[int(torch.randint(len(clips), (), generator=source))] for _ in range(samples)]
    found: dict[str, list[float]] = {OURS: [], ZARR: [], DECODE: []}
    for clip in drawn:
        ways: dict[str, Callable[[], Any]] = {
            OURS: functools.partial(_read, reader, clip),
            ZARR: functools.partial(_through_zarr, arrays, clip),
            DECODE: functools.partial(_decode, reader, frames, clip, data.views.num_frames),
        }
        for way, work in ways.items():
            repeated = 20 if way == OURS else 3
            found[way].append(min(_cost(work, 1).cpu_s for _ in range(repeated)) * 1000)
    torch.set_num_threads(num_threads)
    return {way: statistics.median(values) for way, values in found.items()}


def _read(reader: TargetReader, clip: Clip) -> None:
    reader.chunks.read(reader.place(clip, 0), NAMES)


def _through_zarr(arrays: Mapping[tuple[int, str], Any], clip: Clip) -> None:
    for name in NAMES:
        arrays[clip.ordinal, name][clip.slot, 0]


def _decode(reader: TargetReader, frames: ClipFrames, clip: Clip, num_frames: int) -> None:
    cut(frames, clip, stored_view(reader.place(clip, 0)), num_frames)


# Bytes


def _sizes(data: Data, made: Artifact) -> list[dict[str, Any]]:
    """Bytes per clip and view on disk, and what they would be without compression."""
    reader, num_clips = TargetReader(made), len(Index(data.snapshot))
    tokens = reader.extent.grid[0] * reader.extent.grid[1] * reader.extent.grid[2]
    sizes = dict.fromkeys(("codes", "priority", "view table, ledger, metadata"), 0)
    for name, record in made.manifest.files.items():
        part = next((one for one in NAMES if f"/{one}/c." in name), "view table, ledger, metadata")
        sizes[part] += record.size_bytes
    plain = {"codes": tokens * 4, "priority": tokens * 2}
    packed = {"codes": tokens * 18 / 8, "priority": tokens * 2}
    return [
        {"what": name, "on disk": round(size / num_clips), "plain": plain.get(name), "as METHOD 1.5": packed.get(name)}
        for name, size in sizes.items()
    ]


# The result


def _report(
    asked: argparse.Namespace,
    data: Data,
    made: Artifact,
    costs: Mapping[tuple[str, str], Sequence[Cost]],
    reading: Mapping[str, float],
) -> None:
    making = [
        {
            "way": way,
            "precision": precision,
            "wall s/clip": statistics.median(cost.wall_s for cost in found),
            "CPU s/clip": statistics.median(cost.cpu_s for cost in found),
        }
        for (way, precision), found in costs.items()
    ]
    read_rows = [{"per sample": way, "CPU ms": value, "of decoding": value / reading[DECODE]} for way, value in reading.items()]
    sizes, by_shard = _sizes(data, made), Index(data.snapshot).by_shard()
    weights = "given" if asked.weights else "untrained"
    for title, rows in (("making", making), ("reading", read_rows), (f"bytes per clip and view, {weights} codes", sizes)):
        _common.say(f"\n{title}\n{_common.table(rows)}")
    result = {
        "machine": _common.machine(),
        "data": {
            "source": "given" if asked.data else "generated",
            "clips_by_shard": [len(clips) for clips in by_shard.values()],
            "view": {"num_frames": asked.frames, "size_px": asked.size},
            "tokenizer": {**MODEL, "weights": weights},
        },
        "rounds": len(costs[STAGE, PRECISIONS[0]]),
        "computed_twice_share": VERIFY_SHARE,
        "making": making,
        "reading": read_rows,
        "bytes_per_clip_and_view": sizes,
        "ratios": _ratios(costs, reading, sizes),
    }
    _common.finish("targets", result, out=asked.out)


def _ratios(
    costs: Mapping[tuple[str, str], Sequence[Cost]],
    reading: Mapping[str, float],
    sizes: Sequence[Mapping[str, Any]],
) -> dict[str, float]:
    throughput = {kind: min(_ratio(costs, precision, kind) for precision in PRECISIONS) for kind in Cost._fields}
    ratios = {
        "precompute_vs_forward": throughput["wall_s"] / (1 + VERIFY_SHARE),
        "precompute_vs_forward_by_cpu": throughput["cpu_s"] / (1 + VERIFY_SHARE),
        "read_vs_decode": reading[OURS] / reading[DECODE],
        "read_vs_zarr": reading[OURS] / reading[ZARR],
        **{f"{row['what']}_bytes_vs_method": row["on disk"] / row["as METHOD 1.5"] for row in sizes if row["as METHOD 1.5"]},
    }
    return {name: _common.rounded(value, 3) for name, value in ratios.items()}


def _ratio(costs: Mapping[tuple[str, str], Sequence[Cost]], precision: str, kind: str) -> float:
    """Throughput of the stage over that of the limit: the median over the rounds."""
    pairs = zip(costs[BARE, precision], costs[STAGE, precision], strict=True)
    return float(statistics.median(getattr(bare, kind) / getattr(stage, kind) for bare, stage in pairs))


if __name__ == "__main__":
    main()
