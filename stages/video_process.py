"""One child process under limits: its own session, no network, no input but what is given, bounded memory, time and output.

Media files are hostile until they are clips of our own making, so they are only ever parsed in such a child. This module
knows nothing of video.
"""

import contextlib
import functools
import itertools
import os
import resource
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

_LOG_BYTES = 1 << 16
_PIECE_BYTES = 1 << 16
_WAIT_S = 10.0
_POLL_S = 0.002

_CLOSED_NETWORK = ("--net", "--")
_OWN_USER = ("--user", "--map-root-user")
"""Lets anyone have a network namespace of their own, where the kernel allows it."""
_NO_PRIVILEGES = ("--no-new-privs", "--pdeathsig", "KILL")
_FEW_CAPABILITIES = ("--bounding-set=-all,+dac_override,+dac_read_search",)
"""What is left to a child of root: reading and writing files that root may."""

_OPTIONS = MappingProxyType(
    {resource.RLIMIT_AS: "as", resource.RLIMIT_CORE: "core", resource.RLIMIT_CPU: "cpu", resource.RLIMIT_FSIZE: "fsize"}
)
"""What prlimit calls the limits that are used here."""


class Finished(NamedTuple):
    """How a child ended."""

    exit_code: int
    """Negative when a signal ended it: minus the signal's number."""
    timed_out: bool
    """Whether it was killed for running longer than it may."""
    log: str
    """What it wrote to standard error: the first and the last 64 KiB."""
    num_marked: int = 0
    """Lines among all that it wrote there that hold the mark."""


class _Wrapping(NamedTuple):
    """What a program is started through."""

    argv: tuple[str, ...]
    note: str


class _Log:
    """What a child says: its first and its last bytes, and how many lines hold a mark."""

    def __init__(self, mark: bytes | None) -> None:
        self._mark = mark
        self._head = b""
        self._tail = b""
        self._line = b""
        self.num_marked = 0

    def add(self, piece: bytes) -> None:
        """Take the next bytes."""
        room = _LOG_BYTES - len(self._head)
        self._head += piece[:room]
        self._tail = (self._tail + piece[room:])[-_LOG_BYTES:] if room < len(piece) else self._tail
        if self._mark is not None:
            *lines, rest = (self._line + piece).split(b"\n")
            self.num_marked += sum(self._mark in line for line in lines)
            self._line = rest[-_LOG_BYTES:]

    def text(self) -> str:
        """All that was kept; a long log lacks its middle."""
        return (self._head + self._tail).decode(errors="replace")


def execute(
    argv: Sequence[str],
    *,
    folder: Path,
    timeout_s: float,
    bounds: Mapping[int, int],
    data: bytes | None = None,
    mark: bytes | None = None,
) -> Finished:
    """How a child ended that ran in ``folder``; whatever happens, nothing of it is left running.

    Args:
        argv: the program, spelled absolutely, and its arguments; no shell is involved.
        folder: an empty folder of the caller's, in which the child writes.
        timeout_s: wall time after which the whole process group is killed.
        bounds: limits by ``resource.RLIMIT_*``.
        data: bytes for its standard input, which is empty otherwise.
        mark: what to count the lines of its standard error by.

    Raises:
        OSError: the isolation, which worked before, could not be set up.
    """
    limiting, deadline = _limiting(bounds), time.monotonic() + timeout_s
    wrapping = (*limiting, *_wrapping().argv)
    log = _Log(mark)
    with subprocess.Popen(
        [*wrapping, *argv],
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={"LC_ALL": "C"},
        start_new_session=True,
        bufsize=0,
    ) as child:
        try:
            if not limiting:
                _bound(child.pid, bounds)
            _converse(child, data, log, deadline=deadline)
            timed_out = not _ended(child.pid, deadline=deadline)
        finally:
            _end(child)
    text = log.text()
    if child.returncode and text.startswith(tuple(f"{Path(program).name}: " for program in wrapping if "/" in program)):
        raise OSError(f"a child process cannot be isolated any more: {text.strip()[:200]}")
    return Finished(exit_code=child.returncode, timed_out=timed_out, log=text, num_marked=log.num_marked)


