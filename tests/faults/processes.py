"""Processes of this machine: which came from which, which are alive, and whose they are."""

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

_ADOPT_ORPHANS = 36
"""``PR_SET_CHILD_SUBREAPER`` of prctl(2)."""


def adopt_orphans() -> None:
    """Become the parent of all descendants that lose theirs, so that none escapes."""
    assert ctypes.CDLL(None, use_errno=True).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0) == 0


def state_of(pid: int) -> str:
    """The letter for a process's state, empty when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][:1]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether a process runs, sleeps or is stopped."""
    return state_of(pid) not in ("", "Z", "X")


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """All that came from a process and still lives; itself left out."""
    found = children(pid)
    for child in found:
        found += children(child)
    return [child for child in found if is_alive(child)]


def descendants_beside(pid: int, known: set[int]) -> list[int]:
    """What came from a process and is neither one of ``known`` nor came from them, nor the tracker of Python's own."""
    found = []
    for child in children(pid):
        if child in known:
            continue
        if state_of(child) == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, os.WNOHANG)
            continue
        found += [child, *descendants(child)]
    return [one for one in found if is_alive(one)]


def named(pid: int, name: str) -> list[int]:
    """Living descendants of a process whose program has this name."""
    return [child for child in descendants(pid) if described(child).partition(" ")[0].rpartition("/")[2].startswith(name)]


def described(pid: int) -> str:
    """A process's command, for messages."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return ""


def argument(pid: int, option: str) -> str:
    """What a process was given after an option; empty where it has none."""
    with contextlib.suppress(OSError, ValueError):
        parts = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        return parts[parts.index(option) + 1]
    return ""


def engine_of(run: str) -> int | None:
    """The living process that executes a flow run, and not one of those that Prefect starts for it before and after."""
    found = []
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and f"PREFECT__FLOW_RUN_ID={run}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    alive = [pid for pid in found if is_alive(pid) and "prefect.engine" in described(pid)]
    parents = {pid for pid in alive if set(children(pid)) & set(alive)}
    return next((pid for pid in alive if pid not in parents), None)


def strike(pid: int, number: int = signal.SIGKILL) -> bool:
    """Send a signal that ends a process; whether it was alive and is gone by it."""
    if not is_alive(pid):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + 60
    while is_alive(pid):
        assert time.monotonic() < deadline, f"{described(pid)} survives signal {number}"
        time.sleep(0.01)
    return True
