"""Stage 1: sources to clips, in shards that are fixed before anything is decoded.

Every source that a reader lists is identified by its bytes and planned once; every unit of a plan becomes one shard; every
source ends as clips or in quarantine. Nothing that is written depends on which source was ready first.
"""

import collections
import contextlib
import dataclasses
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from models import config as base
from models.extension import extension
from stages import video
from stages.errors import ArtifactDamaged, MediaError, Reason, SourceMissing, TooManyFailures
from stages.listing import Listed, identify, in_order, stamp
from stages.planning import Entry, Unit, plan_new, units
from stages.readers import ReaderConfig
from stages.storage.artifact import FINGERPRINT_CHARS, Artifact, Outcome, byte_config
from stages.storage.clips import Dataset, Member
from stages.storage.publish import canonical_json, make_folder, sha256_bytes
from stages.storage.workspace import Workspace
from stages.video_command import ClipConfig, Limits

INPUTS: tuple[str, ...] = ()
VERSION = 1

_NAME_CHARS = 8
_CLIP_ID_CHARS = 32


class Config(base.Config):
    """Where sources come from and what becomes of them."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers", "max_failed_share"})

    dataset: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """What to call the clips; null takes the reader's own name."""
    source: extension("stages.readers", ReaderConfig)  # type: ignore[valid-type]
    """Where the sources are."""
    clip: ClipConfig = ClipConfig()
    """What a clip is."""
    limits: Limits = Limits()
    """What one source may cost."""
    sources_per_shard: int = Field(default=256, gt=0)
    """Sources whose clips share a tar: the unit of work."""
    max_failed_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the sources since the last snapshot, duplicates aside, that may be in quarantine; above it the run fails."""
    num_workers: int | None = Field(default=None, gt=0)
    """Sources read at a time; null takes the processor cores that this process may use."""


@dataclasses.dataclass(frozen=True)
class Made:
    """What became of one source: a cut, or a fault."""

    entry: Entry
    cut: video.Cut | None = None
    fault: MediaError | None = None


def dataset_name(config: Config) -> str:
    """The folder of the clips: what they are called and a short hash of everything but the sources that decides bytes."""
    identity = canonical_json({"version": VERSION, "config": byte_config(config)})
    return f"{config.dataset or config.source.dataset_name()}-{sha256_bytes(identity)[:_NAME_CHARS]}"


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """The newest snapshot of the dataset, once every source that it lacks has been read.

    Raises:
        SourceMissing: there is no source, or none that makes a clip.
        TooManyFailures: more sources are in quarantine than the recipe allows; all of them are recorded.
    """
    dataset = Dataset(workspace, dataset_name(config))
    with workspace.lock("shard", dataset.name):
        dataset.sweep()
        listing = _list(config, workspace)
        plan_new(dataset, listing, sources_per_shard=config.sources_per_shard)
        planned = units(dataset)
        unfinished = [unit for unit in planned if not dataset.is_committed(unit.ordinal)]
        _make(unfinished, listing, config=config, dataset=dataset)
        _check_failures(dataset, max_failed_share=config.max_failed_share)
        counts = _counts(dataset, planned)
        if not counts["clips"]:
            raise SourceMissing(f"{dataset.folder}: none of {counts['inputs']} sources makes a clip; see its quarantine")
        artifact = dataset.snapshot(config=config, fingerprint=_fingerprint(config, dataset), counts=counts)
    done = len(unfinished)
    return Outcome(artifact=artifact, units_done=done, units_reused=len(planned) - done, counts=counts)


def _list(config: Config, workspace: Workspace) -> list[Listed]:
    """Every source there is, by key, with its identity."""
    sources = sorted(config.source.sources(workspace), key=lambda source: str(source.key))
    if not sources:
        raise SourceMissing(f"no videos in {config.source}; give the place that holds them")
    workspace.monitor.begin("identify sources", total=len(sources))
    listing = []
    for listed in in_order(identify, sources, num_workers=_num_workers(config)):
        listing.append(listed)
        workspace.monitor.advance()
    return listing


def _make(unfinished: Sequence[Unit], listing: Sequence[Listed], *, config: Config, dataset: Dataset) -> None:
    """Read the sources of all unfinished units, in parallel, and write one shard after the other."""
    if not unfinished:
        return
    entries = [entry for unit in unfinished for entry in unit.entries]
    found = {(listed.source_id, listed.key): listed for listed in reversed(listing)}
    by_bytes = {listed.source_id: listed for listed in reversed(listing)}
    monitor = dataset.workspace.monitor
    monitor.begin("cut clips", total=len(entries))
    with _scratch(dataset) as scratch:

        def read(entry: Entry) -> Made:
            listed = found.get((entry.source_id, entry.key)) or by_bytes.get(entry.source_id)
            return _read(entry, listed, config=config, scratch=scratch)

        with contextlib.closing(in_order(read, entries, num_workers=_num_workers(config))) as results:
            for unit in unfinished:
                made = []
                for result in itertools.islice(results, len(unit.entries)):
                    made.append(result)
                    monitor.advance()
                _write(dataset, unit, made, clip_version=_clip_version(config))


def _read(entry: Entry, listed: Listed | None, *, config: Config, scratch: Path) -> Made:
    """The clips of one source, held against the bytes that were planned."""
    if entry.reason is not None:
        return Made(entry, fault=MediaError(Reason(entry.reason), entry.detail))
    if listed is None:
        return Made(entry, fault=MediaError(Reason.MISSING, "planned, and not to be found any more"))
    made: Made
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            cut = video.cut(listed.path, clip=config.clip, limits=config.limits, scratch=Path(folder))
            made = Made(entry, cut=cut)
        except MediaError as error:
            made = Made(entry, fault=error)
    if stamp(listed.path) != listed.stamp:
        return Made(entry, fault=MediaError(Reason.CHANGED, "changed or vanished while it was read"))
    return made


def _write(dataset: Dataset, unit: Unit, made: Sequence[Made], *, clip_version: str) -> None:
    """Publish one shard: the clips and the fate of every source of the unit."""
    members = [member for result in made if result.cut for member in _members(result.entry, result.cut, clip_version)]
    sources = [
        {
            "source_id": result.entry.source_id,
            "key": result.entry.key,
            "size_bytes": result.entry.size_bytes,
            "status": "committed" if result.cut else "quarantined",
            "num_clips": len(result.cut.segments) if result.cut else 0,
            "num_frames": result.cut.num_frames if result.cut else 0,
        }
        for result in made
    ]
    quarantine = [
        {
            "source_id": result.entry.source_id,
            "key": result.entry.key,
            "reason": result.fault.reason.value,
            "detail": result.fault.detail,
        }
        for result in made
        if result.fault
    ]
    dataset.write_shard(unit.ordinal, members, sources=sources, quarantine=quarantine)


def _members(entry: Entry, cut: video.Cut, clip_version: str) -> Iterator[Member]:
    for segment in cut.segments:
        spelled = f"{entry.source_id}|{segment.start_frame}|{segment.num_frames}|{clip_version}"
        row: dict[str, Any] = {
            "source_id": entry.source_id,
            "key": entry.key,
            "start_frame": segment.start_frame,
            "num_frames": segment.num_frames,
            "fps": cut.fps,
            "width_px": cut.width_px,
            "height_px": cut.height_px,
            "labels": dict(entry.labels),
        }
        yield Member(clip_id=sha256_bytes(spelled.encode())[:_CLIP_ID_CHARS], video=segment.data, row=row)


def _check_failures(dataset: Dataset, *, max_failed_share: float) -> None:
    """Hold the share of quarantined sources that no snapshot has accepted yet against what is allowed."""
    snapshots = dataset.snapshots()
    accepted = snapshots[-1].manifest.files if snapshots else {}
    is_new = {
        row["ordinal"]: f"index/{dataset.part_path('index', row['ordinal']).name}" not in accepted
        for row in dataset.rows("sources")
    }
    rows = [row for row in dataset.rows("quarantine") if is_new[row["ordinal"]]]
    reasons = collections.Counter(row["reason"] for row in rows)
    num_duplicates = reasons.pop(Reason.DUPLICATE, 0)
    num_read = sum(is_new[row["ordinal"]] for row in dataset.rows("sources")) - num_duplicates
    if reasons.total() > max_failed_share * num_read:
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise TooManyFailures(
            f"{dataset.folder}: {reasons.total()} of {num_read} new sources are in quarantine ({listed}), more than "
            f"max_failed_share={max_failed_share} allows; mend them, or accept them with a larger share"
        )


def _counts(dataset: Dataset, planned: Sequence[Unit]) -> dict[str, int]:
    """What became of all sources ever planned, each counted once by its latest fate.

    Raises:
        ArtifactDamaged: the tables do not add up.
    """
    keys = {(entry.source_id, entry.key) for unit in planned for entry in unit.entries}
    fates = {(row["source_id"], row["key"]): row for row in dataset.rows("sources")}
    committed = [row for row in fates.values() if row["status"] == "committed"]
    index = dataset.rows("index")
    if not fates.keys() <= keys or len(index) != sum(row["num_clips"] for row in committed):
        raise ArtifactDamaged(f"{dataset.folder}: plans, sources and index do not agree; run `lvmae verify`")
    return {
        "inputs": len(keys),
        "committed": len(committed),
        "quarantined": len(fates) - len(committed),
        "duplicates": sum(row["reason"] == Reason.DUPLICATE for row in dataset.rows("quarantine")),
        "pending": len(keys) - len(fates),
        "clips": len(index),
        "dropped_frames": sum(row["num_frames"] for row in committed) - sum(row["num_frames"] for row in index),
    }


def _fingerprint(config: Config, dataset: Dataset) -> str:
    """Short sha256 of the config and of every source that was committed or quarantined."""
    sources = sorted({row["source_id"] for row in dataset.rows("sources")})
    identity = {"stage": "shard", "version": VERSION, "config": byte_config(config), "sources": sources}
    return sha256_bytes(canonical_json(identity))[:FINGERPRINT_CHARS]


def _clip_version(config: Config) -> str:
    """What two clips of the same frames must share to be the same clip."""
    return sha256_bytes(canonical_json({"version": VERSION, "clip": byte_config(config.clip)}))[:FINGERPRINT_CHARS]


def _num_workers(config: Config) -> int:
    return config.num_workers or len(os.sched_getaffinity(0))


@contextlib.contextmanager
def _scratch(dataset: Dataset) -> Iterator[Path]:
    """A folder for half-made clips; what killed runs left of theirs goes first."""
    place = dataset.workspace.root / ".scratch" / dataset.name
    shutil.rmtree(place, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=make_folder(place)))
    try:
        yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)
