"""What it takes to look at a million sources and to plan the work: time, memory, and what is left on disk.

``python benchmarks/listing.py`` makes that many tiny distinct files and runs the first half of the stage ``shard`` on them,
each time in a process of its own: at first, again with nothing new, and with one file added. Then every unit is taken as done,
and the whole stage is run. Nothing is decoded.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import _common
from benchmarks._common import rounded
from stages import shard
from stages.storage.clips import SEEN, Dataset, Member
from stages.storage.seen import Seen
from stages.storage.workspace import Workspace

NUM_SOURCES, NUM_SOURCES_QUICK = 1_000_000, 50_000
FOLDER_FILES = 1000
_SAMPLE_UNITS = 16
"""Units, evenly spread, by which handing out the work is judged."""

Item = TypeVar("Item")


class Case(NamedTuple):
    """What is measured in one process."""

    name: str
    phase: str
    reader: str = "folder"


CASES = (
    Case("first look", "look"),
    Case("units handed out", "hand out"),
    Case("look again, nothing new", "look"),
    Case("look again, one file added", "look"),
    Case("whole stage, nothing to do", "run"),
    Case("first look, Parquet list", "look", "list"),
)


def main() -> None:
    """Measure, print and write the result."""
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--sources", type=int, help=f"how many ({NUM_SOURCES:,}; quick: {NUM_SOURCES_QUICK:,})")
    parser.add_argument("--workers", type=int, default=2, help="sources read at a time (2)")
    parser.add_argument("--place", type=Path, metavar="DIR", help="where the temporary files lie: 4 KB of disk per source")
    parser.add_argument("--child", nargs=2, metavar=("PHASE", "CONFIG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(options.child[0], json.loads(options.child[1]))
        return
    amount = options.sources or (NUM_SOURCES_QUICK if options.quick else NUM_SOURCES)
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=options.place) as place:
        rows = _measure(amount, Path(place), num_workers=options.workers)
    by_name = {row["case"]: row for row in rows}
    first = by_name["first look"]["seconds"]
    result = {
        "sources": amount,
        "workers": options.workers,
        "rows": rows,
        "ratios": {
            "rerun_vs_first": rounded(by_name["look again, nothing new"]["seconds"] / first, 3),
            "one_added_vs_first": rounded(by_name["look again, one file added"]["seconds"] / first, 3),
            "stage_rerun_vs_first": rounded(by_name["whole stage, nothing to do"]["seconds"] / first, 3),
        },
        "machine": _common.machine(),
    }
    _common.say(_common.table(rows))
    _common.finish("listing", result, out=options.out)


def _measure(amount: int, place: Path, *, num_workers: int) -> list[dict[str, Any]]:
    videos, listed = place / "videos", place / "videos.parquet"
    begun = time.perf_counter()
    _generate(videos, amount)
    _list(listed, videos)
    _common.say(f"{amount:,} files made in {time.perf_counter() - begun:.1f} s")
    rows = []
    for case in CASES:
        if case.name.endswith("one file added"):
            _write(videos / "added.mp4", b"one more")
        if case.phase == "run":
            _run("finish", case, place, num_workers=num_workers)
        before = _files(place / "root-folder")
        found = _run(case.phase, case, place, num_workers=num_workers)
        rows.append({"case": case.name, **found, "written": len(_files(place / "root-folder") - before)})
        _common.say(f"{case.name}: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MB")
    return rows


def _run(phase: str, case: Case, place: Path, *, num_workers: int) -> dict[str, Any]:
    source = place / ("videos" if case.reader == "folder" else "videos.parquet")
    told = {"root": str(place / f"root-{case.reader}"), "reader": case.reader, "path": str(source), "num_workers": num_workers}
    spent = _common.spend([sys.executable, __file__, "--child", phase, json.dumps(told)])
    found: dict[str, Any] = json.loads(spent.output.splitlines()[-1])
    return {**found, "cpu_s": rounded(spent.cpu_s)}


def _files(root: Path) -> set[tuple[str, int, int]]:
    """Everything below a root, by name, size and time."""
    found = [(str(path), path.stat()) for path in root.rglob("*") if path.is_file()]
    return {(name, status.st_size, status.st_mtime_ns) for name, status in found}


def _generate(folder: Path, amount: int) -> None:
    """Tiny files that differ, a thousand per folder."""
    for number in range(amount):
        if number % FOLDER_FILES == 0:
            below = folder / f"{number // FOLDER_FILES // 100:04d}" / f"{number // FOLDER_FILES:06d}"
            below.mkdir(parents=True)
        _write(f"{below}/clip-{number:09d}.mp4", b"%d" % number)


def _write(path: str | Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(descriptor, data)
    os.close(descriptor)


def _list(path: Path, videos: Path) -> None:
    """The same files as a list with a label."""
    names = sorted(str(found.relative_to(videos.parent)) for found in videos.rglob("*.mp4"))
    classes = [f"class{number % 400}" for number in range(len(names))]
    pq.write_table(pa.table({"path": names, "class": classes}), path, row_group_size=65_536)


# What runs in a process of its own


def _child(phase: str, told: Mapping[str, Any]) -> None:
    config = shard.Config.model_validate(
        {
            "source": {"name": told["reader"], "path": told["path"]},
            "num_workers": told["num_workers"],
            "settle_s": 0,
            "abandoned_s": 0,  # what is generated is no container
        }
    )
    dataset = Dataset(Workspace(Path(told["root"])), shard.dataset_name(config))
    imported = _common.peak_bytes()
    found = _PHASES[phase](config, dataset)
    found |= {"peak_mb": rounded(_common.peak_bytes() / 1e6), "imports_mb": rounded(imported / 1e6)}
    _common.say(json.dumps(found))


def _look(config: shard.Config, dataset: Dataset) -> dict[str, Any]:
    """List, identify and plan; the times are of the generators that do it, each without those it draws from."""
    spent = dict.fromkeys(("listing", "identifying"), 0.0)
    identify_all = shard.identify_all

    def timed_all(sources: Iterable[Any], *more: Any, **named: Any) -> Iterator[Any]:
        return _timed(identify_all(_timed(sources, spent, "listing"), *more, **named), spent, "identifying")

    shard.identify_all = timed_all
    begun = time.perf_counter()
    found = shard._look(config, dataset)
    seconds = time.perf_counter() - begun
    listing_s, identifying_s = spent["listing"], spent["identifying"] - spent["listing"]
    return {
        "seconds": rounded(seconds),
        "listing_s": rounded(listing_s),
        "identifying_s": rounded(identifying_s),
        "planning_s": rounded(seconds - listing_s - identifying_s),
        "us_per_source": rounded(seconds / found.num_sources * 1e6),
        "units": dataset.num_units(),
        "plan_mb": rounded(sum(path.stat().st_size for path in (dataset.folder / "plans").iterdir()) / 1e6),
        "cache_mb": rounded((dataset.folder / SEEN).stat().st_size / 1e6),
    }


def _timed(items: Iterable[Item], spent: dict[str, float], name: str) -> Iterator[Item]:
    rest = iter(items)
    while True:
        begun = time.perf_counter()
        item = next(rest, None)
        spent[name] += time.perf_counter() - begun
        if item is None:
            return
        yield item


def _hand_out(config: shard.Config, dataset: Dataset) -> dict[str, Any]:
    """Say where the sources of every unit lie: some units, and from them all."""
    units = dataset.num_units()
    begun = time.perf_counter()
    seen = Seen.load(dataset.folder / SEEN)
    _describe([0], seen, config, dataset)
    ready = time.perf_counter()
    sample = list(range(0, units, max(1, units // _SAMPLE_UNITS)))
    _describe(sample, seen, config, dataset)
    per_unit_s = (time.perf_counter() - ready) / len(sample)
    return {
        "seconds": rounded(ready - begun + units * per_unit_s),
        "units": units,
        "ms_per_unit": rounded(per_unit_s * 1e3),
    }


def _describe(ordinals: Sequence[int], seen: Seen, config: shard.Config, dataset: Dataset) -> None:
    for _ in shard._units(ordinals, seen, config=config, dataset=dataset, num_threads=1):
        pass


def _finish(config: shard.Config, dataset: Dataset) -> dict[str, Any]:
    """Commit every unit with one clip per source, of no pixels, and make the snapshot."""
    begun = time.perf_counter()
    for ordinal in range(dataset.num_units()):
        dataset.write_unit(ordinal, [_fate(row) for row in dataset.planned(ordinal)])
    written = time.perf_counter()
    shard._accept(config, dataset)
    return {"seconds": rounded(time.perf_counter() - begun), "snapshot_s": rounded(time.perf_counter() - written)}


def _fate(row: Mapping[str, Any]) -> tuple[Sequence[Member], Mapping[str, Any], None]:
    shared = {"source_id": row["source_id"], "key": row["key"], "num_frames": 1}
    clip = {**shared, "native_id": "", "start_s": 0.0, "start_frame": 0, "fps": 25.0, "width_px": 2, "height_px": 2}
    member = Member(row["source_id"][:32], b"", None, {**clip, "labels": {}, "boxes": ()})
    return [member], {**shared, "size_bytes": row["size_bytes"], "status": "committed", "num_clips": 1}, None


def _stage(config: shard.Config, dataset: Dataset) -> dict[str, Any]:
    """All of the stage."""
    begun = time.perf_counter()
    outcome = shard.run(config, {}, dataset.workspace)
    return {"seconds": rounded(time.perf_counter() - begun), "units": outcome.units_done + outcome.units_reused}


_PHASES: Mapping[str, Callable[[shard.Config, Dataset], dict[str, Any]]] = {
    "look": _look,
    "hand out": _hand_out,
    "finish": _finish,
    "run": _stage,
}

if __name__ == "__main__":
    main()
