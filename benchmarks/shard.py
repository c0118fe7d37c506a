"""How fast videos become clips: the stage ``shard`` against ffmpeg alone, which is the limit, and against video2dataset.

``python benchmarks/shard.py`` gives every way the same files and two workers, one way after the other and over again, so that a
busy machine disturbs all of them alike. ffmpeg alone scales, encodes and cuts with the same options and checks nothing: no
limits, no isolation, no second look, no digests, no tables, no tars. Motion vectors, which the stage reads off its own clips by
default, ask for other options of the encoder; with and without them the limit has the same.
"""

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import av

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common
from benchmarks._common import Spent, rounded
from stages.video_command import ClipConfig, Limits, cut_command, ffmpeg_binary
from stages.video_command import Way as Reading
from stages.video_windows import WHOLE

_SOURCES_PER_SHARD = 32
"""Few enough that several hundred sources make enough units for any number of workers to end together."""
_QUICK_EVERY = 20
_NO_ISOLATION = {"PATH": "/nonexistent"}
"""Without ``unshare`` and ``setpriv`` on the path, decoders run without a namespace of their own."""
_SCALE = (
    "[0:v:0]scale=w='if(gte(iw*sar,ih),-2,{size_px})':h='if(gte(iw*sar,ih),{size_px},-2)'"
    ":flags=bicubic+accurate_rnd+bitexact:out_color_matrix=bt601:out_range=tv,setsar=1,format=yuv420p"
)
"""What becomes of every picture, at the least."""


class Made(NamedTuple):
    """What one run of one way made, beside its cost."""

    frames: int
    """Frames encoded, those of dropped tails included."""
    bytes: int
    wall_s: float
    """Of the work itself, without starting an interpreter."""


class Way(NamedTuple):
    """One way from videos to clips."""

    name: str
    argv: Callable[[Path, Path], list[str]]
    """The program that reads one folder and writes into another."""
    made: Callable[[Path, Spent], Made]
    environment: Mapping[str, str] = {}


class Run(NamedTuple):
    """One run of one way."""

    spent: Spent
    made: Made


def main() -> None:
    """Measure, print and write the result."""
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, nargs="+", metavar="DIR", help="folders of videos; generated clips otherwise")
    parser.add_argument("--every", type=int, metavar="N", help=f"take every N-th video (1; quick: {_QUICK_EVERY})")
    parser.add_argument("--workers", type=int, default=2, help="sources worked on at a time (2)")
    parser.add_argument("--repetitions", type=int, help="runs of the stage and of ffmpeg alone (3; quick: 1)")
    parser.add_argument("--video2dataset", metavar="PYTHON", help="an interpreter in which video2dataset is installed")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "SOURCES", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--no-motion", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--sources-per-shard", type=int, default=_SOURCES_PER_SHARD, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _CHILDREN[options.child[0]](Path(options.child[1]), Path(options.child[2]), options)
        return
    every = options.every or (_QUICK_EVERY if options.quick else 1)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        sources, named = _common.videos(options.data, Path(place, "sources"), every=every)
        seconds = sum(map(_duration_s, sources.iterdir()))
        runs = _measure(_ways(options), sources, Path(place), repetitions=options.repetitions or (1 if options.quick else 3))
        result = {
            "data": {"sources": named, "files": len(list(sources.iterdir())), "video_s": rounded(seconds)},
            "workers": options.workers,
            "clip": ClipConfig().model_dump(mode="json"),
            "rows": [_row(name, done, video_s=seconds) for name, done in runs.items()],
            "video2dataset": _row("video2dataset", runs["video2dataset"], video_s=seconds) if "video2dataset" in runs else None,
            "ratios": _ratios(runs),
            "method": "processor seconds are the least, wall seconds the median over the repetitions, which alternate",
            "machine": _common.machine(),
        }
    _common.say(_common.table(result["rows"]))
    if "video2dataset" not in runs:
        _common.say("video2dataset: not installed; name an interpreter that has it with --video2dataset")
    _common.finish("shard", result, out=options.out)


def _ways(options: argparse.Namespace) -> list[Way]:
    """The ways that are repeated come first: the stage and its limit."""

    def child(way: str, *more: str) -> Callable[[Path, Path], list[str]]:
        itself = [sys.executable, __file__, "--workers", str(options.workers), *more]
        return lambda sources, out: [*itself, "--child", way, str(sources), str(out)]

    found = [
        Way("stage", child("stage"), _said),
        Way("ffmpeg alone", child("ffmpeg"), _written),
        Way("stage, no motion vectors", child("stage", "--no-motion"), _said),
        Way("ffmpeg alone, no motion vectors", child("ffmpeg", "--no-motion"), _written),
        Way("stage, no isolation", child("stage"), _said, _NO_ISOLATION),
        Way("stage, 256 per shard", child("stage", "--sources-per-shard", "256"), _said),
    ]
    if options.video2dataset:
        path = Path(__file__).with_name("_video2dataset.py")
        argv = [options.video2dataset, str(path), str(options.workers)]
        found.append(Way("video2dataset", lambda sources, out: [*argv, str(sources), str(out)], _in_tars))
    return found


def _measure(ways: Sequence[Way], sources: Path, place: Path, *, repetitions: int) -> dict[str, list[Run]]:
    """Every way's runs: the first two ways again and again, the others once."""
    runs: dict[str, list[Run]] = {way.name: [] for way in ways}
    for way in [*itertools.chain(*[ways[:2]] * repetitions), *ways[2:]]:
        out = place / "out"
        out.mkdir()
        spent = _common.spend(way.argv(sources, out), environment={"OMP_NUM_THREADS": "1", **way.environment})
        runs[way.name].append(Run(spent, way.made(out, spent)))
        shutil.rmtree(out)
        _common.say(f"{way.name}: {runs[way.name][-1].made.frames:,} frames, {spent.wall_s:.1f} s, {spent.cpu_s:.1f} CPU-s")
    return runs


