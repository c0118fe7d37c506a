"""A laboratory for faults: a piece of work runs in a forked child whose calls to the operating system are counted.

A light helper process imports the code under test once and forks per trial, so that a trial costs milliseconds. In the child,
the functions of ``os`` and the files that ``open`` gives are replaced by ones that count, record and, at one chosen call, kill
the process, raise an error, write less than was asked, or wait. What does not go through them (C++ code that opens files
itself) would escape: a test holds the counts against ``strace``.

Run as ``python -m tests.faults.harness MODULE...`` it is the helper process; everything else uses ``Laboratory``.
"""

import _io
import base64
import builtins
import contextlib
import errno
import gc
import importlib
import io
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

REPOSITORY = Path(__file__).resolve().parents[2]

NEED_SPACE = frozenset({"create", "write", "mkdir", "link"})
"""Calls that a full disk refuses."""
KILLS = ("kill_before", "kill_within", "kill_after")
"""``kill_within`` writes half of the bytes first; for calls that write nothing it is ``kill_before``."""
ERRORS = ("ENOSPC", "EIO", "full", "EIO_after", "short")
"""``full``: half is written, and every later call that needs space fails too; ``EIO_after``: done, and yet an error; ``short``:
the kernel takes only half of the bytes, which is no error."""
_TRIAL_S = 60.0


class Fault(NamedTuple):
    """What goes wrong, at which call."""

    mode: str
    """One of ``KILLS`` or ``ERRORS``, or ``pause``: wait there until the other jobs of the trial have ended."""
    number: int
    """Of the calls that count, from 0."""
    calls: tuple[str, ...] = ()
    """Names of the calls that count; empty: all."""


class Job(NamedTuple):
    """A function to call in a child of the helper."""

    work: str
    """``module:function``; takes ``arguments`` as keywords, returns something that JSON can hold."""
    arguments: Mapping[str, Any]
    below: str
    """Only calls on paths below this folder count."""
    fault: Fault | None = None
    record: bool = False
    """Keep the bytes of every write."""
    beside: str = ""
    """Nor do calls on paths below this folder."""
    sync: bool = False
    """Really sync. A killed process loses nothing that it gave to the kernel, so that trials need not wait for the disk."""


class Call(NamedTuple):
    """One call to the operating system."""

    name: str
    path: str
    target: str = ""
    """Of a rename or link."""
    file: int = -1
    """Number of the opening of a file: two openings of one path have two."""
    data: bytes = b""
    """What a write wrote, if it was recorded."""
    failed: bool = False
    """It raised an error, by itself or because the fault was one."""


class Outcome(NamedTuple):
    """What became of a job."""

    fired: bool
    """The fault happened."""
    killed: bool
    calls: tuple[Call, ...]
    """All that counted, the one with the fault included."""
    result: Any
    error: str | None
    """Class names of the exception that ended the work, its bases included, separated by blanks."""
    message: str

    def raised(self, name: str) -> bool:
        """Whether the work ended with this exception or one derived from it."""
        return self.error is not None and name in self.error.split()


class Trial(NamedTuple):
    """One fault of a sweep: its number, the job with it, and what became of it."""

    number: int
    job: Job
    outcome: Outcome


