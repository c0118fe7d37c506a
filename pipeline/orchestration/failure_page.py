"""The page of a stage that stopped: why, what to mend, how to resume it, and what will then be skipped."""

import errno
import traceback
from collections.abc import Mapping, Sequence

from pipeline.orchestration import markdown
from pipeline.plan import Action, Step, plan
from pipeline.recipe import Recipe, Request
from stages import errors
from stages.errors import PipelineError
from stages.storage.workspace import Workspace

_REMEDIES: Mapping[type[BaseException], str] = {
    errors.ConfigError: "Change the value that is named: in the form of a new run (Custom run), in the recipe, or with "
    "`--set`. Retry would repeat the same values.",
    errors.ArtifactMissing: "Make the artifact that is named first: run its stage, or the deployment `pipeline`.",
    errors.ArtifactDamaged: "Delete the folder that is named; its stage makes it again. `lvmae verify` looks for more damage.",
    errors.ArtifactBusy: "Another run makes the same thing. Wait until it is through, then press Retry: there will be "
    "nothing left to do.",
    errors.SourceMissing: "See to it that the place that is named exists on the worker, can be read, and holds videos.",
    errors.TooManyFailures: "See why with `lvmae quarantine list`; then mend the sources, accept their loss with "
    "`lvmae quarantine waive`, or raise `shard.max_failed_share`.",
    errors.TrainingDiverged: "Look at the curves; lower the learning rate or lengthen the warm-up in a new run. Retry "
    "repeats the same course.",
    errors.TargetsInvalid: "Run `lvmae verify`; if it finds nothing, the tokenizer gives values that cannot be right: train "
    "it anew.",
    errors.TokenizerCollapsed: "Train it longer, or with another seed: a new run with `tokenizer.seed` changed.",
    errors.ExportFailed: "Leave that form out of `export.backends`, or install what it needs on the worker.",
}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_THEN = {
    Action.LOOK: "looks for new files; what is cut stays",
    Action.REUSE: "skipped",
    Action.RUN: "**runs**",
    Action.WAIT: "runs if its inputs come out new",
}
_TRACE_LINES = 25


def failure_page(
    stage: str, error: BaseException, *, request: Request | None, recipe: Recipe, workspace: Workspace, links: Mapping[str, str]
) -> str:
    """The page.

    Args:
        stage: the one that stopped.
        error: what it raised.
        request: what was asked for; without it the commands name no recipe.
        recipe: what that came to.
        workspace: where the artifacts lie.
        links: addresses by what they lead to.
    """
    asked = request.spelled() if request else recipe.name
    root = f"--root {workspace.root}"
    commands = {
        "this stage alone": f"lvmae {stage} {asked} {root}",
        "this stage and those after it": f"lvmae run {asked} --from {stage} {root}",
        "what would run, and why": f"lvmae status {asked} {root}",
    }
    sections = [
        f"# {stage} stopped",
        "## Why",
        f"{markdown.code(type(error).__name__)}: {markdown.code(error)}",
        "## What to do",
        remedy(error),
        "## How to resume",
        "What is committed stays, and nothing is done twice. Any one of these continues from there:",
        "1. press **Retry** at the top of this flow run; or\n"
        f"2. start the deployment `{stage}` or `pipeline` with the same values; or\n"
        "3. on the worker, type one of:",
        "\n".join(f"* {what}: {markdown.code(command)}" for what, command in commands.items()),
        _what_then(recipe, workspace),
        *([markdown.facts({name: markdown.link(name, address) for name, address in links.items()})] if links else []),
    ]
    if not isinstance(error, PipelineError | OSError) and isinstance(error, Exception):
        sections += ["## Where in the program", *_trace(error)]
    return "\n\n".join(sections)


def remedy(error: BaseException) -> str:
    """What a person does about an error, in a sentence or two of Markdown."""
    for kind, text in _REMEDIES.items():
        if isinstance(error, kind):
            return text
    if isinstance(error, errors.NoRoom) or (isinstance(error, OSError) and error.errno in _FULL):
        return "The disk is full: make room (`lvmae gc` names what nothing needs any more), then press Retry."
    if isinstance(error, OSError) and error.errno in _REFUSED:
        return "Give the worker's user the right to read and write the place that is named, then press Retry."
    if isinstance(error, OSError):
        return "The disk or the network failed, three times. When it is back, press Retry."
    if isinstance(error, MemoryError):
        return "The worker has too little memory for this recipe: see `lvmae plan`; take a larger machine or a smaller batch."
    if not isinstance(error, Exception):
        return "It was cancelled or its process was asked to end. Press Retry when it is to go on."
    return (
        "This is a fault of the program, or of a library. Retry if it may have been chance; otherwise report what stands below."
    )


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
