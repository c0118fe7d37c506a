"""What became of the sources of a dataset: counted from its tables, so that an interrupted and an unbroken run agree."""

import collections
from collections.abc import Sequence
from typing import Any

from stages.errors import ArtifactDamaged, Reason, TooManyFailures
from stages.planning import Unit
from stages.storage.clips import Dataset


def counts(dataset: Dataset, planned: Sequence[Unit]) -> dict[str, int]:
    """How many of all sources ever planned ended how, each counted once, by its latest fate.

    Raises:
        ArtifactDamaged: the tables do not add up.
    """
    keys = {(entry.source_id, entry.key) for unit in planned for entry in unit.entries}
    fates = {(row["source_id"], row["key"]): row for row in dataset.rows("sources")}
    committed = [row for row in fates.values() if row["status"] == "committed"]
    reasons = {(row["source_id"], row["key"]): row["reason"] for row in dataset.rows("quarantine")}
    quarantined = [reasons.get(key) for key, row in fates.items() if row["status"] == "quarantined"]
    index = dataset.rows("index")
    if not fates.keys() <= keys or None in quarantined or len(index) != sum(row["num_clips"] for row in committed):
        raise ArtifactDamaged(f"{dataset.folder}: plans, sources, quarantine and index do not add up; run `lvmae verify`")
    return {
        "inputs": len(keys),
        "committed": len(committed),
        "quarantined": len(quarantined),
        "duplicates": quarantined.count(Reason.DUPLICATE),
        "pending": len(keys) - len(fates),
        "clips": len(index),
        "dropped_frames": sum(row["num_frames"] for row in committed) - sum(row["num_frames"] for row in index),
    }


def check_failures(dataset: Dataset, *, max_failed_share: float) -> None:
    """Hold the share of quarantined sources that no snapshot has accepted yet against what is allowed.

    Raises:
        TooManyFailures: it is larger; running again does not make it smaller.
    """
    sources, quarantine = _unaccepted(dataset, "sources"), _unaccepted(dataset, "quarantine")
    reasons = collections.Counter(row["reason"] for row in quarantine)
    num_read = len(sources) - reasons.pop(Reason.DUPLICATE, 0)
    if reasons.total() > max_failed_share * num_read:
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        raise TooManyFailures(
            f"{dataset.folder}: {reasons.total()} of {num_read} new sources are in quarantine ({listed}), more than "
            f"max_failed_share={max_failed_share} allows; the tables in quarantine/ say why. Accept them with a larger share"
        )


def _unaccepted(dataset: Dataset, table: str) -> list[dict[str, Any]]:
    """The rows of a table that the newest snapshot does not name."""
    snapshots = dataset.snapshots()
    accepted = snapshots[-1].manifest.files if snapshots else {}
    rows = dataset.rows(table)
    return [row for row in rows if f"{table}/{dataset.part_path(table, row['ordinal']).name}" not in accepted]
