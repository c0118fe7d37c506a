"""The outbox: everything that a run wants recorded, written to a file first and sent from there, whatever becomes of the run.

One file of JSON lines per pipeline run, only ever appended to, in ``outbox`` below the root. Writing an event is one system
call and waits for nobody. The file is locked while its run lives, so that anybody can tell whether more is to come, and beside
it stands how far it was sent. Both go when all was sent. What a killed process left is read up to its last whole line.
"""

import base64
import contextlib
import fcntl
import json
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field

from models.config import Config
from stages.storage.publish import make_folder, publish_bytes, sync_folder, temporary_sibling

FOLDER = "outbox"
DATABASE = "mlflow.db"
"""Below the root."""

_ENDING = ".jsonl"
_log = logging.getLogger(__name__)


class Event(NamedTuple):
    """One thing to be recorded."""

    number: int
    """From 0, in the order of events. With the outbox's key it is the event's id."""
    run: str
    """The run that it belongs to, by the name that it has here: the store chooses another."""
    kind: str
    """``open``, ``parameters``, ``inputs``, ``measurements``, ``tags``, ``text``, ``picture`` or ``end``."""
    time_ms: int
    """When it happened, in milliseconds since 1970."""
    body: Mapping[str, Any]
    """What it says; the keys are those of the kind."""


class Measurement(NamedTuple):
    """One number at one step."""

    name: str
    value: float
    time_ms: int
    step: int


class StoreUnreachable(Exception):
    """The store could not be reached, or is not able to answer now."""


class StoreRefused(Exception):
    """The store answered that it will never take this."""


class Outbox:
    """The outbox of one pipeline run, to write into. The file is made by the first event.

    A disk that is full, or that refuses, costs events and one warning; it stops nobody.

    Args:
        root: the workspace's root.
    """

    def __init__(self, root: Path) -> None:
        self.key = f"{now_ms():013d}-{uuid.uuid4().hex[:12]}"
        self.path = root / FOLDER / f"{self.key}{_ENDING}"
        self._descriptor: int | None = None
        self._lock = threading.Lock()
        self._number = 0
        self._is_torn = False
        self._has_failed = False

    @property
    def num_events(self) -> int:
        """How many events were added."""
        return self._number

    def add(self, run: str, kind: str, body: Mapping[str, Any], *, time_ms: int | None = None) -> None:
        """Append an event, which happened now unless ``time_ms`` says otherwise."""
        happened_ms = now_ms() if time_ms is None else time_ms
        with self._lock:
            event = {"event": f"{self.key}:{self._number}", "run": run, "kind": kind, "time_ms": happened_ms, "body": body}
            self._number += 1
            try:
                self._append(json.dumps(event, allow_nan=False, default=_spelled).encode() + b"\n")
            except OSError as error:
                if not self._has_failed:
                    _log.warning("%s: %s; what is measured is not recorded for now", self.path, error)
                self._has_failed = True

    def close(self) -> None:
        """Say that no more is to come, and make sure that it lasts."""
        with self._lock:
            if self._descriptor is not None:
                with contextlib.suppress(OSError):
                    os.fsync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = None

    def _append(self, line: bytes) -> None:
        if self._descriptor is None:
            self._descriptor = _locked(self.path)
        line = b"\n" + line if self._is_torn else line
        self._is_torn = True
        written = os.write(self._descriptor, line)
        if written < len(line):
            raise OSError(f"{written} of {len(line)} bytes could be written")
        self._is_torn = False


class Progress(Config):
    """How far an outbox was sent."""

    store: str = ""
    """A digest of the address that it goes to: the address itself may hold a password."""
    offset_bytes: int = 0
    """All lines before this byte were sent."""
    number: int = -1
    """Of the last event that was sent."""
    experiment: str = ""
    """The experiment's name."""
    experiment_id: str = ""
    """The store's id of it."""
    runs: dict[str, str] = Field(default_factory=dict)
    """The store's id of every run that was opened."""
    running: tuple[str, ...] = ()
    """Those that were not ended, in the order in which they were opened."""
    problem: str = ""
    """Why the last attempt failed; empty when it did not."""


