"""Quarantined sources, as a person deals with them: what they are, reading them again, and accepting that they are lost.

A source is never moved, changed or forgotten. What a person decides is recorded beside the dataset; the next run acts on it.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from stages.errors import ConfigError, Reason
from stages.storage.clips import Dataset

COPIES = frozenset({Reason.DUPLICATE, Reason.RENAMED})
"""Why a source is in quarantine without anything being wrong with it."""


class State(StrEnum):
    """How far a case is settled."""

    NEW = "new"
    """No snapshot holds it yet: it counts towards the share that stops a run."""
    ACCEPTED = "accepted"
    """A snapshot was made with it."""
    WAIVED = "waived"
    """A person accepted it."""
    RETRY = "retry"
    """The next run reads it again."""


class Case(NamedTuple):
    """One quarantined source."""

    dataset: str
    key: str
    source_id: str
    reason: Reason
    detail: str
    ordinal: int
    """The unit that found it."""
    state: State
    note: str
    """What the person who decided had to say."""


def cases(dataset: Dataset) -> list[Case]:
    """Every quarantined source of a dataset that no later run has mended, in the order in which they were found."""
    new = set(dataset.new_units())
    decided = _decided(dataset)
    found = []
    for row in dataset.quarantined():
        action, units, note = decided.get((row["source_id"], row["key"]), ("", 0, ""))
        state = State.NEW if row["ordinal"] in new else State.ACCEPTED
        if action == "waive":
            state = State.WAIVED
        elif action == "retry" and row["ordinal"] < units:
            state = State.RETRY
        reason = Reason(row["reason"])
        found.append(Case(dataset.name, row["key"], row["source_id"], reason, row["detail"], row["ordinal"], state, note))
    return found


def retry(dataset: Dataset, chosen: Sequence[Case], note: str = "") -> None:
    """Let the next run read sources again.

    Raises:
        ConfigError: one is a copy of another source, with which nothing is wrong.
    """
    copies = [case.key for case in chosen if case.reason in COPIES]
    if copies:
        raise ConfigError(f"{copies[0]} holds the same bytes as another source; there is nothing to read again")
    _decide(dataset, "retry", chosen, note)


def waive(dataset: Dataset, chosen: Sequence[Case], note: str = "") -> None:
    """Accept that sources are lost: they no longer count towards the share that stops a run."""
    _decide(dataset, "waive", chosen, note)


def _decide(dataset: Dataset, action: str, chosen: Sequence[Case], note: str) -> None:
    sources = [{"source_id": case.source_id, "key": case.key} for case in chosen]
    with dataset.workspace.lock("shard", dataset.name):
        dataset.decide({"action": action, "sources": sources, "note": note})


def _decided(dataset: Dataset) -> dict[tuple[str, str], tuple[str, int, str]]:
    """The latest decision on each source: what, how many units there were then, and the note."""
    latest: dict[tuple[str, str], tuple[str, int, str]] = {}
    for decision in dataset.decisions():
        latest |= {_pair(source): (decision["action"], decision["units"], decision["note"]) for source in decision["sources"]}
    return latest


def _pair(source: dict[str, Any]) -> tuple[str, str]:
    return source["source_id"], source["key"]
