"""What lies around the artifacts below a root: free disk, what landed and is not ingested, what waits to be recorded."""

import shutil
from pathlib import Path
from typing import NamedTuple

from pipeline.tracking.outbox import Letters
from pipeline.wording import duration, size
from stages.prospect import Prospect


class Disk(NamedTuple):
    """The file system that a root lies on."""

    free_bytes: int
    total_bytes: int

    def line(self) -> str:
        """For a person."""
        return f"disk        {size(self.free_bytes)} free of {size(self.total_bytes)}"


def disk(root: Path) -> Disk:
    """That of a root, or of the folder that it would be made in."""
    there = next(path for path in (root, *root.parents) if path.exists())
    usage = shutil.disk_usage(there)
    return Disk(usage.free, usage.total)


def source_line(ahead: Prospect | None, problem: str) -> str:
    """How far the clips of a recipe are behind their source, for a person."""
    if ahead is None:
        return f"source      cannot be looked at: {problem}"
    if not ahead.is_known:
        return "source      many files were touched; which of them are new shows when the next run reads them"
    if ahead.is_rendered:
        return f"source      {ahead.new_sources} videos, which the first run renders"
    age = f", the oldest {duration(ahead.oldest_s)} ago" if ahead.oldest_s is not None else ""
    parts = [f"{ahead.new_sources} landed and not ingested{age}" if ahead.new_sources else "all that landed is planned"]
    parts += [f"{ahead.unfinished} units planned and not made"] if ahead.unfinished else []
    parts += [f"{ahead.waiting} not complete yet"] if ahead.waiting else []
    return f"source      {'; '.join(parts)}"


class Outgoing(NamedTuple):
    """What waits in the outbox to be recorded in MLflow."""

    runs: int
    events: int

    def line(self) -> str:
        """For a person."""
        return f"outbox      {self.events} events of {self.runs} runs wait for MLflow"


def outgoing(root: Path) -> Outgoing:
    """What waits below a root."""
    waiting = [letters.num_waiting() for letters in Letters.below(root)]
    return Outgoing(len(waiting), sum(waiting))
