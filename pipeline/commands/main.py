"""The command line: ``lvmae``. It asks, runs and reports; everything it does is done by the other modules.

The heavy imports (torch, and the stages with it) happen inside the commands, so that help is instant.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.commands import operation, quarantine, track, upkeep
from pipeline.commands.options import Json, Root, Verbose, reporting
from pipeline.recipe_files import overlay_names, recipe_names

if TYPE_CHECKING:
    from pipeline.recipe import Request

_OVERVIEW = """Turn a folder of videos into an evaluated long-video encoder, in six stages:
shard, tokenizer, precompute, pretrain, evaluate, export.

What is done is never done again: every command continues where the last one stopped."""

_STAGES = {
    "shard": "Cut videos into normalised clips, in tars with a Parquet index; bad files go to quarantine with a reason.",
    "tokenizer": "Train the adaptive tokenizer on 16-frame windows.",
    "precompute": "Store codes and priorities of every clip and view.",
    "pretrain": "Pretrain the masked autoencoder on long clips.",
    "evaluate": "Measure the frozen encoder with probes, and write report.html.",
    "export": "Write the encoder in forms that work elsewhere, each compared with it.",
}

_RecipeName = Annotated[
    str, typer.Argument(metavar="RECIPE", help="Name of a recipe (see `lvmae recipes`) or path of a YAML file.")
]
_Overlays = Annotated[
    list[str] | None, typer.Option("--overlay", metavar="NAME", help="Lay another YAML file over the recipe; repeatable.")
]
_Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        metavar="PLACE",
        help="Videos to take instead: a folder, a glob, or s3://bucket/prefix.",
    ),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one value of the recipe, spelled as in YAML; repeatable."),
]
_Snapshot = Annotated[
    str | None,
    typer.Option(
        "--snapshot",
        metavar="N",
        help="Read this snapshot of the clips and do not look at the source: its number, or the beginning of its digest.",
    ),
]
_Engine = Annotated[
    Literal["local", "prefect"], typer.Option("--engine", help="Run here, or as a Prefect flow (needs no server).")
]
_Tracking = Annotated[bool, typer.Option("--tracking/--no-tracking", help="Record what is executed in MLflow.")]


def main() -> None:
    """Run the command that the arguments name."""
    build()()


def build() -> typer.Typer:
    """The command with all its subcommands."""
    app = typer.Typer(
        name="lvmae",
        help=_OVERVIEW,
        epilog="Begin with: lvmae run lvmae --overlay demo",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command("run", epilog="Example: lvmae run lvmae --overlay demo --source ~/videos --set pretrain.seed=1")(_run)
    for stage, meaning in _STAGES.items():
        app.command(stage, help=_stage_help(stage, meaning), epilog=f"Example: lvmae {stage} lvmae --overlay demo")(
            _stage_command(stage)
        )
    app.command("embed", epilog="Example: lvmae embed videos/*.mp4 --encoder workspace/pretrain/0123456789abcdef")(_embed)
    app.command("plan", epilog="Example: lvmae plan lvmae --clips 240000 --memory 80,141")(_plan)
    app.command("compare", epilog="Example: lvmae compare 0123abcd 4567ef01 --root workspace")(_compare)
    app.command("status", epilog="Example: lvmae status lvmae --overlay demo --root workspace")(_status)
    app.command("watch", epilog="Example: lvmae watch incoming --recipe lvmae --overlay demo")(_watch)
    app.command("verify", epilog="Example: lvmae verify --root workspace")(_verify)
    app.command("recipes", epilog="Example: lvmae recipes lvmae --overlay demo")(_recipes)
    app.command("up", epilog="Example: lvmae up --root workspace --incoming incoming")(operation.up)
    app.command("deploy", epilog="Example: PREFECT_API_URL=http://127.0.0.1:4200/api lvmae deploy")(operation.deploy)
    app.command("gc", epilog="Example: lvmae gc --root workspace --keep 0123456789abcdef")(upkeep.gc)
    app.command("doctor", epilog="Example: lvmae doctor --root workspace")(upkeep.doctor)
    app.add_typer(quarantine.build(), name="quarantine")
    app.add_typer(track.build(), name="track")
    return app


def _stage_help(stage: str, meaning: str) -> str:
    return f"{meaning} Runs the stage {stage} alone, on inputs that are there."


def _run(
    recipe: _RecipeName,
    overlay: _Overlays = None,
    source: _Source = None,
    root: Root = "workspace",
    overrides: _Overrides = None,
    only: Annotated[
        str | None, typer.Option("--only", metavar="STAGE", help="Run this stage alone; its inputs must be there.")
    ] = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Begin with this stage; its inputs must be there.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="End with this stage.")] = None,
    snapshot: _Snapshot = None,
    engine: _Engine = "local",
    tracking: _Tracking = True,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a recipe: all six stages, or some. What is there already is reused, and nothing is written for it."""
    with reporting(verbose):
        from pipeline.commands.execution import execute

        request = _request(recipe, overlay, source, overrides, snapshot)
        execute(request, root=root, only=only, first=first, last=last, engine=engine, tracking=tracking, as_json=as_json)


