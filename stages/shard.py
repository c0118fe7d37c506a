"""Stage 1: sources to clips, in shards that are fixed before anything is decoded.

Every source that a reader lists is identified by its bytes and planned once; every unit of a plan becomes one shard; every
source ends as clips or in quarantine. Nothing that is written depends on which source or which unit was ready first.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from models import config as base
from models.extension import extension
from stages import accounts
from stages.errors import Reason, SourceMissing
from stages.fan_out import num_cores
from stages.listing import identify_all
from stages.planning import Decisions, Found, plan_new, planned_entries
from stages.preflight import check_room
from stages.readers import ReaderConfig
from stages.scratch import clear_scratch
from stages.storage.artifact import FINGERPRINT_CHARS, Artifact, Outcome, byte_config
from stages.storage.clips import SEEN, Dataset
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.seen import Seen, Sighting
from stages.storage.workspace import Workspace
from stages.units import Unit, Whereabouts, make_unit
from stages.uploads import Rule
from stages.video_command import MAX_SEGMENTS, ClipConfig, Limits

INPUTS: tuple[str, ...] = ()
VERSION = 2

_NAME_CHARS = 8


class Config(base.Config):
    """Where sources come from and what becomes of them."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        {"num_workers", "max_failed_share", "min_failed", "settle_s", "upload", "abandoned_s", "max_source_bytes"}
    )

    dataset: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]+$")
    """What to call the clips; null takes the reader's own name."""
    source: extension("stages.readers", ReaderConfig)
    """Where the sources are."""
    clip: ClipConfig = ClipConfig()
    """What a clip is."""
    limits: Limits = Limits()
    """What one source may cost."""
    sources_per_shard: int = Field(default=256, gt=0)
    """Sources whose clips share a tar: the unit of work. A source with many annotated spans counts as many."""
    max_failed_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the new sources, copies of others aside, that may be in quarantine; above it the run stops."""
    min_failed: int = Field(default=20, ge=0)
    """New sources in quarantine that never stop a run, however few sources there are."""
    settle_s: float = Field(default=2.0, ge=0)
    """Seconds for which a local file must have been untouched before it is read: a younger one may still be written."""
    upload: Literal["stable", "marker"] = "stable"
    """What makes a local file complete. ``stable``: it has settled, and its container is closed: an mp4, mov, Matroska, WebM or
    AVI holds all that its headers promise; of other formats settling is all that is known. ``marker``: a file
    ``clip.mp4.ok`` or ``clip.ok`` lies beside ``clip.mp4`` and is not older. What is incomplete is pending, not quarantined."""
    abandoned_s: float = Field(default=3600.0, ge=0)
    """Seconds for which a file with an open container must have been untouched to be taken for cut for good: it is read then,
    and quarantined. Our choice. Nothing but a marker ends the wait for a marker."""
    max_source_bytes: int = Field(default=64 << 30, gt=0)
    """Size of a source that is not a local file, for it is copied before it is read."""
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


def dataset_name(config: Config) -> str:
    """The folder of the clips: what they are called and a short hash of everything but the sources that decides bytes."""
    identity = canonical_json({"version": VERSION, "config": byte_config(config)})
    return f"{config.dataset or config.source.dataset_name()}-{sha256_bytes(identity)[:_NAME_CHARS]}"


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """The newest snapshot of the dataset, once every source that it lacks has been read.

    Raises:
        SourceMissing: there is no source, or none that makes a clip.
        TooManyFailures: more sources are in quarantine than the recipe allows; all of them are recorded.
        ArtifactBusy: another live run makes the same dataset.
        NoRoom: the disk has none for the new units; they are planned, and the next run makes them.
    """
    dataset = Dataset(workspace, dataset_name(config))
    with workspace.lock("shard", dataset.name):
        dataset.sweep()
        clear_scratch(workspace, dataset.name)
        found = _look(config, dataset)
        num_units = dataset.num_units()
        unfinished = [ordinal for ordinal in range(num_units) if not dataset.is_whole(ordinal)]
        check_room(workspace.root, _needed_bytes(dataset, len(unfinished)), "shard")
        _make(unfinished, found.seen, config=config, dataset=dataset)
        clear_scratch(workspace, dataset.name)
        artifact = _accept(config, dataset)
    counts = _with_deferred(artifact.manifest.counts, found)
    return Outcome(artifact, units_done=len(unfinished), units_reused=num_units - len(unfinished), counts=counts)


def _look(config: Config, dataset: Dataset) -> Found:
    """What the reader lists, with a plan for all of it that is new."""
    earlier = Seen.load(dataset.folder / SEEN)
    decisions = Decisions.of(dataset)
    listing = identify_all(
        config.source.sources(dataset.workspace),
        earlier,
        again=decisions.keys(),
        settle_s=config.settle_s,
        num_workers=_num_workers(config),
        monitor=dataset.workspace.monitor,
        rule=Rule(config.upload, config.abandoned_s),
    )
    found = plan_new(dataset, listing, decisions=decisions, earlier=earlier, sources_per_shard=config.sources_per_shard)
    if not found.num_sources:
        raise SourceMissing(f"no videos in {config.source}; give the place that holds them")
    return found


def _needed_bytes(dataset: Dataset, num_units: int) -> int | None:
    """What new units take, as those of the newest snapshot in the mean; not known before there is one."""
    newest = dataset.newest_snapshot()
    if newest is None or not num_units:
        return None
    parts = sum(name.startswith("index/") for name in newest.manifest.files)
    return num_units * sum(record.size_bytes for record in newest.manifest.files.values()) // max(1, parts)


def _make(unfinished: Sequence[int], seen: Seen, *, config: Config, dataset: Dataset) -> None:
    """Make the units that are not there yet, several at a time, and stop early when too much fails."""
    if not unfinished:
        return
    workspace = dataset.workspace
    dataset.check_plans(unfinished)
    num_new = dataset.num_planned(unfinished)
    workspace.monitor.begin("cut clips", total=num_new)
    num_workers = min(_num_workers(config), len(unfinished))
    num_threads = math.ceil(_num_workers(config) / num_workers)
    made = workspace.fan_out(
        make_unit,
        _units(unfinished, seen, config=config, dataset=dataset, num_threads=num_threads),
        total=len(unfinished),
        num_workers=num_workers,
        ticked=workspace.monitor.advance,
    )
    num_faults = 0
    with contextlib.closing(made):
        for unit in made:
            num_faults += unit.faults
            if num_faults > accounts.allowed(num_new, max_failed_share=config.max_failed_share, min_failed=config.min_failed):
                _check_failures(config, dataset, num_unfinished=num_new)
    invisible = set(unfinished).difference(dataset.committed())
    if invisible:
        raise OSError(f"{dataset.folder}/units: {len(invisible)} units that were made do not show yet; run again in a moment")


def _units(unfinished: Sequence[int], seen: Seen, *, config: Config, dataset: Dataset, num_threads: int) -> Iterator[Unit]:
    for ordinal in unfinished:
        entries = planned_entries(dataset, ordinal)
        holders = seen.holders([entry.source_id for entry in entries])
        lost = [entry.key for entry, found in zip(entries, holders, strict=True) if not found]
        listed = seen.keys_among(lost) if lost else set()
        yield Unit(
            root=dataset.workspace.root,
            dataset=dataset.name,
            ordinal=ordinal,
            whereabouts=tuple(
                _whereabouts(entry.key, found, listed=entry.key in listed)
                for entry, found in zip(entries, holders, strict=True)
            ),
            clip=config.clip,
            clip_version=_clip_version(config),
            limits=config.limits,
            max_source_bytes=config.max_source_bytes,
            num_threads=num_threads,
        )


def _whereabouts(key: str, holders: Sequence[Sighting], *, listed: bool) -> Whereabouts:
    """Where planned bytes lie now: under their key or, if they were moved since, under any other."""
    if not holders:
        return Whereabouts(None, "", Reason.CHANGED if listed else Reason.MISSING)
    first = min(holders, key=lambda sighting: (sighting.key != key, sighting.key))
    return Whereabouts(first.place, first.stamp)


def _accept(config: Config, dataset: Dataset) -> Artifact:
    """The snapshot of everything that is there: the newest one if nothing was added since it was made."""
    newest = dataset.newest_snapshot()
    if newest and not dataset.new_units():
        return newest
    _check_failures(config, dataset, num_unfinished=0)
    counts = accounts.counts(dataset)
    if not counts["clips"]:
        raise SourceMissing(
            f"{dataset.folder}: none of {counts['inputs']} sources makes a clip; `lvmae quarantine list` says why"
        )
    return dataset.snapshot(config=config, fingerprint=_fingerprint(config, dataset), counts=counts)


def _check_failures(config: Config, dataset: Dataset, *, num_unfinished: int) -> None:
    faults = accounts.standing_faults(dataset)
    read = dataset.num_planned(dataset.new_units())
    accounts.check_failures(
        dataset,
        faults,
        num_new=max(read, num_unfinished),
        max_failed_share=config.max_failed_share,
        min_failed=config.min_failed,
    )


def _with_deferred(counts: Mapping[str, int], found: Found) -> dict[str, int]:
    """The counts of a snapshot, with what this run saw of the sources."""
    deferred = {name: counts[name] + found.deferred for name in ("inputs", "pending")}
    return {**counts, **deferred, "gone": found.gone, "relabelled": found.relabelled}


def _fingerprint(config: Config, dataset: Dataset) -> str:
    """Short sha256 of the config and of every source that was committed or quarantined."""
    sources = sorted(set(dataset.fates(())["source_id"].to_pylist()))
    identity = {"stage": "shard", "version": VERSION, "config": byte_config(config), "sources": sources}
    return sha256_bytes(canonical_json(identity))[:FINGERPRINT_CHARS]


def _clip_version(config: Config) -> str:
    return sha256_bytes(canonical_json({"version": VERSION, "clip": byte_config(config.clip)}))[:FINGERPRINT_CHARS]


def _num_workers(config: Config) -> int:
    return config.num_workers or num_cores()
