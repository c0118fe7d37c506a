"""Which sources go into which shard: decided once, before anything is decoded, and never again.

A plan holds everything that decides a shard's bytes except the sources' own bytes, so that a run that was killed is finished
with the same result whatever happened to the folder meanwhile.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stages.errors import Reason
from stages.listing import Listed
from stages.storage.clips import Dataset

_LOST = frozenset({Reason.MISSING, Reason.CHANGED})


class Entry(NamedTuple):
    """One source in a plan."""

    source_id: str
    key: str
    size_bytes: int
    labels: Mapping[str, str]
    reason: str | None
    """Why it goes to quarantine unread; null for a source that is to be read."""
    detail: str


class Unit(NamedTuple):
    """The sources of one shard, in their order."""

    ordinal: int
    entries: tuple[Entry, ...]


def units(dataset: Dataset) -> list[Unit]:
    """The units of all plans, in order."""
    planned = [unit for plan in dataset.plans() for unit in plan["units"]]
    return [Unit(unit["ordinal"], tuple(Entry(**entry) for entry in unit["sources"])) for unit in planned]


def plan_new(dataset: Dataset, listing: Sequence[Listed], *, sources_per_shard: int) -> None:
    """Add a plan for the sources that no plan has yet, and for those that an earlier one lost sight of."""
    earlier = units(dataset)
    entries = new_entries(listing, earlier, lost=_lost(dataset))
    if not entries:
        return
    first = earlier[-1].ordinal + 1 if earlier else 0
    groups = [entries[start : start + sources_per_shard] for start in range(0, len(entries), sources_per_shard)]
    dataset.add_plan(
        {
            "units": [
                {"ordinal": first + place, "sources": [entry._asdict() for entry in group]}
                for place, group in enumerate(groups)
            ]
        }
    )


def new_entries(listing: Iterable[Listed], earlier: Iterable[Unit], *, lost: set[tuple[int, str, str]]) -> list[Entry]:
    """The entries of sources that are not planned yet, in the order of the listing.

    A source is known by its bytes together with its key. The first key that brings some bytes owns them, and every other one
    is a duplicate.

    Args:
        listing: what was found.
        earlier: all units planned so far.
        lost: (ordinal, source id, key) of sources that had vanished or changed when their turn came: they own nothing.
    """
    seen: set[tuple[str, str]] = set()
    owners: dict[str, str] = {}
    for unit in earlier:
        for entry in unit.entries:
            seen.add((entry.source_id, entry.key))
            if entry.reason is None and (unit.ordinal, entry.source_id, entry.key) in lost:
                owners.pop(entry.source_id, None)
            elif entry.reason != Reason.DUPLICATE:
                owners[entry.source_id] = entry.key
    entries = []
    for listed in listing:
        owner = owners.get(listed.source_id)
        if owner is None:
            owners[listed.source_id] = listed.key
            fault = listed.fault
            entries.append(_entry(listed, fault.reason, fault.detail) if fault else _entry(listed, None, ""))
        elif (listed.source_id, listed.key) not in seen:
            entries.append(_entry(listed, Reason.DUPLICATE, f"the same bytes as {owner}"))
    return entries


def _entry(listed: Listed, reason: Reason | None, detail: str) -> Entry:
    return Entry(
        source_id=listed.source_id,
        key=listed.key,
        size_bytes=listed.size_bytes,
        labels=listed.labels,
        reason=reason.value if reason else None,
        detail=detail,
    )


def _lost(dataset: Dataset) -> set[tuple[int, str, str]]:
    rows = dataset.rows("quarantine")
    return {(row["ordinal"], row["source_id"], row["key"]) for row in rows if row["reason"] in _LOST}