class Laboratory:
    """The helper process, started once and used for many trials.

    Args:
        modules: what to import before the first fork.
        without: modules that are not to be found there: what they import in passing, and what would take seconds.
        under: a command that runs the helper, such as a tracer.
    """

    def __init__(self, *modules: str, without: Sequence[str] = (), under: Sequence[str] = ()) -> None:
        self._helper = subprocess.Popen(
            [*under, sys.executable, "-m", "tests.faults.harness", ",".join(without), *modules],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._helper.stdin
        assert self._helper.stdout
        self._helper.stdin.close()
        self._helper.stdout.close()
        assert self._helper.wait(30) == 0, "the helper process must end by itself"

    def run(self, job: Job) -> Outcome:
        """Run one job to its end."""
        return self.race([job])[0]

    def race(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Run jobs at once, each in a child, all released together; a job with the fault ``pause`` goes first."""
        assert self._helper.stdin
        assert self._helper.stdout
        self._helper.stdin.write(json.dumps(jobs).encode() + b"\n")
        self._helper.stdin.flush()
        answers = json.loads(self._helper.stdout.readline() or b"null")
        assert answers is not None, "the helper process died"
        return [_outcome(answer) for answer in answers]

    def sweep(self, job: Callable[[int], Job], mode: str, *, calls: tuple[str, ...] = ()) -> Iterator[Trial]:
        """A fault at call 0, 1, 2 ... until there are fewer calls; every trial but that last one must have fired.

        Args:
            job: the job of a trial by its number; each has its own folder, or one that the caller puts back.
            mode: of the fault.
            calls: names of the calls that count; empty: all.
        """
        for batch in self.batches(job, mode, calls=calls, at_once=1):
            yield from batch

    def batches(
        self, job: Callable[[int], Job], mode: str, *, calls: tuple[str, ...] = (), at_once: int
    ) -> Iterator[list[Trial]]:
        """The trials of a sweep, several at a time, each in a folder of its own."""
        for first in itertools.count(0, at_once):
            numbers = range(first, first + at_once)
            jobs = [job(number)._replace(fault=Fault(mode, number, calls)) for number in numbers]
            trials = [Trial(*trial) for trial in zip(numbers, jobs, self.race(jobs), strict=True)]
            fired = [trial for trial in trials if trial.outcome.fired]
            for _, _, outcome in trials:
                assert outcome.killed == (outcome.fired and mode in KILLS), "a kill must kill, and nothing else may"
                assert outcome.fired or outcome.error is None, f"no fault, and yet {outcome.message}"
            assert fired == trials[: len(fired)], "the number of calls changes from trial to trial"
            yield fired
            if len(fired) < at_once:
                assert first + len(fired) > 0, "no call counted at all"
                return


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    calls = tuple(Call(**{**call, "data": base64.b64decode(call["data"])}) for call in answer["calls"])
    return Outcome(**{**answer, "calls": calls})


class _Watch:
    """What the replaced functions share: the count, the fault and the line to the helper."""

    def __init__(self, job: Job, line: int, resume: int) -> None:
        self.job = job
        self.line = line
        self.resume = resume
        self.lock = threading.RLock()
        self.number = 0
        self.is_full = False
        self.openings = itertools.count()
        self.files: dict[int, tuple[int, str]] = {}
        """Opening number and path by descriptor, of files that were opened for writing and of folders."""
        self.write = os.write

    def say(self, **message: Any) -> None:
        """A line to the helper process, by the real ``write``."""
        self.write(self.line, json.dumps(message).encode() + b"\n")

    def call(self, name: str, path: str, work: Callable[[], Any], half: Callable[[], Any] | None = None, **facts: Any) -> Any:
        """Count one call and let it happen, or the fault."""
        if not self._counts(path) and not self._counts(facts.get("target", "")):
            return work()
        with self.lock:
            mode = self._mode(name)
            data = facts.pop("data", b"") if self.job.record else facts.pop("data", b"") and b""
            call = {"name": name, "path": path, "data": base64.b64encode(data).decode(), **facts}
            if mode is None:
                return self._happen(call, work)
            if mode != "full_again":
                self.say(fired=True)
            return self._strike(mode, call, work, half)

    def _counts(self, path: str) -> bool:
        beside = self.job.beside
        return f"{path}/".startswith(f"{self.job.below}/") and not (beside and f"{path}/".startswith(f"{beside}/"))

    def _happen(self, call: dict[str, Any], work: Callable[[], Any]) -> Any:
        try:
            result = work()
        except OSError:
            self.say(call={**call, "failed": True})
            raise
        self.say(call=call)
        return result

    def _mode(self, name: str) -> str | None:
        if self.is_full and name in NEED_SPACE:
            return "full_again"
        fault = self.job.fault
        if fault is None or (fault.calls and name not in fault.calls):
            return None
        self.number += 1
        return fault.mode if self.number - 1 == fault.number else None

    def _strike(self, mode: str, call: dict[str, Any], work: Callable[[], Any], half: Callable[[], Any] | None) -> Any:
        if mode == "pause":
            self.say(paused=True)
            os.read(self.resume, 1)
        elif mode in KILLS:
            if mode == "kill_after":
                with contextlib.suppress(OSError):
                    self._happen(call, work)
            elif mode == "kill_within" and half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)
        elif mode != "short":
            self._raise(mode, call, work, half)
        return self._happen(call, half if half and mode == "short" else work)

    def _raise(self, mode: str, call: dict[str, Any], work: Callable[[], Any], half: Callable[[], Any] | None) -> None:
        if mode == "full":
            self.is_full = True
            if half:
                half()
        if mode == "EIO_after":
            work()
        self.say(call={**call, "failed": True})
        number = errno.EIO if mode.startswith("EIO") else errno.ENOSPC
        raise OSError(number, f"{os.strerror(number)} (injected at {call['name']})", call["path"])


def _install(watch: _Watch) -> None:
    """Replace what touches the disk, in this process and for good."""
    _install_names(watch)
    _install_descriptors(watch)
    _install_files(watch)


def _spell(path: Any, folder: int | None = None) -> str:
    path = os.fspath(path) if not isinstance(path, int) else os.readlink(f"/proc/self/fd/{path}")
    path = os.fsdecode(path)
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(base, path))


def _install_names(watch: _Watch) -> None:
    def one(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
            spelled = _spell(path, kwargs.get("dir_fd"))
            return watch.call(name, spelled, lambda: real(path, *args, **kwargs))

        return counted

    def two(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(source: Any, target: Any, **kwargs: Any) -> Any:
            spelled = _spell(source, kwargs.get("src_dir_fd"))
            other = _spell(target, kwargs.get("dst_dir_fd"))
            return watch.call(name, spelled, lambda: real(source, target, **kwargs), target=other)

        return counted

    for function in ("unlink", "remove"):
        setattr(os, function, one("unlink", getattr(os, function)))
    for function in ("mkdir", "rmdir", "truncate", "chmod", "utime"):
        setattr(os, function, one(function, getattr(os, function)))
    for function in ("rename", "replace"):
        setattr(os, function, two("rename", getattr(os, function)))
    for function in ("link", "symlink"):
        setattr(os, function, two(function, getattr(os, function)))


class _Descriptors:
    """``os.open`` and what takes its descriptors, counted."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch
        self.real = (os.open, os.close, os.write)

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        spelled = _spell(path, kwargs.get("dir_fd"))
        number = next(self.watch.openings)
        if flags & os.O_CREAT:
            opened: int = self.watch.call("create", spelled, lambda: self.real[0](path, flags, *args, **kwargs), file=number)
        else:
            opened = self.real[0](path, flags, *args, **kwargs)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_DIRECTORY):
            self.watch.files[opened] = (number, spelled)
        return opened

    def close(self, descriptor: int) -> None:
        number, spelled = self.watch.files.pop(descriptor, (-1, ""))
        if number < 0 or os.path.isdir(spelled):
            self.real[1](descriptor)
            return
        try:
            self.watch.call("close", spelled, lambda: self.real[1](descriptor), file=number)
        except OSError:
            with contextlib.suppress(OSError):
                self.real[1](descriptor)  # the kernel closes even when it reports an error
            raise

    def write(self, descriptor: int, data: Any) -> int:
        if descriptor not in self.watch.files:
            return self.real[2](descriptor, data)
        number, spelled = self.watch.files[descriptor]
        return _counted_write(self.watch, spelled, number, data, lambda piece: self.real[2](descriptor, piece))

    def syncing(self, real: Callable[[Any], None]) -> Callable[[Any], None]:
        """``real``, which is ``fsync`` or ``fdatasync``, counted."""

        def counted(descriptor: Any) -> None:
            handle = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            number, spelled = self.watch.files.get(handle) or (next(self.watch.openings), _spell(handle))
            self.watch.call("fsync", spelled, lambda: self.watch.job.sync and real(handle), file=number)

        return counted


def _install_descriptors(watch: _Watch) -> None:
    ours = _Descriptors(watch)
    os.open, os.close, os.write = ours.open, ours.close, ours.write  # type: ignore[assignment]
    os.fsync, os.fdatasync = ours.syncing(os.fsync), ours.syncing(os.fdatasync)


def _counted_write(watch: _Watch, path: str, number: int, data: Any, real: Callable[[Any], int]) -> int:
    view = memoryview(data).cast("B")
    piece = view[: len(view) // 2 or len(view)]
    written: int = watch.call("write", path, lambda: real(view), lambda: real(piece), file=number, data=bytes(view))
    return written


class _File(io.FileIO):
    """A raw file whose opening for writing, writes and closing count."""

    def __init__(self, watch: _Watch, path: Any, mode: str, opener: Any) -> None:
        self.watch = watch
        self.spelled = _spell(path)
        self.number = next(watch.openings)
        if isinstance(path, int) or opener:  # whoever made the descriptor has been counted
            super().__init__(path, mode, opener=opener)
            self.number = watch.files.pop(self.fileno(), (self.number, ""))[0]
        else:
            watch.call("create", self.spelled, lambda: super(_File, self).__init__(path, mode), file=self.number)
        watch.files[self.fileno()] = (self.number, self.spelled)

    def write(self, data: Any) -> int:
        return _counted_write(self.watch, self.spelled, self.number, data, super().write)

    def truncate(self, size: int | None = None) -> int:
        real = super().truncate
        cut: int = self.watch.call("truncate", self.spelled, lambda: real(size), file=self.number)
        return cut

    def close(self) -> None:
        if self.closed:
            return
        self.watch.files.pop(self.fileno(), None)
        real = super().close
        try:
            self.watch.call("close", self.spelled, real, file=self.number)
        finally:
            real()


def _install_files(watch: _Watch) -> None:
    real_open = io.open

    def counted_open(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None, newline: Any = None,
        closefd: bool = True, opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not closefd:
            return real_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(watch, file, "".join(letter for letter in mode if letter in "rwax+"), opener)
        if buffering == 0:
            return raw
        size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
        buffered: Any = io.BufferedRandom(raw, size) if "+" in mode else io.BufferedWriter(raw, size)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    for module in (io, _io, builtins):
        module.open = counted_open  # type: ignore[attr-defined]


def _child(job: Job, line: int, gate: int, resume: int) -> None:
    """Wait for the gate, do the work under watch, say what came of it."""
    os.setsid()
    quiet = os.open(os.devnull, os.O_RDWR)
    os.dup2(quiet, 0)
    os.dup2(quiet, 1)
    module, function = job.work.split(":")
    work = getattr(importlib.import_module(module), function)
    watch = _Watch(job, line, resume)
    os.read(gate, 1)
    _install(watch)
    try:
        watch.say(result=work(**job.arguments))
    except BaseException as error:  # noqa: BLE001 - told to the parent, whatever it is
        bases = " ".join(base.__name__ for base in type(error).__mro__)
        watch.say(error=bases, message="".join(traceback.format_exception(error)))


class _Child:
    """A forked job as its helper sees it."""

    def __init__(self, job: Job) -> None:
        reader, line = os.pipe()
        gate, opener = os.pipe()
        resume, resumer = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            for descriptor in (reader, opener, resumer):
                os.close(descriptor)
            _child(job, line, gate, resume)
            os._exit(0)
        for descriptor in (line, gate, resume):
            os.close(descriptor)
        self.reader, self.opener, self.resumer = reader, opener, resumer
        self.text = b""

    def release(self) -> None:
        os.write(self.opener, b"1")

    def finish(self, until: bytes = b"") -> None:
        """Read what the child says until it ends, or until it says ``until``."""
        while not until or until not in self.text:
            ready, _, _ = select.select([self.reader], [], [], _TRIAL_S)
            if not ready:
                os.killpg(self.process, signal.SIGKILL)
                raise TimeoutError(f"a trial took more than {_TRIAL_S:.0f} s")
            piece = os.read(self.reader, 1 << 16)
            self.text += piece
            if not piece:
                return

    def answer(self) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):  # it has ended already
            os.write(self.resumer, b"1")
        self.finish()
        for descriptor in (self.reader, self.opener, self.resumer):
            os.close(descriptor)
        _, status = os.waitpid(self.process, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process, signal.SIGKILL)  # whatever it started goes with it
        said = [json.loads(line) for line in self.text.splitlines() if line.endswith(b"}")]
        answer = {key: value for message in said for key, value in message.items() if key != "call"}
        return {
            "fired": answer.get("fired", False),
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "calls": [message["call"] for message in said if "call" in message],
            "result": answer.get("result"),
            "error": answer.get("error"),
            "message": answer.get("message", ""),
        }


def _race(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    trials = [_Child(job) for job in jobs]
    for job, trial in zip(jobs, trials, strict=True):
        if job.fault and job.fault.mode == "pause":
            trial.release()
            trial.finish(until=b'"paused"')
    waiting = [trial for job, trial in zip(jobs, trials, strict=True) if not (job.fault and job.fault.mode == "pause")]
    for trial in waiting:
        trial.release()
    answers = {id(trial): trial.answer() for trial in waiting}
    return [answers.get(id(trial)) or trial.answer() for trial in trials]


class _Absent:
    """Finds nothing under some names, nor lets anything else find it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, *_: object) -> None:
        if name in self.names:
            raise ModuleNotFoundError(f"no {name} in this laboratory", name=name)


def _serve(without: Sequence[str], modules: Sequence[str]) -> None:
    sys.meta_path.insert(0, _Absent(without))  # type: ignore[arg-type]
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # so that children do not copy the pages of what lives
    for line in sys.stdin.buffer:
        jobs = [Job(*job)._replace(fault=Fault(*job[3]) if job[3] else None) for job in json.loads(line)]
        sys.stdout.buffer.write(json.dumps(_race(jobs)).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1].split(","), sys.argv[2:])
