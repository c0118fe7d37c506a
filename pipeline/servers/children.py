"""Processes that belong to one command: started with it, named when they die, and all gone when it ends."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stages.errors import PipelineError

MARK = "LVMAE_CHILD_OF"
"""Every process below a command has it in its environment, also those that left the process group."""
GRACE_S = 30.0
"""A training writes a checkpoint when it is asked to end."""

_DEATHS = 3
_DEATHS_WITHIN_S = 120.0
_LAST_CHARS = 1500


class ChildFailed(PipelineError, RuntimeError):
    """A process that everything depends on dies again and again, or did not begin to answer."""


@dataclasses.dataclass
class Child:
    """One process."""

    name: str
    argv: Sequence[str]
    log: Path
    process: "subprocess.Popen[bytes]"
    deaths: list[float] = dataclasses.field(default_factory=list)

    def last_lines(self) -> str:
        """The end of what it wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_LAST_CHARS:].strip()


class Children:
    """All processes of one command; leaving the block ends them.

    Args:
        environment: theirs.
        logs: folder where each writes ``<name>.log``.
        say: told of what dies.
    """

    def __init__(self, environment: Mapping[str, str], *, logs: Path, say: Callable[[str], None]) -> None:
        self._mark = uuid.uuid4().hex
        self._environment = {**environment, MARK: self._mark}
        self._logs = logs
        self._say = say
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def start(self, name: str, argv: Sequence[str]) -> Child:
        """Start a process; it reads nothing, and the signals of the terminal do not reach it."""
        log = self._logs / f"{name}.log"
        log.write_bytes(b"")
        child = Child(name, argv, log, self._begun(argv, log))
        self._children.append(child)
        return child

    def finish(self, name: str, argv: Sequence[str]) -> None:
        """Run a process to its end.

        Raises:
            ChildFailed: it fails.
        """
        child = self.start(name, argv)
        code = child.process.wait()
        self._children.remove(child)
        if code:
            raise ChildFailed(f"{name} failed with {code}: {child.last_lines()}\n{child.log} holds all of it")

    def wait_for(self, child: Child, url: str, *, patience_s: float) -> None:
        """Wait until an address answers.

        Raises:
            ChildFailed: the process dies before, or it takes too long.
        """
        deadline = time.monotonic() + patience_s
        while True:
            if _answers(url):
                return
            if child.process.poll() is not None:
                raise ChildFailed(f"{child.name} ended with {child.process.returncode}: {child.last_lines()}\nsee {child.log}")
            if time.monotonic() > deadline:
                raise ChildFailed(f"{child.name} does not answer at {url} after {patience_s:.0f} s; see {child.log}")
            time.sleep(0.5)

    def check(self) -> None:
        """Start again what died.

        Raises:
            ChildFailed: it dies again and again.
        """
        for child in self._children:
            code = child.process.poll()
            if code is None:
                continue
            now = time.monotonic()
            child.deaths = [when for when in child.deaths if now - when < _DEATHS_WITHIN_S] + [now]
            self._say(f"{child.name} ended with {code}; its last lines, of {child.log}:\n{child.last_lines()}")
            if len(child.deaths) >= _DEATHS:
                raise ChildFailed(f"{child.name} died {_DEATHS} times within {_DEATHS_WITHIN_S:.0f} s; see {child.log}")
            child.process = self._begun(child.argv, child.log)
            self._say(f"{child.name} was started again")

    def _begun(self, argv: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )

    def _end(self) -> None:
        """Ask all to end, those that were started last first, and after a while end what is left."""
        for child in reversed(self._children):
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in reversed(self._children):
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.process.wait(max(0.1, deadline - time.monotonic()))
        while time.monotonic() < deadline and (left := list(_marked(self._mark))):
            for pid in left:
                _signal(pid, signal.SIGTERM)
            time.sleep(1)
        for child in self._children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()
        for pid in _marked(self._mark):
            _signal(pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    """Whether an address on this machine answers with success; no proxy is asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except OSError:
        return False


def _marked(mark: str) -> Iterator[int]:
    """Living processes that were started below this command, where the system shows them."""
    wanted = f"{MARK}={mark}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if wanted in environ.read_bytes().split(b"\0"):
                yield int(environ.parent.name)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
