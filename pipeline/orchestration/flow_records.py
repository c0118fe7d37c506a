"""What a run leaves in the Prefect UI: the plan, live progress, a page per stage, a page for what stopped, links, log lines.

Nothing here may stop a stage or make it wait: artifacts are sent by a thread of their own, see ``posting.py``.
"""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from pipeline import logs
from pipeline.orchestration import markdown
from pipeline.orchestration.failure_page import failure_page
from pipeline.orchestration.posting import Posting
from pipeline.orchestration.stage_pages import live_page, page, plan_page
from pipeline.pace import Pace
from pipeline.plan import Action, Step, plan
from pipeline.recipe import Recipe
from pipeline.runner import Report
from stages.errors import PipelineError
from stages.storage.artifact import Artifact
from stages.storage.clips import STAGE as CLIPS
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace

__all__ = ["Publisher", "page"]

FILES_URL = "LVMAE_FILES_URL"
"""Address under which a browser finds the files below the root; without it a page gives their places on the worker."""
PROGRESS_S = 5.0
LIVE_S = 30.0
"""At most one update of the progress, and of the page with measurements and pictures, in so long."""

_PAGE = "report.html"
_NAMED_SOURCES = 10

_log = logging.getLogger(__name__)


class Publisher:
    """An observer that shows a run in the flow run it is made in.

    Args:
        workspace: the run's.
        commands: what may be typed on the worker after a failure, by what it does.
        run_url: gives the address of the MLflow run of the current stage, if there is one; asked when a page is made.
    """

    def __init__(
        self, workspace: Workspace, *, commands: Mapping[str, str], run_url: Callable[[], str | None] | None = None
    ) -> None:
        self._workspace = workspace
        self._commands = commands
        self._run_url = run_url
        self._posting = Posting()
        self._open = contextlib.ExitStack()
        logs.begin()
        self._open.enter_context(logs.shown_in_prefect())
        self._recipe: Recipe | None = None
        self._stage = ""
        self._pace: Pace | None = None
        self._values: Mapping[str, float] = {}
        self._pictures: dict[str, tuple[int, bytes]] = {}
        self._begin_stage("")

    def plan(self, recipe: Recipe, *, pinned: Artifact | None = None) -> None:
        """Show what the run will do with each stage, and why; ``pinned`` is the snapshot of clips that is asked for."""
        self._recipe = recipe
        text = plan_page(plan(recipe, self._workspace, pinned=pinned))
        self._posting.put("lvmae-plan", "markdown", text, "What this run does with each stage, and why.")

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Begin anew; what only is looked up shows no progress."""
        self._recipe = recipe
        self._begin_stage(upcoming.stage)
        if upcoming.action is not Action.REUSE:
            self._show_progress(0.0, f"{upcoming.stage}: starts")

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Show a new piece of work."""
        self._pace = Pace(label, total, done)
        if total > done:
            self._show_progress(self._pace.percent, self._pace.words())

    def advance(self, amount: int = 1) -> None:
        """Count, and show it if the last time was a while ago."""
        if self._pace:
            self._pace.done += amount
            if time.monotonic() >= self._next_progress_s or self._pace.done == self._pace.total:
                self._show_progress(self._pace.percent, self._pace.words())

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep the latest measurements, and show them now and then."""
        self._values, self._step = values, step
        self._show_live()

    def show(self, step: int, name: str, png: bytes) -> None:
        """Keep the latest picture of each name, and show it now and then."""
        self._pictures[name] = step, png
        self._show_live()

    def stage_finished(self, report: Report) -> None:
        """Make the page of a stage, and a link to what it wrote for a person."""
        reasons, sources = self._quarantined(report) if report.stage == CLIPS else ({}, [])
        links = self._links(report.artifact)
        with self._sparing():
            text = page(report, reasons, links, sources)
            self._posting.put(f"lvmae-{report.stage}", "markdown", text, f"What {report.stage} came to.")
        if _PAGE in links:
            link = markdown.link(_PAGE, links[_PAGE])
            self._posting.put("lvmae-report", "markdown", link, "What the encoder is worth, for a person to read.", of_run=True)
        if self._has_progress:
            self._show_progress(100.0, f"{report.stage}: {report.state}")

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Make the page that says why, what to do about it, and how to resume."""
        if self._recipe is None:
            return
        with self._sparing():
            text = failure_page(
                stage,
                error,
                commands=self._commands,
                recipe=self._recipe,
                workspace=self._workspace,
                links=self._tracked(),
            )
            description = f"Why {stage} stopped, what to do, and how to resume."
            self._posting.put("lvmae-failure", "markdown", text, description, of_run=True)

    def run_ended(self, error: BaseException | None) -> None:
        """Send what waits, and let go of the log."""
        self._posting.close()
        self._open.close()

    def _begin_stage(self, stage: str) -> None:
        self._stage = stage
        self._pace, self._values, self._step, self._pictures = None, {}, 0, {}
        self._next_progress_s = self._next_live_s = 0.0
        self._has_progress = False

    def _show_progress(self, percent: float, words: str) -> None:
        self._has_progress = True
        self._next_progress_s = time.monotonic() + PROGRESS_S
        self._posting.put(f"lvmae-{self._stage}-progress", "progress", round(percent, 1), markdown.plain(words))

    def _show_live(self) -> None:
        if time.monotonic() < self._next_live_s:
            return
        self._next_live_s = time.monotonic() + LIVE_S
        words = self._pace.words() if self._pace else self._stage
        with self._sparing():
            text = live_page(words, self._values, self._step, self._pictures)
            self._posting.put(f"lvmae-{self._stage}-live", "markdown", text, f"{self._stage} while it works.")

    def _links(self, made: Artifact) -> dict[str, str]:
        found = {_PAGE: self._address(made.folder / _PAGE)} if _PAGE in made.manifest.files else {}
        return {**found, **self._tracked()}

    def _tracked(self) -> dict[str, str]:
        address = self._run_url() if self._run_url else None
        return {"MLflow run": address} if address else {}

    def _address(self, path: Path) -> str:
        base = os.environ.get(FILES_URL)
        return f"{base.rstrip('/')}/{quote(self._workspace.relative(path))}" if base else path.as_uri()

    def _quarantined(self, report: Report) -> tuple[Mapping[str, int], Sequence[str]]:
        rows = Dataset(self._workspace, report.artifact.folder.name).rows("quarantine")
        named = [f"{row['key']}: {row['reason']}" for row in rows[:_NAMED_SOURCES]]
        return Counter(row["reason"] for row in rows), named

    @contextlib.contextmanager
    def _sparing(self) -> Iterator[None]:
        """Within the block the stage is spared what goes wrong with a page."""
        try:
            yield
        except (PipelineError, OSError, ValueError) as error:
            _log.warning("no page for %s: %s", self._stage, error)
