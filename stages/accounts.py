"""What became of the sources of a dataset: counted from its tables, so that an interrupted and an unbroken run agree."""

import collections
from collections.abc import Sequence

from stages.errors import ArtifactDamaged, TooManyFailures
from stages.quarantine import COPIES, Case, State, cases
from stages.storage.clips import Dataset


def counts(dataset: Dataset) -> dict[str, int]:
    """How many of all sources ever planned ended how, each counted once, by its latest fate.

    Raises:
        ArtifactDamaged: the tables do not add up.
    """
    fates = dataset.fates(("num_clips", "num_frames")).to_pydict()
    committed = fates["status"].count("committed")
    reasons = collections.Counter(row["reason"] for row in dataset.quarantined())
    num_clips, num_frames = dataset.total("index", "num_frames")
    if num_clips != sum(fates["num_clips"]) or reasons.total() != len(fates["status"]) - committed:
        raise ArtifactDamaged(f"{dataset.folder}: sources, quarantine and index do not add up; run `lvmae verify`")
    return {
        "inputs": len(fates["status"]),
        "committed": committed,
        "quarantined": reasons.total(),
        "duplicates": sum(reasons[reason] for reason in COPIES),
        "pending": 0,
        "clips": num_clips,
        "dropped_frames": sum(fates["num_frames"]) - num_frames,
    }


def standing_faults(dataset: Dataset) -> list[Case]:
    """Quarantined sources that no snapshot holds and no person has settled, copies of others aside."""
    return [case for case in cases(dataset) if case.state is State.NEW and case.reason not in COPIES]


def allowed(num_new: int, *, max_failed_share: float, min_failed: int) -> float:
    """How many of the new sources may be in quarantine before a run stops."""
    return max(min_failed, max_failed_share * num_new)


def check_failures(dataset: Dataset, faults: Sequence[Case], *, num_new: int, max_failed_share: float, min_failed: int) -> None:
    """Hold the share of new sources that are in quarantine against what is allowed.

    Args:
        dataset: whose sources they are.
        faults: the new sources in quarantine.
        num_new: all new sources, those that are still to be read included.
        max_failed_share: what is allowed.
        min_failed: how many are always allowed.

    Raises:
        TooManyFailures: it is larger; running again does not make it smaller.
    """
    if len(faults) <= allowed(num_new, max_failed_share=max_failed_share, min_failed=min_failed):
        return
    reasons = collections.Counter(case.reason for case in faults)
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    raise TooManyFailures(
        f"{dataset.folder}: {len(faults)} of {num_new} new sources are in quarantine ({listed}), more than "
        f"max_failed_share={max_failed_share} allows; `lvmae quarantine list` says why. Mend the source, waive them with "
        "`lvmae quarantine waive`, or allow a larger share, and run again"
    )
