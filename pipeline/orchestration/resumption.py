"""What a failed flow run says in one message: what happened, what to do about it, and how to go on."""

from collections.abc import Sequence

from pipeline.orchestration.failure_page import remedy
from pipeline.plan import order
from pipeline.recipe import Request
from stages.errors import ConfigError


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


def command(stages: Sequence[str], request: Request, root: str) -> str:
    """The same run as a command."""
    known = order()
    begin = f" --from {stages[0]}" if stages[0] not in known[: 2 if request.snapshot else 1] else ""
    end = f" --to {stages[-1]}" if stages[-1] != known[-1] else ""
    alone = len(stages) == 1
    what = f"{stages[0]} {request.spelled()}" if alone else f"run {request.spelled()}{begin}{end}"
    return f"lvmae {what} --root {root}"


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