def _stage_command(stage: str) -> Callable[..., None]:
    def command(
        recipe: _RecipeName,
        overlay: _Overlays = None,
        source: _Source = None,
        root: Root = "workspace",
        overrides: _Overrides = None,
        snapshot: _Snapshot = None,
        engine: _Engine = "local",
        tracking: _Tracking = True,
        as_json: Json = False,
        verbose: Verbose = False,
    ) -> None:
        with reporting(verbose):
            from pipeline.commands.execution import execute

            request = _request(recipe, overlay, source, overrides, snapshot)
            execute(request, root=root, only=stage, first=None, engine=engine, tracking=tracking, as_json=as_json)

    return command


def _plan(
    recipe: _RecipeName,
    overlay: _Overlays = None,
    source: _Source = None,
    root: Root = "workspace",
    overrides: _Overrides = None,
    only: Annotated[str | None, typer.Option("--only", metavar="STAGE", help="As in `lvmae run`.")] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="As in `lvmae run`.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="As in `lvmae run`.")] = None,
    snapshot: _Snapshot = None,
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1, help="Devices that share every batch.")] = 1,
    clips: Annotated[
        int | None,
        typer.Option(
            "--clips", metavar="N", min=1, help="Clips of one epoch; otherwise those of the newest snapshot below ROOT."
        ),
    ] = None,
    memory: Annotated[
        str, typer.Option("--memory", metavar="GB,GB", help="Memory of GPUs to compare with this machine, in 10^9 bytes.")
    ] = "80,141",
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say what a run would do before it is started: what is reused and why, units, bytes and minutes, and what it needs.

    First the plan, stage by stage; minutes are those that a unit took on this machine before, or unknown. Then memory of a
    device, the largest batch that fits one, and hours of pretraining: counted from the recipe, so no artifact needs to be
    there. Times are given at the floor, where all work goes at the rate of plain matrix products, and as expected at the share
    of it that published trainings reach. Nothing is written. Why something is out of date says `lvmae status`.
    """
    with reporting(verbose):
        from pipeline.estimation.estimates import show_plan
        from pipeline.plan import selected

        request = _request(recipe, overlay, source, overrides, snapshot)
        show_plan(
            request,
            stages=selected(only=only, first=first, last=last, snapshot=snapshot),
            root=root,
            num_devices=devices,
            num_clips=clips,
            memory_gb=memory,
            as_json=as_json,
        )


def _embed(
    videos: Annotated[list[Path], typer.Argument(metavar="VIDEO", help="Video files, of any length.")],
    encoder: Annotated[
        Path,
        typer.Option(
            "--encoder", metavar="FOLDER", help="An artifact of pretrain or export, or the folder of one exported form."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the Parquet file goes.")] = Path(
        "embeddings.parquet"
    ),
    backend: Annotated[
        Literal["eager", "torch_export", "aot_inductor", "onnx", "tensorrt"],
        typer.Option("--backend", help="What computes: PyTorch with the network's weights, or an exported form."),
    ] = "eager",
    window_frames: Annotated[
        int | None,
        typer.Option("--window-frames", metavar="N", min=1, help="Frames of a window; otherwise those of the encoder."),
    ] = None,
    stride_frames: Annotated[
        int | None,
        typer.Option(
            "--stride-frames", metavar="N", min=1, help="Frames from one window to the next; otherwise windows do not overlap."
        ),
    ] = None,
    pooling: Annotated[
        Literal["mean", "none"], typer.Option("--pooling", help="One vector per window, or one per token.")
    ] = "mean",
    batch_clips: Annotated[
        int, typer.Option("--batch-clips", metavar="N", min=1, help="Windows that go through the encoder together.")
    ] = 8,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="S", min=1, help="Seconds that decoding one video may take.")
    ] = 600,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write embeddings of videos into a Parquet file: one row per window that slides over each, the mean of its tokens.

    Videos are decoded in a process of their own under limits, and brought to size as for pretraining. A video that cannot be
    read is named with its reason, the others are written, and the exit code is 1.
    """
    with reporting(verbose):
        from pipeline.commands.embed import show_embeddings
        from stages.storage.artifact import kept

        with kept(encoder):
            whole = show_embeddings(
                videos,
                encoder=encoder,
                out=out,
                backend=backend,
                window_frames=window_frames,
                stride_frames=stride_frames,
                pooling=pooling,
                batch_clips=batch_clips,
                timeout_s=timeout,
                as_json=as_json,
            )
    if not whole:
        raise typer.Exit(1)


