"""Making one unit: its sources one after the other into clips, and all of them into one shard. Runs in any process or machine.

Its memory is bounded by one clip and the rows of one shard; the clips of the sources that are ready wait as files.
"""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stages import places, video
from stages.errors import MediaError, Reason
from stages.fan_out import num_slots, slot, tick
from stages.listing import in_order
from stages.places import Place
from stages.planning import Entry, planned_entries
from stages.quarantine import COPIES
from stages.readers import Box, Span
from stages.scratch import scratch_folder
from stages.storage.clips import Dataset, Member
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.workspace import Workspace
from stages.video_command import ClipConfig, Limits
from stages.video_log import DecoderKilled

_CLIP_ID_CHARS = 32
_TRIES = 3
"""Readings of a source whose decoder is killed each time, before it goes to quarantine."""


class Whereabouts(NamedTuple):
    """Where a planned source lies now, or why it does not."""

    place: Place | None
    stamp: str
    reason: Reason | None = None


class Unit(NamedTuple):
    """All that making one unit takes: plain values, so that they can travel."""

    root: Path
    dataset: str
    ordinal: int
    whereabouts: tuple[Whereabouts, ...]
    """Of its sources, in their order."""
    clip: ClipConfig
    clip_version: str
    """What two clips of the same frames must share to be the same clip."""
    limits: Limits
    max_source_bytes: int
    num_threads: int
    """Sources read at a time, where no slots are shared."""


class Made(NamedTuple):
    """What came of a unit."""

    ordinal: int
    faults: int
    """Quarantined sources that are no copies of others."""


@dataclasses.dataclass(frozen=True)
class _Result:
    """What became of one source: a cut whose clips lie in a folder, or a fault."""

    entry: Entry
    folder: Path | None = None
    cut: video.Cut | None = None
    fault: MediaError | None = None


def make_unit(unit: Unit) -> Made:
    """Make a unit and publish it, unless it exists already; one that lost a file since is made again."""
    dataset = Dataset(Workspace(unit.root), unit.dataset)
    if not dataset.is_whole(unit.ordinal):
        entries = planned_entries(dataset, unit.ordinal)
        with scratch_folder(dataset.workspace, unit.dataset) as scratch:
            read = functools.partial(_read, unit=unit, scratch=scratch)
            results = in_order(read, zip(entries, unit.whereabouts, strict=True), num_workers=num_slots(unit.num_threads))
            with contextlib.closing(results):
                dataset.write_unit(unit.ordinal, _fates(results, unit=unit))
    reasons = [row["reason"] for row in dataset.rows("quarantine", [unit.ordinal])]
    return Made(unit.ordinal, faults=sum(reason not in COPIES for reason in reasons))


def _fates(
    results: Iterator[_Result], *, unit: Unit
) -> Iterator[tuple[Iterator[Member], Mapping[str, Any], Mapping[str, Any] | None]]:
    """The clips and the rows of every source, in order; its files go when the next one is asked for."""
    for result in results:
        yield _members(result, unit.clip_version), _source_row(result), _quarantine_row(result)
        if result.folder:
            shutil.rmtree(result.folder, ignore_errors=True)
        tick()


def _read(task: tuple[Entry, Whereabouts], *, unit: Unit, scratch: Path) -> _Result:
    """The clips of one source, provided that it stayed as it was listed until it was read."""
    with slot():
        return _read_now(task, unit=unit, scratch=scratch)


def _read_now(task: tuple[Entry, Whereabouts], *, unit: Unit, scratch: Path) -> _Result:
    entry, (place, stamp, reason) = task
    if entry.reason is not None:
        return _Result(entry, fault=MediaError(Reason(entry.reason), entry.detail))
    if place is None:
        fault = MediaError(reason or Reason.MISSING, "the bytes that were planned are not to be found any more")
        return _Result(entry, fault=fault)
    result = _cut_undisturbed(entry, place, unit=unit, scratch=scratch)
    if places.stamp(place) != stamp:
        result = _Result(entry, result.folder, fault=MediaError(Reason.CHANGED, "changed or vanished while it was read"))
    return result