class Letters:
    """An outbox as its sender, or anybody who asks, sees it.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = path.name.removesuffix(_ENDING)
        self._lock_path = path.with_suffix(".lock")
        self._progress_path = path.with_suffix(".sent.json")
        self._refused_path = path.with_suffix(".refused")

    @classmethod
    def below(cls, root: Path) -> list[Self]:
        """All outboxes below a root, oldest first."""
        return [cls(path) for path in sorted((root / FOLDER).glob(f"*{_ENDING}"))]

    @property
    def is_written_to(self) -> bool:
        """Whether the run that writes it lives, and has more to say."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return False

    @contextlib.contextmanager
    def sole_sender(self) -> Iterator[bool]:
        """The time within which nobody else sends this outbox; whether it was to be had, and there is anything to send."""
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(self._lock_path.open("ab"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, FileNotFoundError):
                yield False
                return
            if not self.path.exists():  # another sent it all between two looks
                self._lock_path.unlink(missing_ok=True)
                yield False
                return
            yield True

    def progress(self, otherwise: Progress | None = None) -> Progress:
        """How far it was sent; where that is not known, ``otherwise``, or nothing."""
        try:
            return Progress.model_validate_json(self._progress_path.read_bytes())
        except (OSError, ValueError):
            return otherwise or Progress()

    def keep(self, progress: Progress) -> None:
        """Lay down how far it was sent, before anything else is."""
        publish_bytes(self._progress_path, progress.model_dump_json().encode() + b"\n")

    def keep_refused(self, events: list[Event], reason: str) -> None:
        """Put aside what the store will never take, with the reason, so that what comes after it can be sent."""
        with self._refused_path.open("a") as file:
            for event in events:
                file.write(json.dumps({"refused": reason, **event._asdict()}) + "\n")

    def events(self, progress: Progress) -> Iterator[tuple[Event, int]]:
        """What was not sent yet, each with the byte after its line. A line that is no event is passed over.

        The last line is passed over as well while it has no end: its writer is at it, or was killed over it.
        """
        with self.path.open("rb") as file:
            file.seek(progress.offset_bytes)
            number = progress.number
            while (line := file.readline()).endswith(b"\n"):
                event = _event(line)
                if event is not None and event.number > number:
                    number = event.number
                    yield event, file.tell()

    def num_waiting(self) -> int:
        """How many events were not sent yet."""
        try:
            return sum(1 for _ in self.events(self.progress()))
        except FileNotFoundError:
            return 0

    def sync(self) -> None:
        """Make what was written so far survive a power cut."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Take it away, now that all was sent. What the store refused stays."""
        self.path.unlink(missing_ok=True)
        self._progress_path.unlink(missing_ok=True)
        self._lock_path.unlink(missing_ok=True)


def address(root: Path) -> str:
    """Where runs below ``root`` are recorded."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"


def png_of(body: Mapping[str, Any]) -> bytes:
    """The picture of an event of the kind ``picture``."""
    return base64.b64decode(body["png"])


def number_of(value: float | str) -> float:
    """A measurement as it was before it was written."""
    return float(value)


def spelled_number(value: float) -> float | str:
    """A measurement for JSON, which has no infinity and no NaN."""
    return value if math.isfinite(value) else repr(value)


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def _locked(path: Path) -> int:
    make_folder(path.parent)
    unborn = temporary_sibling(path)
    descriptor = os.open(unborn, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    unborn.rename(path)  # locked before it has its name: no sender ever takes it for that of a dead run
    sync_folder(path.parent)
    return descriptor


def _spelled(value: object) -> str:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} cannot be written into an outbox")


def _event(line: bytes) -> Event | None:
    try:
        plain = json.loads(line)
        return Event(int(plain["event"].rpartition(":")[2]), plain["run"], plain["kind"], plain["time_ms"], plain["body"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