def _row(name: str, runs: Sequence[Run], *, video_s: float) -> dict[str, Any]:
    made = runs[0].made
    peaks = [run.spent.peak_rss_bytes for run in runs]
    return {
        "way": name,
        "runs": len(runs),
        "frames": made.frames,
        "frames_per_s": rounded(_frames_per_s(runs)),
        "frames_per_cpu_s": rounded(_frames_per_cpu_s(runs)),
        "cpu_s_per_video_minute": rounded(_cpu_s(runs) / video_s * 60),
        "mb_out": rounded(made.bytes / 1e6),
        "peak_mb_worker": rounded(max(_peak(peak, ffmpeg=False) for peak in peaks) / 1e6),
        "peak_mb_ffmpeg": rounded(max(_peak(peak, ffmpeg=True) for peak in peaks) / 1e6),
    }


def _ratios(runs: Mapping[str, Sequence[Run]]) -> dict[str, float]:
    stage, bare = runs["stage"], runs["ffmpeg alone"]
    plain, plain_bare = runs["stage, no motion vectors"], runs["ffmpeg alone, no motion vectors"]
    found = {
        "throughput_vs_bare_ffmpeg": _frames_per_s(stage) / _frames_per_s(bare),
        "throughput_vs_bare_ffmpeg_by_cpu": _frames_per_cpu_s(stage) / _frames_per_cpu_s(bare),
        "no_motion_vectors_throughput_vs_bare_ffmpeg": _frames_per_s(plain) / _frames_per_s(plain_bare),
        "no_motion_vectors_throughput_vs_bare_ffmpeg_by_cpu": _frames_per_cpu_s(plain) / _frames_per_cpu_s(plain_bare),
        "bytes_vs_bare_ffmpeg": stage[0].made.bytes / bare[0].made.bytes,
    }
    if other := runs.get("video2dataset"):
        found["throughput_vs_video2dataset"] = _frames_per_s(stage) / _frames_per_s(other)
        found["throughput_vs_video2dataset_by_cpu"] = _frames_per_cpu_s(stage) / _frames_per_cpu_s(other)
    return {name: rounded(value, 3) for name, value in found.items()}


def _frames_per_s(runs: Sequence[Run]) -> float:
    return statistics.median(run.made.frames / run.made.wall_s for run in runs)


def _cpu_s(runs: Sequence[Run]) -> float:
    return min(run.spent.cpu_s for run in runs)


def _frames_per_cpu_s(runs: Sequence[Run]) -> float:
    return runs[0].made.frames / _cpu_s(runs)


def _peak(peaks: Mapping[str, int], *, ffmpeg: bool) -> int:
    return max((peak for name, peak in peaks.items() if name.startswith("ffmpeg") == ffmpeg), default=0)


# What the ways made


def _said(out: Path, spent: Spent) -> Made:
    """As the stage tells in its last line."""
    return Made(**json.loads(spent.output.splitlines()[-1]))


def _written(out: Path, spent: Spent) -> Made:
    paths = list(out.rglob("*.mp4"))
    wall_s = float(spent.output.splitlines()[-1])
    return Made(sum(map(_num_frames, paths)), sum(path.stat().st_size for path in paths), wall_s)


def _in_tars(out: Path, spent: Spent) -> Made:
    """As it lies in tars."""
    for path in out.glob("*.tar"):
        shutil.unpack_archive(path, out / path.stem, filter="data")
    return _written(out, spent)


def _num_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return int(container.streams.video[0].frames)


def _duration_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.duration or 0) / 1e6


# What runs in a process of its own


def _stage(sources: Path, out: Path, options: argparse.Namespace) -> None:
    """The stage with the recipe's clips, into a fresh root, tracked by nobody."""
    from stages import shard
    from stages.storage.index import Index
    from stages.storage.workspace import Workspace

    config = shard.Config.model_validate(
        {
            "source": {"name": "folder", "path": sources},
            "clip": {"motion_vectors": not options.no_motion},
            "sources_per_shard": options.sources_per_shard,
            "num_workers": options.workers,
            "settle_s": 0,
        }
    )
    begun = time.perf_counter()
    outcome = shard.run(config, {}, Workspace(out))
    wall_s = time.perf_counter() - begun
    frames = sum(clip.num_frames for clip in Index(outcome.artifact)) + outcome.counts["dropped_frames"]
    size_bytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    _common.say(json.dumps(Made(frames, size_bytes, wall_s)._asdict()))


def _ffmpeg(sources: Path, out: Path, options: argparse.Namespace) -> None:
    """One ffmpeg per file, so many at a time."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(lambda path: _transcode(path, out, motion=not options.no_motion), sorted(sources.iterdir())))
    _common.say(str(time.perf_counter() - begun))


def _transcode(path: Path, out: Path, *, motion: bool) -> None:
    """The work that cannot be spared, with the stage's own options from where its output begins."""
    clip = ClipConfig(motion_vectors=motion)
    command = cut_command(path, windows=[WHOLE], way=Reading(), clip=clip, limits=Limits(), binary=ffmpeg_binary(None))
    label, *output, name = command[command.index("-map") + 1 :]
    argv = [command[0], "-nostdin", "-loglevel", "error", "-threads", "1", "-i", str(path)]
    argv += ["-filter_complex", _SCALE.format(size_px=clip.size_px) + label, "-map", label, *output]
    subprocess.run([*argv, str(out / f"{path.stem}-{name}")], check=True)


_CHILDREN = {"stage": _stage, "ffmpeg": _ffmpeg}

if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