def _cut_undisturbed(entry: Entry, place: Place, *, unit: Unit, scratch: Path) -> _Result:
    """The clips of a source; if its decoder was killed, which may not be its fault, it is read again, so many times."""
    for tries_left in reversed(range(_TRIES)):
        folder = Path(tempfile.mkdtemp(dir=scratch))
        try:
            return _Result(entry, folder, cut=_cut(entry, place, unit=unit, folder=folder))
        except MediaError as error:
            if not isinstance(error, DecoderKilled) or not tries_left:
                return _Result(entry, folder, fault=error)
            shutil.rmtree(folder, ignore_errors=True)
    raise AssertionError("the last try returns")


def _cut(entry: Entry, place: Place, *, unit: Unit, folder: Path) -> video.Cut:
    clips, copies = folder / "clips", folder / "copy"
    clips.mkdir()
    copies.mkdir()
    spans = None if entry.spans is None else [(span.start_s, span.end_s) for span in entry.spans]
    with places.local_copy(place, copies, max_bytes=unit.max_source_bytes, name=entry.key) as path:
        return video.cut(path, spans=spans, clip=unit.clip, limits=unit.limits, scratch=clips)


def _members(result: _Result, clip_version: str) -> Iterator[Member]:
    if result.cut is None:
        return
    for segment in result.cut.segments:
        row = _index_row(result.entry, result.cut, segment)
        spelled = [row["source_id"], _span_of(result.entry, segment), segment.start_frame, segment.num_frames, clip_version]
        clip_id = sha256_bytes(canonical_json(spelled))[:_CLIP_ID_CHARS]
        yield Member(clip_id=clip_id, video=segment.video.read_bytes(), motion=segment.motion, row=row)
        segment.video.unlink()


def _index_row(entry: Entry, cut: video.Cut, segment: video.Segment) -> dict[str, Any]:
    span = entry.spans[segment.span] if entry.spans is not None else None
    end_s = segment.start_s + segment.num_frames / cut.fps
    return {
        "source_id": entry.source_id,
        "key": entry.key,
        "native_id": span.native_id if span else "",
        "start_s": segment.start_s,
        "start_frame": segment.start_frame,
        "num_frames": segment.num_frames,
        "fps": cut.fps,
        "width_px": cut.width_px,
        "height_px": cut.height_px,
        "labels": {**entry.labels, **(span.labels if span else {})},
        "boxes": _boxes_within(span.boxes if span else (), start_s=segment.start_s, end_s=end_s),
    }


def _boxes_within(boxes: Sequence[Box], *, start_s: float, end_s: float) -> list[Box]:
    """The boxes of a stretch of time, timed from its beginning."""
    return [box._replace(time_s=box.time_s - start_s) for box in boxes if start_s <= box.time_s < end_s]


def _span_of(entry: Entry, segment: video.Segment) -> list[Any] | None:
    """What tells one span of a source from another."""
    if entry.spans is None:
        return None
    span: Span = entry.spans[segment.span]
    return [span.native_id, span.start_s, span.end_s]


def _source_row(result: _Result) -> dict[str, Any]:
    entry, cut = result.entry, result.cut
    row = {"source_id": entry.source_id, "key": entry.key, "size_bytes": entry.size_bytes}
    if cut is None:
        return {**row, "status": "quarantined", "num_clips": 0, "num_frames": 0}
    probe = cut.probe._asdict()
    probe["num_frames_decoded"] = probe.pop("num_frames")
    row |= {"status": "committed", "num_clips": len(cut.segments), "num_frames": cut.num_frames, "short_spans": cut.short_spans}
    return {**row, **probe}


def _quarantine_row(result: _Result) -> dict[str, Any] | None:
    if result.fault is None:
        return None
    entry, fault = result.entry, result.fault
    return {"source_id": entry.source_id, "key": entry.key, "reason": fault.reason.value, "detail": fault.detail}
