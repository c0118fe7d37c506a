"""Log lines, for a person or one JSON object each, with the run, the stage and the unit they belong to; also in the Prefect UI.

What is written comes from file names and decoders as well: line ends and control characters are spelled out, passwords in
addresses are left out, and a line that comes again and again is written some times only.
"""

import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import NamedTuple

FORM = "LVMAE_LOG"
"""``json``: one JSON object per line on stderr. Otherwise lines for a person."""
JOURNAL = "pipeline.journal"
"""The logger of what a run does, stage by stage; see ``pipeline/journal.py``."""

BURST = 20
BURST_S = 60.0
"""A line may come so often within so long; what is more is counted. Errors are always written."""

_OURS = ("pipeline", "stages", "models")
_PASSWORD = re.compile(r"(?<=://)[^/\s:@'\"]*:[^/\s@'\"]+(?=@)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_HUMAN = "%(levelname)s %(name)s %(message)s"


class Place(NamedTuple):
    """Where a line comes from; empty where that is unknown."""

    run: str = ""
    """Name of the Prefect run, or the recipe."""
    run_id: str = ""
    stage: str = ""
    unit: str = ""
    """A shard's number, or what the stage is busy with."""


_NOWHERE = Place()
_place: ContextVar[Place] = ContextVar("place", default=_NOWHERE)


def stand(**known: str) -> None:
    """Remember for all lines of this thread from now on what is known of the run, the stage and the unit."""
    _place.set(_place.get()._replace(**known))


def place() -> Place:
    """Where this thread stands: as was said last, completed by the Prefect run that it belongs to, if it does."""
    known = _place.get()
    if "prefect.context" not in sys.modules:
        return known
    from prefect.context import FlowRunContext, TaskRunContext

    flow, task = FlowRunContext.get(), TaskRunContext.get()
    if flow and flow.flow_run:
        known = known._replace(run=flow.flow_run.name, run_id=str(flow.flow_run.id))
    if task:
        stage, is_unit, unit = task.task_run.name.partition("-unit ")  # as pipeline/orchestration/fan_out.py names them
        known = known._replace(stage=stage if is_unit else known.stage or task.task.name, unit=unit or known.unit)
        known = known._replace(run_id=known.run_id or str(task.task_run.flow_run_id or ""))
    return known


def is_json() -> bool:
    """Whether lines are JSON."""
    return os.environ.get(FORM, "").lower() == "json"


def begin(*, verbose: bool = False) -> None:
    """Set up the log of this process, as ``LVMAE_LOG`` says; may be repeated."""
    if not is_json():
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format=_HUMAN)
        # The terminal has told its person already.
        logging.getLogger(JOURNAL).propagate = False
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    handler.addFilter(Sparing())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for name in list(logging.root.manager.loggerDict):  # Prefect's and uvicorn's loggers bring handlers that write text
        found = logging.getLogger(name)
        texts = [old for old in found.handlers if isinstance(old, logging.StreamHandler)]
        for old in texts:
            found.removeHandler(old)
        found.propagate = found.propagate or bool(texts)
    logging.captureWarnings(True)
    logging.getLogger(JOURNAL).propagate = True
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


@contextlib.contextmanager
def shown_in_prefect() -> Iterator[None]:
    """Within the block, lines of this project are shown in the current flow run, wherever in the process they arise."""
    from prefect.logging.handlers import APILogHandler

    handler = APILogHandler()
    handler.setLevel(logging.INFO)
    handler.setFormatter(Told())
    handler.addFilter(Sparing())
    handler.addFilter(_Belongs())
    ours = [logging.getLogger(name) for name in (*_OURS, JOURNAL)]
    before = [logger.level for logger in ours]
    try:
        for logger in ours:
            logger.setLevel(logging.INFO)
            if logger.name != JOURNAL or not logger.propagate:
                logger.addHandler(handler)
        yield
    finally:
        for logger, level in zip(ours, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


class JsonLines(logging.Formatter):
    """One JSON object per event, in ASCII and without a line end inside.

    Keys: ``time`` (UTC), ``level``, ``logger``, ``run``, ``run_id``, ``stage``, ``unit``, ``message``; ``error`` with the
    traceback where there is one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **place()._asdict(),
            "message": without_passwords(record.getMessage()),
        }
        if record.exc_info and record.exc_info[0]:
            event["error"] = without_passwords("".join(traceback.format_exception(*record.exc_info)))
        return json.dumps(event)


class Told(logging.Formatter):
    """A line for a person who reads many: stage and unit first, line ends spelled out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; below it the traceback, if there is one."""
        where = place()
        text = on_one_line(record.getMessage())
        prefix = " ".join(part for part in where[-2:] if part and not text.startswith(part))
        traced = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
        return f"{prefix}: {text}{without_passwords(traced)}" if prefix else f"{text}{without_passwords(traced)}"


class Sparing(logging.Filter):
    """Lets a line that comes again and again through some times only, and says afterwards how often it did not."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.levelno >= logging.ERROR:
            return True
        key = (record.name, str(record.msg)[:200])
        since, count = self._seen.get(key, (0.0, 0))
        now = time.monotonic()
        if now - since < BURST_S:
            self._seen[key] = (since, count + 1)
            return count < BURST
        if count > BURST:
            record.msg, record.args = f"{record.getMessage()} ({count - BURST} more like it were left out)", None
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 1)
        return True


class _Belongs(logging.Filter):
    """Tells Prefect's handler which run a line belongs to, where the thread that wrote it is none of Prefect's."""

    def __init__(self) -> None:
        super().__init__()
        self._run_id = place().run_id

    def filter(self, record: logging.LogRecord) -> bool:
        from prefect.context import FlowRunContext, TaskRunContext

        if TaskRunContext.get() is None and FlowRunContext.get() is None:
            record.flow_run_id = self._run_id
        return bool(self._run_id)


def without_passwords(text: str) -> str:
    """A text in which what stands before the ``@`` of an address is left out."""
    return _PASSWORD.sub("***", text)


def on_one_line(text: str) -> str:
    """A text whose control characters and line ends are spelled as in Python, and without passwords."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), without_passwords(text))
