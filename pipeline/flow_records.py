"""What a run leaves in the Prefect UI: the plan, a page per stage with counts, reasons and measurements, and links."""

from collections import Counter
from collections.abc import Mapping

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from pipeline.plan import Step, plan
from pipeline.recipe import Recipe
from pipeline.runner import Report
from pipeline.wording import duration
from stages.storage.artifact import Artifact
from stages.storage.clips import STAGE as CLIPS
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace

_PAGE = "report.html"


class Publisher:
    """An observer that makes artifacts of the Prefect run it is called in.

    Args:
        workspace: the run's.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def plan(self, recipe: Recipe) -> None:
        """Show what the run will do with each stage, and why."""
        rows = [
            {"stage": step.stage, "what": step.action.value, "fingerprint": step.fingerprint or "", "why": step.reason}
            for step in plan(recipe, self._workspace)
        ]
        create_table_artifact(rows, key="lvmae-plan", description="What this run does with each stage, and why.")

    def stage_started(self, upcoming: Step, recipe: Recipe, inputs: Mapping[str, Artifact]) -> None:
        """Nothing: the plan says it."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Nothing: progress stays in the log."""

    def advance(self, amount: int = 1) -> None:
        """Nothing: progress stays in the log."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Nothing: measurements go to MLflow."""

    def show(self, step: int, name: str, png: bytes) -> None:
        """Nothing: pictures go to MLflow."""

    def stage_finished(self, report: Report) -> None:
        """Make the page of a stage, and a link to what it wrote for a person."""
        reasons = self._reasons(report) if report.stage == CLIPS else {}
        create_markdown_artifact(
            page(report, reasons), key=f"lvmae-{report.stage}", description=f"What {report.stage} came to."
        )
        if _PAGE in report.artifact.manifest.files:
            link = (report.artifact.folder / _PAGE).as_uri()
            create_link_artifact(link, link_text=_PAGE, key="lvmae-report", description="The report for a person.")

    def stage_failed(self, stage: str, error: BaseException) -> None:
        """Nothing: Prefect shows the error itself."""

    def run_ended(self, error: BaseException | None) -> None:
        """Nothing: Prefect shows the end itself."""

    def _reasons(self, report: Report) -> Mapping[str, int]:
        rows = Dataset(self._workspace, report.artifact.folder.name).rows("quarantine")
        return Counter(row["reason"] for row in rows)


def page(report: Report, reasons: Mapping[str, int]) -> str:
    """The page of a stage in Markdown: what was done, counts, reasons for quarantine, measurements."""
    outcome = report.outcome
    facts = {
        "state": report.state,
        "units done, reused": f"{outcome.units_done}, {outcome.units_reused}",
        "took": duration(report.duration_s),
        "fingerprint": report.artifact.fingerprint,
        "digest": report.artifact.digest,
        "place": f"`{report.artifact.folder}`",
    }
    measured = {name: f"{value:.5g}" for name, value in outcome.metrics.items()}
    tables = {"counts": outcome.counts, "quarantined, by reason": reasons, "measured": measured}
    sections = [f"# {report.stage}", _table(facts)]
    sections += [f"## {title}\n\n{_table(values)}" for title, values in tables.items() if values]
    return "\n\n".join(sections)


def _table(values: Mapping[str, object]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])
