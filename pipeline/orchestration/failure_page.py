"""The page of a stage that stopped: why, what to mend, how to resume it, and what will then be skipped."""

import traceback
from collections.abc import Mapping, Sequence

from pipeline.orchestration import markdown
from pipeline.orchestration.resumption import remedy
from pipeline.plan import Action, Step, plan
from pipeline.recipe import Recipe
from stages.errors import PipelineError
from stages.storage.workspace import Workspace

_THEN = {
    Action.LOOK: "looks for new files; what is cut stays",
    Action.REUSE: "skipped",
    Action.RUN: "**runs**",
    Action.WAIT: "runs if its inputs come out new",
}
_TRACE_LINES = 25


def failure_page(
    stage: str,
    error: BaseException,
    *,
    commands: Mapping[str, str],
    recipe: Recipe,
    workspace: Workspace,
    links: Mapping[str, str],
) -> str:
    """The page.

    Args:
        stage: the one that stopped.
        error: what it raised.
        commands: what may be typed on the worker, by what it does.
        recipe: what was asked for came to.
        workspace: where the artifacts lie.
        links: addresses by what they lead to.
    """
    sections = [
        f"# {stage} stopped",
        "## Why",
        f"{markdown.code(type(error).__name__)}: {markdown.code(error)}",
        "## What to do",
        remedy(error),
        "## How to resume",
        "What is committed stays, and nothing is done twice. Any one of these continues from there:",
        "1. press **Retry** at the top of this flow run; or\n"
        "2. start the same deployment, or `pipeline`, with the same values; or\n"
        "3. on the worker, type:",
        "\n".join(f"* {what}: {markdown.code(command)}" for what, command in commands.items()),
        _what_then(recipe, workspace),
        *([markdown.facts({name: markdown.link(name, address) for name, address in links.items()})] if links else []),
    ]
    if not isinstance(error, PipelineError | OSError) and isinstance(error, Exception):
        sections += ["## Where in the program", *_trace(error)]
    return "\n\n".join(sections)


def _what_then(recipe: Recipe, workspace: Workspace) -> str:
    """What a resumed run will do with each stage."""
    try:
        steps: Sequence[Step] = plan(recipe, workspace)
    except (PipelineError, OSError) as error:
        return f"What will be skipped cannot be said before that is mended: {markdown.code(error)}"
    rows = [(step.stage, _THEN[step.action], markdown.plain(step.reason)) for step in steps]
    return f"A resumed run then does:\n\n{markdown.table(rows, ('stage', 'then', 'why'))}"


def _trace(error: Exception) -> list[str]:
    lines = "".join(traceback.format_exception(error)).rstrip().splitlines()[-_TRACE_LINES:]
    return ["\n".join(f"* {markdown.code(line)}" for line in lines)]
