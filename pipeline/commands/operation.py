"""Commands that start and equip servers: ``lvmae up`` and ``lvmae deploy``. They ask; other modules do the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import environment
from pipeline.commands.options import Root, Verbose, reporting

if TYPE_CHECKING:
    from pipeline.orchestration.landing import Landing


_Incoming = Annotated[
    Path | None,
    typer.Option("--incoming", metavar="DIR", help="Look at this folder every two minutes, and run what landed in it."),
]
_Recipe = Annotated[str, typer.Option("--recipe", metavar="NAME", help="What to run on videos that land.")]
_Overlays = Annotated[
    list[str] | None, typer.Option("--overlay", metavar="NAME", help="Overlay of that recipe; repeatable. [default: demo]")
]


def deploy(
    incoming: _Incoming = None,
    recipe: _Recipe = "lvmae",
    overlay: _Overlays = None,
    root: Root = "workspace",
    verbose: Verbose = False,
) -> None:
    """Make work pools, queues, deployments and automations on the Prefect server that PREFECT_API_URL names.

    It can be repeated, after an upgrade for instance: what was switched on or off in the UI stays so. Flow runs begin in the
    folder where this command was typed.
    """
    with reporting(verbose):
        environment.prepare()
        from pipeline.orchestration.deploying import deploy as deploy_all

        deploy_all(landing=_landing(incoming, recipe, overlay, root) if incoming else None)


def up(
    root: Root = "workspace",
    incoming: Annotated[
        Path | None,
        typer.Option("--incoming", metavar="DIR", help="Watch this folder, and run the pipeline when videos land in it."),
    ] = None,
    recipe: _Recipe = "lvmae",
    overlay: _Overlays = None,
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
        from pipeline.servers.up import Watched, run_until_ended

        watched = Watched(incoming.absolute(), recipe, _chosen(overlay)) if incoming else None
        run_until_ended(root=root, watched=watched, port=port)


def _landing(incoming: Path, recipe: str, overlay: list[str] | None, root: str) -> "Landing":
    from pipeline.orchestration.landing import Landing
    from pipeline.recipe import Request

    request = Request(recipe=recipe, overlays=_chosen(overlay), source=str(incoming))
    return Landing.of(request, dataset="", root=root)


def _chosen(overlay: list[str] | None) -> tuple[str, ...]:
    return ("demo",) if overlay is None else tuple(overlay)
