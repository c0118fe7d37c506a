"""Processes that a test started, seen from outside."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 60.0


def members(session: int) -> list[int]:
    """The living processes of a session other than its first."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, leader = stat.read_text().rpartition(")")[2].split()[:4]
            pid = int(stat.parent.name)
            if int(leader) == session and state != "Z" and pid != session:
                found.append(pid)
    return found


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.05)
