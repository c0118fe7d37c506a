"""What a person sees of a run: bars while a stage works, and one line when it is through.

Bars go to stderr and only where that is a terminal. Lines go wherever the caller says: to stdout, or to stderr where
stdout carries JSON. Everything is also written into the log, which shows it in the Prefect UI and, with ``LVMAE_LOG=json``,
instead of the lines.
"""

import contextlib
import json
from collections.abc import Mapping
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeRemainingColumn

from pipeline import logs
from pipeline.journal import Journal
from pipeline.plan import Action, Step
from pipeline.recipe import Recipe
from pipeline.runner import Report
from pipeline.wording import duration
from stages.storage.artifact import Artifact

_FATE = ("inputs", "committed", "quarantined", "pending")
_SEEN = {
    "duplicates": "copies of others among them",
    "gone": "gone from the source, their clips stay",
    "relabelled": "annotated anew since they were cut, their labels stay (name another dataset to cut them again)",
}


class Terminal:
    """An observer that draws bars on stderr and writes one line per stage.

    Args:
        lines: where the lines go.
        records: where one JSON object per stage goes, if anywhere.
    """

    def __init__(self, lines: TextIO, records: TextIO | None = None) -> None:
        self._lines = lines
        self._records = records
        self._journal = Journal()
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Say what is about to run and why; nothing for what is only looked up."""
        self._journal.stage_started(upcoming, recipe, inputs)
        if upcoming.action is not Action.REUSE:
            self._write(f"{upcoming.stage:<10}  starts    {upcoming.reason}")

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Draw a bar, below those of earlier pieces of work of the same stage."""
        self._journal.begin(label, total=total, done=done)
        if not self._console.is_terminal or logs.is_json() or total <= done:
            return
        if self._progress is None:
            self._progress = Progress(*_columns(), console=self._console, transient=True)
            self._progress.start()
        self._task = self._progress.add_task(label, total=total, completed=done, values="")

    def advance(self, amount: int = 1) -> None:
        """Move the bar."""
        self._journal.advance(amount)
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Show the latest measurements beside the bar."""
        self._journal.log(step, values)
        if self._progress is not None and self._task is not None:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:3])
            self._progress.update(self._task, values=shown)

    def show(self, step: int, name: str, png: bytes) -> None:
        """Nothing: a terminal has no pictures."""

    def stage_finished(self, report: Report) -> None:
        """Write the stage's line."""
        self._stop()
        self._journal.stage_finished(report)
        self._write(line(report))
        if self._records:
            self._records.write(json.dumps(report.record()) + "\n")
            self._records.flush()

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Take the bars away; the error is written by who catches it."""
        self._stop()
        self._journal.stage_failed(stage, error)
        self._write(f"{stage:<10}  stopped   what is committed stays; the same command continues from there")

    def run_ended(self, error: BaseException | None) -> None:
        """Nothing: the closing lines are the caller's."""

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._task = None, None

    def _write(self, text: str) -> None:
        if logs.is_json():
            return
        with contextlib.suppress(BrokenPipeError):  # who listened was killed; the work goes on
            self._lines.write(text + "\n")
            self._lines.flush()


def line(report: Report) -> str:
    """One line on a stage: what was done and reused, what was quarantined, measurements, how long, and where it lies."""
    outcome, counts = report.outcome, report.outcome.counts
    parts = [f"{outcome.units_done} done, {outcome.units_reused} reused"]
    if all(name in counts for name in _FATE):
        parts.append("{inputs} inputs = {committed} committed + {quarantined} quarantined + {pending} pending".format(**counts))
    parts += [f"{counts[name]} {meaning}" for name, meaning in _SEEN.items() if counts.get(name)]
    parts += [f"{name} {value:.4g}" for name, value in outcome.metrics.items()]
    parts += [duration(report.duration_s), str(report.artifact.folder)]
    return f"{report.stage:<10}  {report.state:<8}  " + "  |  ".join(parts)


def _columns() -> list[SpinnerColumn | TextColumn | BarColumn | MofNCompleteColumn | TimeRemainingColumn]:
    return [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    ]
