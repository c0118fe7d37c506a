"""What a reader lists, with identities: the sha256 of every source's bytes, read only where the last listing does not know it.

A source that is still being written is left for a later run: it must have been untouched for a moment, be complete by the rule
of uploads, and stay as it is while it is read.
"""

import dataclasses
import hashlib
import itertools
import time
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from stages import places
from stages.errors import MediaError, Reason
from stages.progress import Monitor
from stages.readers import Source
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.seen import Seen, Sighting
from stages.uploads import Rule, age_s

_AHEAD = 4
_BATCH = 65_536
_CHUNK = 256

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Listed:
    """A source as it was found."""

    source: Source
    source_id: str
    """sha256 of its bytes; where there are none to read, of its key and the reason; empty while it is being written."""
    size_bytes: int
    stamp: str
    fault: MediaError | None = None
    """Why its bytes cannot be read."""
    known: bool = False
    """Whether the last listing found the same under this key."""
    relabelled: bool = False
    """Whether it found the same bytes with another annotation."""

    @property
    def settled(self) -> bool:
        """Whether it is not being written."""
        return bool(self.source_id)

    def sighting(self) -> Sighting:
        """What is kept of it for the next listing."""
        source = self.source
        return Sighting(source.key, self.stamp, annotation(source), self.source_id, self.size_bytes, *source.place)


def identify_all(
    sources: Iterable[Source],
    seen: Seen,
    *,
    again: Container[str],
    settle_s: float,
    num_workers: int,
    monitor: Monitor,
    rule: Rule | None = None,
) -> Iterator[list[Listed]]:
    """All sources with their identities, in batches, in their order.

    Args:
        sources: what a reader lists.
        seen: what the last listing found.
        again: keys of which the last listing is not believed.
        settle_s: how long a local file must have been untouched before it is read.
        num_workers: sources read at a time.
        monitor: told of every source that is read.
        rule: what makes an upload complete; ``None`` believes every source that has settled.
    """
    rest = iter(sources)
    while batch := list(itertools.islice(rest, _BATCH)):
        stamps = _stamps(batch, num_workers=num_workers)
        sightings = seen.at([source.key for source in batch])
        listing = [
            _known(source, stamp, sighting) if source.key not in again else None
            for source, stamp, sighting in zip(batch, stamps, sightings, strict=True)
        ]
        fresh = [place for place, listed in enumerate(listing) if listed is None]
        monitor.begin("identify sources", total=len(fresh))

        def read(place: int, batch: Sequence[Source] = batch, stamps: Sequence[str] = stamps) -> Listed:
            return identify(batch[place], stamps[place], settle_s=settle_s, rule=rule)

        for place, listed in zip(fresh, in_order(read, fresh, num_workers=num_workers), strict=True):
            listing[place] = listed
            monitor.advance()
        yield [listed for listed in listing if listed]


def _stamps(batch: Sequence[Source], *, num_workers: int) -> list[str]:
    chunks = (batch[first : first + _CHUNK] for first in range(0, len(batch), _CHUNK))
    found = in_order(lambda chunk: [_stamp(source) for source in chunk], chunks, num_workers=num_workers)
    return [stamp for chunk in found for stamp in chunk]


def _stamp(source: Source) -> str:
    try:
        return source.stamp or places.stamp(source.place)
    except MediaError:
        return ""


def _known(source: Source, stamp: str, sighting: Sighting | None) -> Listed | None:
    if sighting is None or not stamp or sighting.stamp != stamp or sighting.place != source.place:
        return None
    same = sighting.annotation == annotation(source)
    return Listed(source, sighting.source_id, sighting.size_bytes, stamp, known=same, relabelled=not same)


def annotation(source: Source) -> str:
    """A short digest of all that is annotated about a source."""
    spelled = repr((sorted(source.labels.items()), source.spans))
    return hashlib.blake2b(spelled.encode(errors="backslashreplace"), digest_size=8).hexdigest()


def identify(source: Source, stamp: str, *, settle_s: float, rule: Rule | None = None) -> Listed:
    """A source with its identity; reads all of it, if it is complete."""
    try:
        _settle(source, settle_s)
        if rule is not None and rule.why_not(source.place):
            return Listed(source, "", 0, stamp)
        places.check(source.place)
        digest, size_bytes = places.digest(source.place)
    except MediaError as error:
        return _faulty(source, stamp, error)
    except OSError as error:
        if places.is_remote(source.place.url):
            raise  # the store is away, and with it everything else
        return _faulty(source, stamp, MediaError(Reason.UNREADABLE, f"cannot be read: {error.strerror}"))
    if places.stamp(source.place) != stamp:
        return Listed(source, "", 0, stamp)
    return Listed(source, digest, size_bytes, stamp)


def _faulty(source: Source, stamp: str, fault: MediaError) -> Listed:
    digest = sha256_bytes(canonical_json({"key": source.key, "reason": fault.reason}))
    return Listed(source, digest, 0, stamp, fault=fault)


def _settle(source: Source, settle_s: float) -> None:
    """Wait until a local file has been untouched for a while; whether it was touched meanwhile shows in its stamp."""
    if settle_s <= 0 or places.is_remote(source.place.url):
        return
    time.sleep(max(0.0, settle_s - age_s(source.place)))


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int) -> Generator[Result]:
    """``function`` of every item, in the order of the items, computed by threads that run a bounded distance ahead."""
    waiting: list[Future[Result]] = []
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * num_workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
