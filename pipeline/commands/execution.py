"""One run from the command line: the request resolved, the observers chosen, the stages run here or as a Prefect flow."""

import json
import sys
from collections.abc import Sequence
from typing import Literal

from pipeline import environment
from pipeline.console import Terminal
from pipeline.launching import relay
from pipeline.plan import selected
from pipeline.promotion import Promoter
from pipeline.recipe import Request
from pipeline.runner import Observer, Report, Run
from pipeline.tracking.tracker import Tracker
from stages.ranks import is_first_process
from stages.storage.workspace import Workspace

_REPORT = "report.html"


def execute(
    request: Request,
    *,
    root: str,
    only: str | None = None,
    first: str | None = None,
    last: str | None = None,
    engine: Literal["local", "prefect"] = "local",
    tracking: bool = True,
    as_json: bool = False,
) -> list[Report]:
    """What came of each stage, after telling the terminal.

    Raises:
        PipelineError: the request does not fit, an input is missing, or a stage failed.
    """
    stages, recipe = selected(only=only, first=first, last=last, snapshot=request.snapshot), request.load()
    lines = sys.stderr if as_json else sys.stdout
    if engine == "prefect":
        reports = _in_prefect(request, root, only=only, first=first, last=last, tracking=tracking)
        sys.stdout.write("".join(json.dumps(report.record()) + "\n" for report in reports if as_json))
    else:
        workspace = Workspace.at(root)
        observers: list[Observer] = []
        if is_first_process():
            observers.append(Terminal(lines, records=sys.stdout if as_json else None))
            if relay.is_wanted():
                observers.append(relay.Relay(sys.stdout))
            if tracking:
                observers.append(Tracker(workspace, recipe, {"lvmae.request": request.spelled()}))
                observers.append(Promoter(workspace, recipe))
        reports = list(Run(request, recipe, root, observers).stages(stages))
    if is_first_process():
        lines.write("".join(f"{text}\n" for text in closing(reports)))
    return reports


def _in_prefect(
    request: Request, root: str, *, only: str | None, first: str | None, last: str | None, tracking: bool
) -> list[Report]:
    environment.prepare()
    from pipeline.orchestration import flows

    asked = {**request.model_dump(), "root": root, "tracking": tracking}
    made = getattr(flows, f"run_{only}")(**asked) if only else flows.run_recipe(**asked, from_stage=first, to_stage=last)
    reports: list[Report] = made
    return reports


def closing(reports: Sequence[Report]) -> list[str]:
    """The last lines of a run: whether there was anything to do, and where the report for a person lies."""
    lines = []
    if all(report.state == "reused" for report in reports):
        lines.append("nothing to do: everything was made before and is unchanged")
    pages = [report.artifact.folder / _REPORT for report in reports if _REPORT in report.artifact.manifest.files]
    return lines + [f"report      {page}" for page in pages]
