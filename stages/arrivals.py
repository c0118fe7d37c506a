"""What has landed in a source and is not ingested yet, and whether it is complete. It reads only, and decides nothing.

It depends on what lies there now and on what the last listing saw, never on events or on clocks: late and old files are new
when nobody has seen them. A source that was planned by a run that ended early counts until a run has made its unit.
"""

import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from stages import places, shard
from stages.errors import MediaError
from stages.listing import in_order
from stages.readers import Source
from stages.storage.clips import SEEN, Dataset
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.seen import Seen
from stages.storage.workspace import Workspace
from stages.uploads import Rule, age_s

_CHUNK = 4096
_WORKERS = 4
_WRITTEN = "is still being written"


class Arrival(NamedTuple):
    """A complete source that is not ingested."""

    key: str
    stamp: str
    """The version of its bytes."""


class Waiting(NamedTuple):
    """A source that is not complete."""

    key: str
    why: str
    """In words that follow "it"."""


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """What one look at a source found."""

    new: tuple[Arrival, ...]
    """Complete, and in no listing yet."""
    begun: tuple[Arrival, ...]
    """Planned by a run that did not make them: it is at work, or ended early."""
    waiting: tuple[Waiting, ...]
    """Not complete."""
    num_sources: int
    """All that the reader lists."""

    @property
    def landed(self) -> tuple[Arrival, ...]:
        """What a run would be started for: what is new, or without it what was begun."""
        return self.new or self.begun

    @property
    def digest(self) -> str:
        """The identity of what landed: sha256 of the keys and stamps, in their order; empty without any."""
        return sha256_bytes(canonical_json([list(one) for one in sorted(self.landed)])) if self.landed else ""


def arrivals(config: shard.Config, workspace: Workspace) -> Arrivals:
    """What lies in the source of a recipe's first stage and is not in its dataset.

    Files that were touched just now get the time to settle, all of them at once: ``settle_s`` seconds at most. Where a reader
    makes its own videos nothing ever lands.

    Raises:
        SourceMissing: the place to read from is not there, or holds no video.
        ConfigError: its annotations cannot be understood.
        OSError: a store does not answer.
    """
    if config.source.num_to_make(workspace):
        return Arrivals(new=(), begun=(), waiting=(), num_sources=0)
    dataset = Dataset(workspace, shard.dataset_name(config))
    fresh = _Fresh(Seen.load(dataset.folder / SEEN), _begun_keys(dataset))
    touched = [one for one in fresh.among(config.source.sources(workspace)) if one.stamp]
    _settle(touched, config.settle_s)
    rule = Rule(config.upload, config.abandoned_s)
    reasons = in_order(lambda one: _why_not(one, rule), touched, num_workers=_WORKERS)
    judged = list(zip(touched, reasons, strict=True))
    whole = [one for one, why in judged if not why]
    return Arrivals(
        new=tuple(one.arrival for one in whole if not one.is_begun),
        begun=tuple(one.arrival for one in whole if one.is_begun),
        waiting=tuple(Waiting(one.source.key, why) for one, why in judged if why),
        num_sources=fresh.num_sources,
    )


class _Touched(NamedTuple):
    """A source that the last listing does not know as it lies there now, or whose unit is not made."""

    source: Source
    stamp: str
    is_begun: bool

    @property
    def arrival(self) -> Arrival:
        """What is told of it."""
        return Arrival(self.source.key, self.stamp)


class _Fresh:
    """Tells what is to be looked at, and counts the rest.

    Args:
        seen: what the last listing found.
        begun: keys of planned sources whose unit is not made.
    """

    def __init__(self, seen: Seen, begun: frozenset[str]) -> None:
        self._seen = seen
        self._begun = begun
        self.num_sources = 0

    def among(self, sources: Iterable[Source]) -> Iterator[_Touched]:
        """Those of ``sources`` that are not ingested."""
        rest = iter(sources)
        while batch := list(itertools.islice(rest, _CHUNK)):
            self.num_sources += len(batch)
            stamps = in_order(_stamp, batch, num_workers=_WORKERS)
            sightings = self._seen.at([source.key for source in batch])
            for source, stamp, sighting in zip(batch, stamps, sightings, strict=True):
                is_known = sighting is not None and (sighting.stamp, sighting.place) == (stamp, source.place)
                if not is_known or source.key in self._begun:
                    yield _Touched(source, stamp, is_begun=is_known)


def _begun_keys(dataset: Dataset) -> frozenset[str]:
    unfinished = sorted(set(range(dataset.num_units())).difference(dataset.committed()))
    return frozenset(row["key"] for ordinal in unfinished for row in dataset.planned(ordinal))


def _settle(touched: Iterable[_Touched], settle_s: float) -> None:
    """Wait until all local files are untouched for long enough; whether they were touched meanwhile shows in their stamps."""
    local = [one.source.place for one in touched if not places.is_remote(one.source.place.url)]
    time.sleep(max(0.0, settle_s - min(map(age_s, local), default=settle_s)))


def _why_not(one: _Touched, rule: Rule) -> str:
    """Why it has to wait; a source that cannot be read is complete: the run says what is wrong with it."""
    if _stamp(one.source) != one.stamp:
        return _WRITTEN
    try:
        return rule.why_not(one.source.place)
    except MediaError:
        return ""


def _stamp(source: Source) -> str:
    try:
        return source.stamp or places.stamp(source.place)
    except MediaError:
        return ""
