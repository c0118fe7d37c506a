"""One child process under limits: its own session, no input but what is given, bounded memory, time and output.

Media files are hostile until they are clips of our own making, so they are only ever parsed in such a child. This module
knows nothing of video.
"""

import contextlib
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOG_NAME = "stderr.txt"
_LOG_BYTES = 1 << 16
_WAIT_S = 10.0


class Finished(NamedTuple):
    """How a child ended."""

    exit_code: int
    """Negative when a signal ended it: minus the signal's number."""
    timed_out: bool
    """Whether it was killed for running longer than it may."""
    log: str
    """What it wrote to standard error: the first and the last 64 KiB."""


def execute(
    argv: Sequence[str], *, folder: Path, timeout_s: float, bounds: Mapping[int, int], data: bytes | None = None
) -> Finished:
    """How a child ended that ran in ``folder``; whatever happens, nothing of it is left running.

    Args:
        argv: the program, spelled absolutely, and its arguments; no shell is involved.
        folder: an empty folder of the caller's, in which the child writes and its log is kept.
        timeout_s: wall time after which the whole process group is killed.
        bounds: limits by ``resource.RLIMIT_*``.
        data: bytes for its standard input, which is empty otherwise.
    """
    path = folder / LOG_NAME
    with path.open("wb") as log:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            cwd=folder,
            env={"LC_ALL": "C"},
            start_new_session=True,
        )
    with child:
        try:
            _bound(child.pid, bounds)
            child.communicate(data, timeout=timeout_s)
            timed_out = False
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            _end(child)
    return Finished(exit_code=child.returncode, timed_out=timed_out, log=_ends(path))


def _bound(process: int, bounds: Mapping[int, int]) -> None:
    """Set the limits from outside: code between fork and exec is not safe in a process with threads."""
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        for kind, amount in bounds.items():
            resource.prlimit(process, kind, (amount, amount))


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child's process group unless the child was already waited for."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=_WAIT_S)


def _ends(path: Path) -> str:
    """The text of a log without its middle, when it is long."""
    with path.open("rb") as file:
        head = file.read(_LOG_BYTES)
        size = path.stat().st_size
        if size <= _LOG_BYTES:
            return head.decode(errors="replace")
        file.seek(max(_LOG_BYTES, size - _LOG_BYTES))
        return (head + b"\n" + file.read()).decode(errors="replace")
