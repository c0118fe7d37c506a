"""What a run of the first stage would find to do, counted without writing anything.

A key that no plan has is new whatever its bytes are, so only files that were touched since the last listing are read.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from stages import places, shard
from stages.errors import MediaError
from stages.listing import identify_all, in_order
from stages.planning import Decisions
from stages.progress import Silent
from stages.quarantine import COPIES
from stages.readers import Source
from stages.storage.clips import SEEN, Dataset
from stages.storage.seen import Seen
from stages.storage.workspace import Workspace
from stages.uploads import Rule, age_s

_MOST_READ_BYTES = 4 << 30
"""How much of touched files a forecast reads; above it, it does not say how many are new. Our choice: about half a minute."""
_CHUNK = 256


class Prospect(NamedTuple):
    """What lies before the first stage."""

    unfinished: int
    """Units that a plan has and that are not made yet."""
    committed: int
    """Units that exist."""
    unnamed: int
    """Those of them that no snapshot names yet."""
    new_sources: int
    """Sources that no plan has, those that people or earlier runs want read again included."""
    new_units: int
    """Units that they would be planned in."""
    source_bytes: int | None
    """Size of the new sources; ``None`` where a reader makes them first, or a store does not say."""
    waiting: int = 0
    """Sources that are not complete yet, and left for a later run."""
    oldest_s: float | None = None
    """Seconds since the oldest new source was touched; ``None`` without one, or where a store does not say."""
    is_rendered: bool = False
    """Whether the reader makes the new ones itself, first."""
    is_known: bool = True
    """Whether the new ones could be counted: too much was touched to be read for a forecast."""

    @property
    def units(self) -> int | None:
        """Units that the stage would make."""
        return self.unfinished + self.new_units if self.is_known else None

    @property
    def changes(self) -> bool:
        """Whether a new snapshot would come out, as far as is known."""
        return bool(self.unfinished + self.new_units + self.unnamed)


def prospect(config: shard.Config, workspace: Workspace) -> Prospect:
    """What a run of the first stage would do now.

    Raises:
        SourceMissing: the place to read from is not there.
        ArtifactDamaged: the dataset's records cannot be read.
        OSError: a store does not answer.
    """
    dataset = Dataset(workspace, shard.dataset_name(config))
    planned, committed, unnamed = dataset.num_units(), len(dataset.committed()), len(dataset.new_units())
    to_make = config.source.num_to_make(workspace)
    if to_make:
        new_units = -(-to_make // config.sources_per_shard)
        return Prospect(planned - committed, committed, unnamed, to_make, new_units, None, is_rendered=True)
    look = _Look(config, dataset)
    found = look.new()
    if found is None:
        return Prospect(planned - committed, committed, unnamed, 0, 0, source_bytes=None, is_known=False)
    return Prospect(
        planned - committed,
        committed,
        unnamed,
        new_sources=len(found),
        new_units=_num_groups(found, config.sources_per_shard),
        source_bytes=_size_bytes(found),
        waiting=look.waiting,
        oldest_s=_oldest_s(found),
    )


class _Look:
    """One look at the sources of a dataset."""

    def __init__(self, config: shard.Config, dataset: Dataset) -> None:
        self.config, self.dataset = config, dataset
        self.decisions = Decisions.of(dataset)
        self.rule = Rule(config.upload, config.abandoned_s)
        self.waiting = 0

    def new(self) -> list[Source] | None:
        """The sources that a run would plan; ``None`` if too much would have to be read to tell."""
        owners = _Owners(self.dataset, self.decisions)
        new: list[Source] = []
        touched: list[Source] = []
        for source in self._fresh():
            (touched if owners.knows(source.key) else new).append(source)
        if sum(filter(None, map(_file_bytes, touched))) > _MOST_READ_BYTES:
            return None
        nothing = Seen.load(self.dataset.folder / "none")
        again = self.decisions.keys()
        identified = identify_all(touched, nothing, again=again, settle_s=0, num_workers=2, monitor=Silent())
        for listed in itertools.chain.from_iterable(identified):
            if listed.settled and owners.lets_in(listed.source_id, listed.source.key, self.decisions):
                new.append(listed.source)
        return new

    def _fresh(self) -> Iterator[Source]:
        """The complete sources of which the last listing does not know the bytes, as they lie there now."""
        seen, again = Seen.load(self.dataset.folder / SEEN), self.decisions.keys()
        rest = iter(self.config.source.sources(self.dataset.workspace))
        while chunk := list(itertools.islice(rest, _CHUNK)):
            stamps = list(in_order(_stamp, chunk, num_workers=2))
            for source, stamp, sighting in zip(chunk, stamps, seen.at([source.key for source in chunk]), strict=True):
                is_known = sighting and stamp and sighting.stamp == stamp and sighting.place == source.place
                if is_known and source.key not in again:
                    continue
                if self._is_complete(source):
                    yield source
                else:
                    self.waiting += 1

    def _is_complete(self, source: Source) -> bool:
        try:
            return not self.rule.why_not(source.place)
        except MediaError:
            return True  # the run says what is wrong with it
        except OSError:
            if places.is_remote(source.place.url):
                raise
            return True


class _Owners:
    """Which bytes the plans have under which key, as ``stages/planning.py`` decides it."""

    def __init__(self, dataset: Dataset, decisions: Decisions) -> None:
        self._owner: dict[str, str] = {}
        self._copies: dict[str, set[str]] = {}
        self._keys: set[str] = set()
        for row in itertools.chain.from_iterable(dataset.plan_columns(("source_id", "key", "reason"))):
            source_id, key = row["source_id"], row["key"]
            self._keys.add(key)
            if row["reason"] in COPIES:
                self._copies.setdefault(key, set()).add(source_id)
            elif row["reason"] is None and (source_id, key) in decisions.lost:
                self._owner.pop(source_id, None)
            else:
                self._owner[source_id] = key

    def knows(self, key: str) -> bool:
        """Whether a plan has this key, with whatever bytes."""
        return key in self._keys

    def lets_in(self, source_id: str, key: str, decisions: Decisions) -> bool:
        """Whether these bytes under this key would get an entry of their own."""
        owner = self._owner.get(source_id)
        if owner == key:
            return (source_id, key) in decisions.retried
        return owner is None or source_id not in self._copies.get(key, ())


def _num_groups(sources: Sequence[Source], sources_per_shard: int) -> int:
    """In how many units they would be planned, where one with many spans counts as many."""
    groups, weight = 0, 0
    for source in sources:
        weight += max(1, len(source.spans or ()))
        if weight >= sources_per_shard:
            groups, weight = groups + 1, 0
    return groups + bool(weight)


def _oldest_s(sources: Sequence[Source]) -> float | None:
    ages = [age_s(source.place) for source in sources if not places.is_remote(source.place.url)]
    return max((age for age in ages if math.isfinite(age)), default=None)


def _size_bytes(sources: Sequence[Source]) -> int | None:
    sizes = [_file_bytes(source) for source in sources]
    known = [size for size in sizes if size is not None]
    return sum(known) if len(known) == len(sizes) else None


def _file_bytes(source: Source) -> int | None:
    """Size of a source where it costs nothing to ask: a local file, or a member of a tar."""
    if source.place.size_bytes >= 0:
        return source.place.size_bytes
    return None if places.is_remote(source.place.url) else places.local_size(source.place)


def _stamp(source: Source) -> str:
    try:
        return source.stamp or places.stamp(source.place)
    except MediaError:
        return ""
