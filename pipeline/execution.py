"""One run from the command line: the request resolved, the observers chosen, the stages run here or as a Prefect flow."""

import sys
from collections.abc import Sequence
from typing import Literal

from pipeline.console import Terminal
from pipeline.plan import selected
from pipeline.recipe import Request
from pipeline.runner import Report, Run

_REPORT = "report.html"


def execute(
    request: Request,
    *,
    root: str,
    only: str | None = None,
    first: str | None = None,
    engine: Literal["local", "prefect"] = "local",
    tracking: bool = True,
    as_json: bool = False,
) -> list[Report]:
    """What came of each stage, after telling the terminal.

    Raises:
        PipelineError: the request does not fit, an input is missing, or a stage failed.
    """
    stages = selected(only=only, first=first)
    lines = sys.stderr if as_json else sys.stdout
    terminal = Terminal(lines, records=sys.stdout if as_json else None)
    run = Run(request, request.load(), root, [terminal])
    reports = list(run.stages(stages))
    lines.write("".join(f"{text}\n" for text in closing(reports)))
    return reports


def closing(reports: Sequence[Report]) -> list[str]:
    """The last lines of a run: whether there was anything to do, and where the report for a person lies."""
    lines = []
    if all(report.state == "reused" for report in reports):
        lines.append("nothing to do: everything was made before and is unchanged")
    pages = [report.artifact.folder / _REPORT for report in reports if _REPORT in report.artifact.manifest.files]
    return lines + [f"report      {page}" for page in pages]
