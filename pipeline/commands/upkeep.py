"""Commands that keep a root and a machine in order: ``lvmae gc`` and ``lvmae doctor``. They ask; other modules do the work."""

from typing import Annotated

import typer

from pipeline.commands.options import Json, Root, Verbose, reporting


def gc(
    root: Root = "workspace",
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="FINGERPRINT", help="Keep this artifact and what it was made from; repeatable."),
    ] = None,
    snapshots: Annotated[
        int,
        typer.Option("--snapshots", metavar="N", min=1, help="Keep what was made from the newest N snapshots of any clips."),
    ] = 2,
    grace: Annotated[
        float, typer.Option("--grace", metavar="DAYS", min=0, help="Keep what was written within so many days.")
    ] = 7,
    delete: Annotated[bool, typer.Option("--delete", help="Remove it; otherwise it is only said what would go.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say which artifacts nobody needs any more, and what dead runs left; with --delete, remove them.

    Kept is what was made from the newest snapshots, what an alias in MLflow names, what a live run makes or reads, what is
    young, and all that any of these was made from. Clips are never removed. If MLflow cannot be asked, nothing is.
    """
    with reporting(verbose):
        from pipeline.commands.garbage import show_collection

        show_collection(
            root=root, keep=keep or (), num_snapshots=snapshots, grace_days=grace, is_deleting=delete, as_json=as_json
        )


def doctor(root: Root = "workspace", as_json: Json = False, verbose: Verbose = False) -> None:
    """Check this machine and the servers that it is told of: packages, ffmpeg, disk, locks, limits, Prefect, MLflow.

    Every check says what it found, and what to do about it. Exit code 1 when one failed; warnings do not count.
    """
    with reporting(verbose):
        from pipeline.upkeep.doctor import show_health

        is_well = show_health(root=root, as_json=as_json)
    if not is_well:
        raise typer.Exit(1)
