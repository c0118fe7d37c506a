"""How a run that failed goes on: what to do about an error, the same run as a command, and the message that says both."""

import errno
from collections.abc import Mapping, Sequence

from pipeline.plan import order
from pipeline.recipe import Request
from stages import errors
from stages.errors import ConfigError

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


def failure_message(error: Exception, *, stage: str | None, stages: Sequence[str], request: Request, root: str) -> str:
    """The message of the state of a run that failed.

    Args:
        error: what ended it.
        stage: in which that happened; ``None`` before the first.
        stages: that the run was asked to do.
        request: what it was asked for.
        root: where its artifacts lie.
    """
    where = f"{stage} stopped" if stage else "stopped before the first stage"
    lines = [f"{where}: {type(error).__name__}: {error}", f"What to do: {remedy(error)}"]
    return "\n".join([*lines, f"To resume: {_resumption(error, stages, request, root)}"])


def commands(stages: Sequence[str], request: Request, root: str) -> dict[str, str]:
    """What may be typed on a worker after a failure, by what it does."""
    return {
        "the same run, which does only what is missing": command(stages, request, root),
        "what would run, and why": f"lvmae status {request.spelled()} --root {root}",
    }


def command(stages: Sequence[str], request: Request, root: str) -> str:
    """The same run as a command."""
    known = order()
    begin = f" --from {stages[0]}" if stages[0] not in known[: 2 if request.snapshot else 1] else ""
    end = f" --to {stages[-1]}" if stages[-1] != known[-1] else ""
    alone = len(stages) == 1
    what = f"{stages[0]} {request.spelled()}" if alone else f"run {request.spelled()}{begin}{end}"
    return f"lvmae {what} --root {root}"


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


def _resumption(error: Exception, stages: Sequence[str], request: Request, root: str) -> str:
    typed = f"or type on the worker: {command(stages, request, root)}"
    if isinstance(error, ConfigError):
        return (
            "in the menu of this run choose Copy to new run, correct the value, Submit (Retry repeats the same values, and "
            f"helps only after a file on the worker was corrected); {typed}"
        )
    return (
        "press Retry on this run: it does only what is missing. A new run with the same values does the same, as does the "
        f"deployment {stages[0] if len(stages) == 1 else 'pipeline'}; {typed}"
    )
