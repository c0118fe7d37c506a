"""Which sources go into which unit: decided once, before anything is decoded, and never again.

A plan holds everything that decides a shard's bytes except the sources' own bytes, so that a run that was killed is finished
with the same result whatever happened to the sources meanwhile. It says nothing of where they lie.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stages.errors import Reason
from stages.listing import Listed
from stages.quarantine import COPIES, State, cases
from stages.readers import Box, Labels, Span
from stages.storage.clips import SEEN, Dataset
from stages.storage.seen import Seen, SeenWriter

LOST = frozenset({Reason.MISSING, Reason.CHANGED})
"""Why a source may be absent for a time: it is read when it comes back."""


class Entry(NamedTuple):
    """One source in a plan."""

    source_id: str
    key: str
    size_bytes: int
    labels: Labels
    spans: tuple[Span, ...] | None
    reason: str | None
    """Why it goes to quarantine unread; null for a source that is to be read."""
    detail: str


class Decisions(NamedTuple):
    """What earlier runs and people left to do again."""

    lost: frozenset[tuple[str, str]]
    """(source id, key) of sources that had vanished or changed when their turn came: they own nothing."""
    retried: frozenset[tuple[str, str]]
    """(source id, key) of sources that a person wants to be tried again."""

    @classmethod
    def of(cls, dataset: Dataset) -> "Decisions":
        """Those of a dataset, as far as no later unit has settled them."""
        standing = cases(dataset)
        return cls(
            lost=frozenset((case.source_id, case.key) for case in standing if case.reason in LOST),
            retried=frozenset((case.source_id, case.key) for case in standing if case.state is State.RETRY),
        )

    def keys(self) -> frozenset[str]:
        """The keys that a listing has to look at again."""
        return frozenset(key for _, key in self.lost | self.retried)


class Found(NamedTuple):
    """What came of looking at the sources."""

    seen: Seen
    num_sources: int
    deferred: int
    """Sources that are still being written."""
    gone: int
    """Sources of the last listing that are not there any more."""
    relabelled: int
    """Sources whose annotation is not the one that they were planned with, and which keep that one."""


def plan_new(
    dataset: Dataset, listing: Iterable[Sequence[Listed]], *, decisions: Decisions, earlier: Seen, sources_per_shard: int
) -> Found:
    """Add a plan for the sources that no plan has yet, and for those that are to be read again.

    Where nothing changed since the last listing, nothing is written.
    """
    planner = _Planner(dataset, decisions)
    dataset.add_plan(_groups(planner.entries(listing), sources_per_shard))
    seen = planner.seen.keep(dataset.folder / SEEN)
    return Found(
        seen, planner.num_sources, planner.num_deferred, gone=earlier.num_missing_from(seen), relabelled=planner.num_relabelled
    )


class _Planner:
    """Decides source by source; asks earlier plans only when there is something new.

    A source is known by its bytes together with its key. The first key that brings some bytes owns them, and every other one
    is a copy: renamed if the owner is gone from the listing, a duplicate otherwise.
    """

    def __init__(self, dataset: Dataset, decisions: Decisions) -> None:
        self._dataset = dataset
        self._decisions = decisions
        self._owners: dict[bytes, str] | None = None
        self._planned: dict[str, set[bytes]] = {}
        self._copies: list[Listed] = []
        self.seen = SeenWriter(dataset.folder)
        self.num_sources = self.num_deferred = self.num_relabelled = 0

    def entries(self, listing: Iterable[Sequence[Listed]]) -> Iterator[Entry]:
        """The entries of all sources that are not planned yet; copies of others come at the end."""
        for batch in listing:
            settled = [listed for listed in batch if listed.settled]
            self.num_sources += len(batch)
            self.num_deferred += len(batch) - len(settled)
            self.seen.add([listed.sighting() for listed in settled])
            for listed in settled:
                if not listed.known:
                    yield from self._entry(listed)
        self.seen.close()
        yield from self._entries_of_copies()

    def _entry(self, listed: Listed) -> Iterator[Entry]:
        owners = self._known_owners()
        digest, key = bytes.fromhex(listed.source_id), listed.source.key
        owner = owners.get(digest)
        retried = owner == key and (listed.source_id, key) in self._decisions.retried
        if owner is None or retried:
            owners[digest] = key
            yield _entry(listed, listed.fault.reason if listed.fault else None, listed.fault.detail if listed.fault else "")
        elif owner == key:
            self.num_relabelled += listed.relabelled
        elif digest not in self._planned.get(key, ()):
            self._copies.append(listed)

    def _entries_of_copies(self) -> Iterator[Entry]:
        if not self._copies:
            return
        owners = self._known_owners()
        named = [owners[bytes.fromhex(listed.source_id)] for listed in self._copies]
        there = self.seen.written().keys_among(named)
        for listed, owner in zip(self._copies, named, strict=True):
            if owner in there:
                yield _entry(listed, Reason.DUPLICATE, f"the same bytes as {owner}")
            else:
                yield _entry(
                    listed, Reason.RENAMED, f"the same bytes as {owner}, which is gone; its clips stay under that name"
                )

    def _known_owners(self) -> dict[bytes, str]:
        """The key that owns each source planned so far."""
        if self._owners is None:
            self._owners = {}
            for rows in self._dataset.plan_columns(("source_id", "key", "reason")):
                for row in rows:
                    self._note(row)
        return self._owners

    def _note(self, row: Mapping[str, Any]) -> None:
        assert self._owners is not None
        digest, key = bytes.fromhex(row["source_id"]), row["key"]
        if row["reason"] in COPIES:
            self._planned.setdefault(key, set()).add(digest)
        elif row["reason"] is None and (row["source_id"], key) in self._decisions.lost:
            self._owners.pop(digest, None)
        else:
            self._owners[digest] = key


def planned_entries(dataset: Dataset, ordinal: int) -> list[Entry]:
    """The sources of one unit, in their order."""
    return [
        Entry(
            source_id=row["source_id"],
            key=row["key"],
            size_bytes=row["size_bytes"],
            labels=_labels(row["labels"]),
            spans=None if row["spans"] is None else tuple(_span(span) for span in row["spans"]),
            reason=row["reason"],
            detail=row["detail"],
        )
        for row in dataset.planned(ordinal)
    ]


def _entry(listed: Listed, reason: Reason | None, detail: str) -> Entry:
    source = listed.source
    return Entry(
        listed.source_id, source.key, listed.size_bytes, source.labels, source.spans, reason.value if reason else None, detail
    )


def _groups(entries: Iterable[Entry], sources_per_shard: int) -> Iterator[list[dict[str, Any]]]:
    """Entries in groups of ``sources_per_shard``, where one with many spans counts as many."""
    group: list[dict[str, Any]] = []
    weight = 0
    for entry in entries:
        group.append(entry._asdict())
        weight += max(1, len(entry.spans or ()))
        if weight >= sources_per_shard:
            yield group
            group, weight = [], 0
    if group:
        yield group


def _labels(plain: Mapping[str, Sequence[str]]) -> Labels:
    return {column: tuple(values) for column, values in plain.items()}


def _span(plain: Mapping[str, Any]) -> Span:
    boxes = tuple(Box(**{**box, "labels": tuple(box["labels"])}) for box in plain["boxes"])
    return Span(**{**plain, "labels": _labels(plain["labels"]), "boxes": boxes})