def isolation() -> str:
    """How children are kept apart from the rest of the machine, in one line."""
    return _wrapping().note


@functools.cache
def _wrapping() -> _Wrapping:
    """The strictest way of starting a program that works here, found by trying."""
    unshare, setpriv = shutil.which("unshare"), shutil.which("setpriv")
    networks = [(unshare, *_CLOSED_NETWORK), (unshare, *_OWN_USER, *_CLOSED_NETWORK)] if unshare else []
    privileges = [(setpriv, *_NO_PRIVILEGES, *_FEW_CAPABILITIES, "--"), (setpriv, *_NO_PRIVILEGES, "--")] if setpriv else []
    for network, privilege in itertools.product([*networks, ()], [*privileges, ()]):
        argv = (*network, *privilege)
        if not argv or _works(argv):
            net = "no network" if network else "the network open, because no namespace of its own can be had here"
            new = "no new privileges" if privilege else "new privileges possible, because setpriv does not work here"
            return _Wrapping(argv, f"decoders run with limits and time-outs, {net}, {new}")
    raise AssertionError("the empty wrapping always works")


def _works(wrapping: Sequence[str]) -> bool:
    tried = subprocess.run(
        [*wrapping, "/bin/true"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_WAIT_S
    )
    return tried.returncode == 0


def _limiting(bounds: Mapping[int, int]) -> tuple[str, ...]:
    """What sets the limits before the child does anything; nothing where util-linux is not installed."""
    prlimit = shutil.which("prlimit")
    if not prlimit or not bounds:
        return ()
    return (prlimit, *(f"--{_OPTIONS[kind]}={amount}:{_hard(kind, amount)}" for kind, amount in bounds.items()))


def _bound(process: int, bounds: Mapping[int, int]) -> None:
    """Set the limits from outside, a moment after the child began: code between fork and exec is not safe where threads are."""
    with contextlib.suppress(ProcessLookupError):  # it may have ended already
        for kind, amount in bounds.items():
            resource.prlimit(process, kind, (amount, _hard(kind, amount)))


def _hard(kind: int, amount: int) -> int:
    """What a limit may be raised to: of processor time one second more, for at that the kernel kills without saying why."""
    return amount + (kind == resource.RLIMIT_CPU)


def _converse(child: subprocess.Popen[bytes], data: bytes | None, log: _Log, *, deadline: float) -> None:
    """Feed a child and read what it says, until it has closed both or its time is over."""
    said, fed, rest = child.stderr, child.stdin, memoryview(data or b"")
    assert said is not None  # it was asked for
    with selectors.DefaultSelector() as channels:
        channels.register(said, selectors.EVENT_READ, said)
        if fed:
            os.set_blocking(fed.fileno(), False)
            channels.register(fed, selectors.EVENT_WRITE, fed)
        while channels.get_map() and (left_s := deadline - time.monotonic()) > 0:
            for channel, _ in channels.select(left_s):
                if channel.data is fed:
                    rest = _feed(channel.fd, rest)
                    over = not rest
                else:
                    piece = os.read(channel.fd, _PIECE_BYTES)
                    log.add(piece)
                    over = not piece
                if over:
                    channels.unregister(channel.data)
                    channel.data.close()


def _feed(descriptor: int, data: memoryview) -> memoryview:
    """What is left of ``data`` once a child has taken what it takes now; nothing if it takes no more."""
    try:
        return data[os.write(descriptor, data[:_PIECE_BYTES]) :]
    except BrokenPipeError:
        return data[:0]


def _ended(process: int, *, deadline: float) -> bool:
    """Whether a child ends in time; it stays a zombie, so that its number is not given to another process."""
    while os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the child's process group, also when the child itself has ended."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait(timeout=_WAIT_S)
