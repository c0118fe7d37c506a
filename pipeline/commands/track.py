"""``lvmae track``: what waits to be recorded in MLflow, and sending it. A run sends by itself; this is for what it left."""

import json
import sys
from pathlib import Path

import typer

from pipeline.commands.options import Json, Root, Verbose, reporting
from pipeline.tracking.outbox import Letters, StoreUnreachable
from pipeline.tracking.sending import Sender


def build() -> typer.Typer:
    """The command with its subcommands."""
    app = typer.Typer(
        help="See what waits to be recorded in MLflow because that was away, and send it.",
        epilog="Begin with: lvmae track show",
        no_args_is_help=True,
    )
    app.command("show", epilog="Example: lvmae track show --root workspace --json")(_show)
    app.command("sync", epilog="Example: MLFLOW_TRACKING_URI=http://127.0.0.1:5000 lvmae track sync --root workspace")(_sync)
    return app


def _show(root: Root = "workspace", as_json: Json = False, verbose: Verbose = False) -> None:
    """What waits below ROOT: one line per run, with how much, whether its process lives, and why it was not sent."""
    with reporting(verbose):
        waiting = [_record(letters) for letters in Letters.below(Path(root))]
        lines = [json.dumps(one) if as_json else _line(one) for one in waiting]
        if not waiting and not as_json:
            lines = ["nothing waits"]
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _sync(root: Root = "workspace", as_json: Json = False, verbose: Verbose = False) -> None:
    """Send what waits below ROOT to the store that MLFLOW_TRACKING_URI names, or to the one below ROOT; nothing is sent twice.

    Runs that a killed process left open are closed as killed. Exit code 1 when the store cannot be reached.
    """
    with reporting(verbose):
        try:
            sent = Sender(Path(root)).send_all()
        except StoreUnreachable as error:
            raise ConnectionError(
                f"MLflow: {error}; what waits below {root} still waits. Start the store, or correct MLFLOW_TRACKING_URI"
            ) from error
        lines = [json.dumps(one._asdict()) if as_json else f"{one.key}: {one.events} events sent" for one in sent]
        lines += [f"{one.key}: {one.refused} put aside: MLflow refused them" for one in sent if one.refused and not as_json]
        if not sent and not as_json:
            lines = ["nothing to send"]
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _record(letters: Letters) -> dict[str, object]:
    return {
        "run": letters.key,
        "waiting": letters.num_waiting(),
        "is_written_to": letters.is_written_to,
        "problem": letters.progress().problem,
        "path": str(letters.path),
    }


def _line(one: dict[str, object]) -> str:
    state = "is written to" if one["is_written_to"] else "over"
    problem = f"  |  {one['problem']}" if one["problem"] else ""
    return f"{one['run']}  {one['waiting']} events wait  |  {state}  |  {one['path']}{problem}"
