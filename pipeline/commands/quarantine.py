"""``lvmae quarantine``: what could not become clips, why, and what a person does about it.

Sources stay where they are, untouched. ``retry`` and ``waive`` record a decision; the next ``lvmae shard`` acts on it. The
heavy imports happen inside the commands, so that help is instant.
"""

from collections.abc import Callable
from typing import Annotated

import typer

from pipeline.commands.options import Json, Root, Verbose, reporting

_Keys = Annotated[list[str] | None, typer.Argument(metavar="[KEY]...", help="Names of sources, as `list` prints them.")]
_Dataset = Annotated[
    str | None, typer.Option("--dataset", metavar="NAME", help="Only of this dataset: a folder below ROOT/clips, or its start.")
]
_Reason = Annotated[str | None, typer.Option("--reason", metavar="REASON", help="All sources with this reason.")]
_All = Annotated[bool, typer.Option("--all", help="All sources in quarantine, copies of others aside.")]
_Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why; kept with the decision.")]

_DECISIONS = {
    "retry": (
        "Let the next `lvmae shard` read sources again, for example after a limit or a tool has changed.",
        "retry --reason truncated",
    ),
    "waive": (
        "Accept that sources are lost: they no longer count towards the share of failures that stops a run.",
        "waive kitchen/0042.mp4 --note 'the camera died'",
    ),
}


def build() -> typer.Typer:
    """The command with its subcommands."""
    app = typer.Typer(
        help="List what could not become clips and why; let it be read again, or accept that it is lost.",
        epilog="Begin with: lvmae quarantine list",
        no_args_is_help=True,
    )
    app.command("list", epilog="Example: lvmae quarantine list --reason truncated --json")(_list)
    app.command("show", epilog="Example: lvmae quarantine show kitchen/0042.mp4")(_show)
    for decision, (meaning, example) in _DECISIONS.items():
        app.command(decision, help=meaning, epilog=f"Example: lvmae quarantine {example}")(_decision_command(decision))
    return app


def _list(
    dataset: _Dataset = None, reason: _Reason = None, root: Root = "workspace", as_json: Json = False, verbose: Verbose = False
) -> None:
    """Every source in quarantine, with its reason and how far it is settled: new, accepted, waived or to be retried."""
    with reporting(verbose):
        from pipeline.commands import cases

        cases.show_all(root, dataset, reason=reason, as_json=as_json)


def _show(
    keys: _Keys = None,
    dataset: _Dataset = None,
    reason: _Reason = None,
    root: Root = "workspace",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """All that is known of some sources in quarantine, and what to do about each."""
    with reporting(verbose):
        from pipeline.commands import cases

        cases.show(cases.chosen(root, dataset, keys, reason=reason), as_json=as_json)


def _decision_command(decision: str) -> Callable[..., None]:
    def command(
        keys: _Keys = None,
        dataset: _Dataset = None,
        reason: _Reason = None,
        every: _All = False,
        note: _Note = "",
        root: Root = "workspace",
        verbose: Verbose = False,
    ) -> None:
        with reporting(verbose):
            from pipeline.commands import cases

            decide = {"retry": cases.retry, "waive": cases.waive}[decision]
            decide(cases.chosen(root, dataset, keys, reason=reason, every=every), note)

    return command