def _compare(
    evaluations: Annotated[
        list[str],
        typer.Argument(metavar="EVALUATION", help="Two or more: a folder, or the beginning of a fingerprint below ROOT."),
    ],
    root: Root = "workspace",
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the page goes.")] = Path("comparison.html"),
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Put two or more evaluations side by side: is one better on the clips that both tested, on which, and what differs.

    Writes one HTML page and prints a table. Differences come with intervals over groups of clips and an exact sign test,
    corrected for all pairs that are shown. Nothing below ROOT is changed.
    """
    with reporting(verbose):
        from pipeline.compare import show_comparison

        show_comparison(evaluations, root=root, out=out, as_json=as_json)


def _status(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Say what a run of this recipe would do next.")
    ] = None,
    overlay: _Overlays = None,
    source: _Source = None,
    root: Root = "workspace",
    overrides: _Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show every artifact: its state, what it was made from, whether and why it is out of date; with a recipe, what runs next.

    Out of date is what was made from an older snapshot, from an input that came out differently since, or by an earlier version
    of its stage; with a recipe also what has other settings, and which. A stage's fingerprint is made of its configuration and
    the digests of its inputs. Deleting one artifact reruns that stage; stages that read it run again only if it comes out
    differently. Below stand free disk, the newest snapshot's age, what landed and is not ingested, and what waits for MLflow.
    """
    with reporting(verbose):
        from pipeline.commands.inspection import show_status

        request = _request(recipe, overlay, source, overrides) if recipe else None
        show_status(request, root=root, as_json=as_json)


def _watch(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Where videos land: a folder, a glob, or s3://bucket/prefix.")
    ],
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="Name of the recipe that is to be run, or path of a YAML file.")
    ] = "lvmae",
    overlay: _Overlays = None,
    dataset: Annotated[str, typer.Option("--dataset", metavar="NAME", help="What to call the clips.")] = "",
    root: Root = "workspace",
    overrides: _Overrides = None,
    quiet: Annotated[
        float, typer.Option("--quiet", metavar="S", min=0.1, help="Seconds without a change after which a burst is over.")
    ] = 5,
    most: Annotated[
        float, typer.Option("--most", metavar="S", min=0.1, help="Seconds of changes after which it is looked all the same.")
    ] = 30,
    poll: Annotated[
        float, typer.Option("--poll", metavar="S", min=1, help="Seconds between looks at a store, and at a quiet folder.")
    ] = 60,
    verbose: Verbose = False,
) -> None:
    """Tell the Prefect server when complete videos landed in a source, so that its automation starts the pipeline at once.

    Runs until it is ended, and writes nothing. A burst of files is told once; an incomplete file is not told. What could not be
    told, because the server was away, is told later, and what this command missed the deployment `sensor` finds.
    """
    with reporting(verbose):
        from pipeline import environment

        environment.prepare()
        from pipeline.orchestration.landing import Landing
        from pipeline.orchestration.watch import watch

        named = _request(recipe, overlay, source, overrides)
        watch(Landing.of(named, dataset=dataset, root=root), root=root, quiet_s=quiet, most_s=most, poll_s=poll)


def _verify(root: Root = "workspace", as_json: Json = False, verbose: Verbose = False) -> None:
    """Read every file of every artifact and compare it with its recorded sha256. Exit code 1 when something is damaged."""
    with reporting(verbose):
        from pipeline.commands.inspection import show_damage

        whole = show_damage(root=root, as_json=as_json)
    if not whole:
        raise typer.Exit(1)


def _recipes(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="Print this recipe with every default spelled out.")
    ] = None,
    overlay: _Overlays = None,
    source: _Source = None,
    overrides: _Overrides = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the recipes and overlays that come with the project, or print a recipe as it resolves, every default spelled out."""
    with reporting(verbose):
        if recipe:
            loaded = _request(recipe, overlay, source, overrides).load()
            sys.stdout.write(json.dumps(loaded.model_dump(mode="json")) + "\n" if as_json else loaded.resolved().decode())
            return
        names = {"recipes": recipe_names(), "overlays": overlay_names()}
        lines = [json.dumps(names)] if as_json else [f"{kind:<8}  {', '.join(known)}" for kind, known in names.items()]
        sys.stdout.write("".join(f"{line}\n" for line in lines))


def _request(
    recipe: str, overlay: list[str] | None, source: str | None, overrides: list[str] | None, snapshot: str | None = None
) -> "Request":
    from pipeline.recipe import Request

    return Request(
        recipe=recipe, overlays=tuple(overlay or ()), source=source, overrides=tuple(overrides or ()), snapshot=snapshot
    )
