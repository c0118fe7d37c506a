"""Commands that start and equip servers: ``lvmae up`` and ``lvmae deploy``. They ask; other modules do the work."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import environment
from pipeline.options import Root, Verbose, reporting


def deploy(verbose: Verbose = False) -> None:
    """Make work pools, queues, deployments and automations on the Prefect server that PREFECT_API_URL names.

    It can be repeated, after an upgrade for instance: what was switched on or off in the UI stays so. Flow runs begin in the
    folder where this command was typed.
    """
    with reporting(verbose):
        environment.prepare()
        from pipeline.deploying import deploy as deploy_all

        deploy_all()


def up(
    root: Root = "workspace",
    incoming: Annotated[
        Path | None,
        typer.Option("--incoming", metavar="DIR", help="Watch this folder, and run the pipeline when videos land in it."),
    ] = None,
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="What to run on videos that land.")] = "lvmae",
    overlay: Annotated[
        list[str] | None, typer.Option("--overlay", metavar="NAME", help="Overlay of that recipe; repeatable. [default: demo]")
    ] = None,
    port: Annotated[
        int,
        typer.Option("--port", metavar="N", min=0, help="Of Prefect; the next two are MLflow's and the files'. 0: any free."),
    ] = 4200,
    verbose: Verbose = False,
) -> None:
    """Start everything on this machine, for this machine alone: Prefect, its workers, MLflow, and the pages of the results.

    Ctrl-C ends all of it; what is done stays, and runs that were cut off go on with Retry. Nothing listens beyond this machine.
    """
    with reporting(verbose):
        from pipeline.up import Landing, run_until_ended

        overlays = ["demo"] if overlay is None else overlay
        landing = Landing(incoming.absolute(), recipe, tuple(overlays)) if incoming else None
        run_until_ended(root=root, landing=landing, port=port)
