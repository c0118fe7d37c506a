"""What a run does as log lines: a stage's beginning and end, and now and then how far it is."""

import logging
import time
from collections.abc import Mapping

from pipeline import logs
from pipeline.pace import Pace
from pipeline.plan import Action, Step
from pipeline.recipe import Recipe
from pipeline.runner import Report
from pipeline.wording import duration
from stages.storage.artifact import Artifact

EVERY_S = 30.0
"""At most one line on progress in so long."""
_SHOWN_VALUES = 4

_log = logging.getLogger(logs.JOURNAL)


class Journal:
    """An observer that writes log lines. It belongs to one run, and one stage at a time."""

    def __init__(self) -> None:
        self._pace: Pace | None = None
        self._values = ""
        self._next_s = 0.0

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Say what is about to run and why; nothing for what is only looked up."""
        logs.stand(run=recipe.name, stage=upcoming.stage, unit="")
        self._pace, self._values = None, ""
        if upcoming.action is not Action.REUSE:
            read = "".join(f" {name}={made.fingerprint}" for name, made in inputs.items())
            _log.info("starts: %s.%s", upcoming.reason, f" Reads{read}" if read else "")

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Say how much there is to do."""
        logs.stand(unit=label)
        self._pace, self._values = Pace(label, total, done), ""
        self._next_s = time.monotonic() + EVERY_S
        if total > done:
            _log.info("%s", self._pace.words())

    def advance(self, amount: int = 1) -> None:
        """Count, and say so if the last line was a while ago."""
        if self._pace:
            self._pace.done += amount
            if time.monotonic() >= self._next_s:
                self._next_s = time.monotonic() + EVERY_S
                _log.info("%s%s", self._pace.words(), self._values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the latest measurements for the next line."""
        shown = ", ".join(f"{name} {value:.4g}" for name, value in list(values.items())[:_SHOWN_VALUES])
        self._values = f"; step {step}: {shown}"

    def show(self, step: int, name: str, png: bytes) -> None:
        """Nothing: a line has no pictures."""

    def stage_finished(self, report: Report) -> None:
        """Say what came of the stage."""
        logs.stand(unit="")
        outcome = report.outcome
        counted = ", ".join(f"{name} {count}" for name, count in outcome.counts.items())
        _log.info(
            "%s: %d units done, %d reused; %s; took %s; fingerprint=%s place=%s",
            report.state,
            outcome.units_done,
            outcome.units_reused,
            counted,
            duration(report.duration_s),
            report.artifact.fingerprint,
            report.artifact.folder,
        )

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Say why the stage stopped, and how far it was."""
        reached = f" at {self._pace.words()}" if self._pace else ""
        _log.error("stopped%s: %s: %s", reached, type(error).__name__, error)

    def run_ended(self, error: BaseException | None) -> None:
        """Nothing: every stage has said it."""
