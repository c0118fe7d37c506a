"""What a run tells its observers, passed on by a process that another one listens to: one JSON object per line."""

import base64
import json
import os
from collections.abc import Mapping
from typing import Any, TextIO

from pipeline.plan import Step
from pipeline.recipe import Recipe
from pipeline.runner import Report
from stages.progress import Monitor
from stages.storage.artifact import Artifact

RELAY = "LVMAE_RELAY"
"""Set where somebody listens to standard output."""
_KEY = "relay"


def is_wanted() -> bool:
    """Whether somebody listens."""
    return bool(os.environ.get(RELAY))


class Relay:
    """An observer that passes on what a training reports.

    Args:
        lines: where to.
    """

    def __init__(self, lines: TextIO) -> None:
        self._lines = lines

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Pass it on."""
        self._write("begin", label, total=total, done=done)

    def advance(self, amount: int = 1) -> None:
        """Pass it on."""
        self._write("advance", amount)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on."""
        self._write("log", step, dict(values))

    def show(self, step: int, name: str, png: bytes) -> None:
        """Pass it on."""
        self._write("show", step, name, base64.b64encode(png).decode())

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Nothing: who listens started it."""

    def stage_finished(self, report: Report) -> None:
        """Nothing: the record of the stage says it."""

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Nothing: how the process ends says it."""

    def run_ended(self, error: BaseException | None) -> None:
        """Nothing: how the process ends says it."""

    def _write(self, word: str, *values: Any, **named: Any) -> None:
        self._lines.write(json.dumps({_KEY: word, "values": values, "named": named}) + "\n")
        self._lines.flush()


def replay(line: Mapping[str, Any], monitor: Monitor) -> bool:
    """Tell a monitor what a line passes on; whether it was such a line."""
    if _KEY not in line:
        return False
    values = list(line["values"])
    if line[_KEY] == "show":
        values[2] = base64.b64decode(values[2])
    getattr(monitor, line[_KEY])(*values, **line["named"])
    return True
