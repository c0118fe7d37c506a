"""Stage 1: sources to clips, in shards that are fixed before anything is decoded.

Every source that a reader lists is identified by its bytes and planned once; every unit of a plan becomes one shard; every
source ends as clips or in quarantine. Nothing that is written depends on which source was ready first.
"""

import contextlib
import dataclasses
import itertools
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from models import config as base
from models.extension import extension
from stages import accounts, video
from stages.errors import MediaError, Reason, SourceMissing
from stages.listing import Listed, identify, in_order, stamp
from stages.planning import Entry, Unit, plan_new, units
from stages.readers import ReaderConfig
from stages.scratch import scratch_folder
from stages.storage.artifact import FINGERPRINT_CHARS, Artifact, Outcome, byte_config
from stages.storage.clips import Dataset, Member
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.workspace import Workspace
from stages.video_command import MAX_SEGMENTS, ClipConfig, Limits

INPUTS: tuple[str, ...] = ()
VERSION = 1

_NAME_CHARS = 8
_CLIP_ID_CHARS = 32


class Config(base.Config):
    """Where sources come from and what becomes of them."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers", "max_failed_share"})

    dataset: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """What to call the clips; null takes the reader's own name."""
    source: extension("stages.readers", ReaderConfig)
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

    @model_validator(mode="after")
    def _sources_have_few_enough_clips(self) -> "Config":
        if self.limits.max_frames > MAX_SEGMENTS * self.clip.num_frames:
            raise ValueError(
                f"limits.max_frames={self.limits.max_frames} in clips of clip.num_frames={self.clip.num_frames} is more than "
                f"{MAX_SEGMENTS} clips from one source; lower the one or raise the other"
            )
        return self


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
        accounts.check_failures(dataset, max_failed_share=config.max_failed_share)
        counts = accounts.counts(dataset, planned)
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
    monitor = dataset.workspace.monitor
    monitor.begin("cut clips", total=len(entries))
    named = {(listed.source_id, listed.key): listed for listed in listing}
    alike = {listed.source_id: listed for listed in listing}  # moved since it was planned: the same bytes will do
    keys = {listed.key for listed in listing}
    with scratch_folder(dataset.workspace, dataset.name) as scratch:

        def read(entry: Entry) -> Made:
            if entry.reason is not None:
                return Made(entry, fault=MediaError(Reason(entry.reason), entry.detail))
            listed = named.get((entry.source_id, entry.key)) or alike.get(entry.source_id)
            if listed is None:
                reason = Reason.CHANGED if entry.key in keys else Reason.MISSING
                return Made(entry, fault=MediaError(reason, "the bytes that were planned are not to be found any more"))
            return _read(entry, listed, config=config, scratch=scratch)

        with contextlib.closing(in_order(read, entries, num_workers=_num_workers(config))) as results:
            for unit in unfinished:
                made = []
                for result in itertools.islice(results, len(unit.entries)):
                    made.append(result)
                    monitor.advance()
                _write(dataset, unit, made, clip_version=_clip_version(config))


def _read(entry: Entry, listed: Listed, *, config: Config, scratch: Path) -> Made:
    """The clips of one source, provided that it stayed as it was listed until it was read."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        try:
            made = Made(entry, cut=video.cut(listed.path, clip=config.clip, limits=config.limits, scratch=Path(folder)))
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
