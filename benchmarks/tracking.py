"""What tracking costs a pretraining: with MLflow there, with a server that refuses, with one that never answers, and without.

``python benchmarks/tracking.py`` pretrains the shrunk recipe again and again, each way in turn, in one process per
repetition. Afterwards everything that waits is sent to the server that is there, and every measurement is counted.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common
from benchmarks._common import rounded
from pipeline.console import Terminal
from pipeline.environment import prepare
from pipeline.recipe import Request
from pipeline.runner import Observer, Report, Run
from pipeline.tracking.outbox import Letters
from pipeline.tracking.sending import Sender
from pipeline.tracking.tracker import Tracker

WAYS = ("without", "reachable", "refuses", "never answers")
LOG_EVERY_STEPS = 5
FIRST_INTERVALS = 5
"""Left out: caches fill, and the interpreter warms up."""
RESAMPLES = 2000


def main() -> None:
    """Measure, print and write the result."""
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--from", dest="made", type=Path, metavar="ROOT", help="a root in which the shrunk recipe ran (made)")
    parser.add_argument("--repetitions", type=int, help="trainings per way (8; quick: 1)")
    parser.add_argument("--steps", type=int, help="steps of a training (400; quick: 60)")
    parser.add_argument("--minutes", type=float, default=60, help="no repetition begins after so long (60)")
    parser.add_argument("--server", metavar="URL", help="an MLflow server that is there already (one is started)")
    parser.add_argument("--child", nargs=3, metavar=("PLACE", "STEPS", "ADDRESSES"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    prepare()
    if options.child:
        place, steps, addresses = options.child
        _child(Path(place), int(steps), json.loads(addresses))
        return
    repetitions = options.repetitions or (1 if options.quick else 8)
    steps = options.steps or (60 if options.quick else 400)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        made = options.made or _made(Path(place) / "made")
        found, counted = _measure(
            made, Path(place), options.server, repetitions=repetitions, steps=steps, minutes=options.minutes
        )
    rows = [_row(way, [each[way] for each in found], counted.get(way)) for way in WAYS]
    result = {
        "steps": steps,
        "repetitions": len(found),
        "rows": rows,
        "ratios": _ratios(found, counted),
        "noise": _noise(found),
        "machine": _common.machine(),
    }
    _common.say(_common.table(rows))
    _common.finish("tracking", result, out=options.out)


def _made(root: Path) -> Path:
    stages = ("shard", "tokenizer", "precompute")
    for stage in stages:
        argv = [
            sys.executable,
            "-m",
            "pipeline",
            stage,
            "lvmae",
            "--overlay",
            "demo",
            "--overlay",
            "smoke",
            "--root",
            str(root),
        ]
        subprocess.run([*argv, "--no-tracking"], check=True, cwd=_common.ROOT, stdout=subprocess.DEVNULL)
    return root


def _measure(
    made: Path, place: Path, running: str | None, *, repetitions: int, steps: int, minutes: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What every repetition said of every way; and how many measurements the server holds of how many in the end."""
    deadline = time.monotonic() + 60 * minutes
    found: list[dict[str, Any]] = []
    counted = {way: {"logged": 0, "there": 0} for way in WAYS[1:]}
    with _server(running, place) as server, _blackhole() as hole, socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # a port that nobody listens on, and that nobody else gets
        refusing = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        addresses = {"without": "", "reachable": server, "refuses": refusing, "never answers": hole}
        for number in range(repetitions):
            if found and time.monotonic() > deadline:
                break
            order = [*WAYS[number % 4 :], *WAYS[: number % 4]]
            folder = place / f"repetition-{number}"
            for way in order:
                _roots(made, folder / way.replace(" ", "-"))
            ordered = json.dumps({way: addresses[way] for way in order})
            argv = [sys.executable, __file__, "--child", str(folder), str(steps), ordered]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            said = json.loads(done.stdout.splitlines()[-1])
            found.append(said)
            for way, numbers in counted.items():
                numbers["logged"] += said[way]["measurements"]
                numbers["there"] += _arrived(folder / way.replace(" ", "-"), server, said[way]["run"])
            shutil.rmtree(folder)
            _common.say(f"repetition {number + 1} of {repetitions}: {_wall(said)}")
    return found, counted


@contextlib.contextmanager
def _server(running: str | None, place: Path) -> Iterator[str]:
    """The address of an MLflow server: one that is there, or one that is started and ended."""
    if running:
        yield running
        return
    from tests import servers

    servers.START_S = 600.0  # a busy machine is no reason to measure nothing
    with servers.mlflow_server(place / "mlflow") as started:
        yield started


def _roots(made: Path, root: Path) -> None:
    """A root of its own for one training, with what it reads."""
    for name in ("clips", "sources", "tokenizers", "targets"):
        shutil.copytree(made / name, root / name)


def _wall(said: Mapping[str, Any]) -> str:
    return ", ".join(f"{way} {1000 * said[way]['wall_s']:.1f} ms" for way in WAYS)


def _arrived(root: Path, server: str, key: str) -> int:
    """Send what still waits below a root, and count the measurements of its training in the store."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_TRACKING_URI"] = server
    Sender(root).send_all()
    assert not Letters.below(root), "something still waits"
    client = MlflowClient(tracking_uri=server)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`lvmae.benchmark` = '{key}' and tags.`lvmae.stage` = 'pretrain'")
    assert len(runs) == 1, f"{len(runs)} runs instead of one"
    return sum(len(client.get_metric_history(runs[0].info.run_id, name)) for name in runs[0].data.metrics)


@contextlib.contextmanager
def _blackhole() -> Iterator[str]:
    """The address of a server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        held: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in held:
            connection.close()


# In the child


class Clock(Terminal):
    """An observer that reads clocks whenever the training reports."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.points: list[tuple[int, float, float]] = []
        self.own_s: list[float] = []
        self.measurements = 0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Note the wall clock, the processor time of this thread, and what the training's own clock says."""
        self.measurements += len(values)
        if "step_s" in values:
            self.points.append((step, time.perf_counter(), time.thread_time()))
            self.own_s.append(values["step_s"])

    def stage_finished(self, report: Report) -> None:
        """Count what the tracker makes of the end as well."""
        self.measurements += len(report.outcome.counts) + len(report.outcome.metrics) + 3

    def intervals(self) -> list[tuple[float, float]]:
        """Wall and processor seconds per step, from one report to the next."""
        pairs = list(zip(self.points, self.points[1:], strict=False))[FIRST_INTERVALS:]
        return [((b[1] - a[1]) / (b[0] - a[0]), (b[2] - a[2]) / (b[0] - a[0])) for a, b in pairs]


class Timed(Tracker):
    """A tracker that adds up the processor time that the training's thread spends in it while it trains."""

    spent_s = 0.0

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record, timed."""
        begun = time.thread_time()
        super().log(step, values)
        self.spent_s += time.thread_time() - begun

    def show(self, step: int, name: str, png: bytes) -> None:
        """Record, timed."""
        begun = time.thread_time()
        super().show(step, name, png)
        self.spent_s += time.thread_time() - begun


def _child(place: Path, steps: int, addresses: Mapping[str, str]) -> None:
    said = {way: _train(place / way.replace(" ", "-"), steps, way, address) for way, address in addresses.items()}
    sys.stdout.write(json.dumps(said) + "\n")


def _train(root: Path, steps: int, way: str, address: str) -> dict[str, Any]:
    os.environ["MLFLOW_TRACKING_URI"] = address
    overrides = (
        f"pretrain.optimization.num_steps={steps}",
        f"pretrain.optimization.log_every_steps={LOG_EVERY_STEPS}",
        f"pretrain.optimization.checkpoint_every_steps={steps}",
    )
    request = Request(recipe="lvmae", overlays=("demo", "smoke"), overrides=overrides)
    recipe = request.load()
    run = Run(request, recipe, str(root))
    clock, key = Clock(), f"{root.parent.parent.name}-{root.parent.name}-{root.name}"
    tracker = Timed(run.workspace, recipe, {"lvmae.benchmark": key}, stage_tags=lambda: {"lvmae.benchmark": key})
    observers: list[Observer] = [clock] if way == "without" else [clock, tracker]
    begun, processor = time.perf_counter(), time.thread_time()
    list(Run(request, recipe, str(root), observers).stages(("pretrain",)))
    ended = time.perf_counter()
    intervals = clock.intervals()
    return {
        "run": key,
        "wall_s": statistics.median(wall for wall, _ in intervals),
        "cpu_s": statistics.median(cpu for _, cpu in intervals),
        "training_clock_s": statistics.median(clock.own_s[FIRST_INTERVALS:]),
        "in_tracker_share": tracker.spent_s / (clock.points[-1][2] - clock.points[0][2]),
        "cpu_total_s": time.thread_time() - processor,
        "ending_s": ended - clock.points[-1][1],
        "whole_s": ended - begun,
        "measurements": clock.measurements,
    }


# The result


def _row(way: str, found: Sequence[Mapping[str, Any]], counted: Mapping[str, int] | None) -> dict[str, Any]:
    def median(name: str) -> float:
        return statistics.median(each[name] for each in found)

    return {
        "way": way,
        "step_wall_ms": rounded(1000 * median("wall_s"), 3),
        "step_clock_ms": rounded(1000 * median("training_clock_s"), 3),
        "step_cpu_ms": rounded(1000 * median("cpu_s"), 3),
        "in_tracker_percent": rounded(100 * median("in_tracker_share"), 3),
        "ending_s": rounded(median("ending_s"), 2),
        "measurements_logged": counted["logged"] if counted else None,
        "measurements_there": counted["there"] if counted else None,
    }


def _ratios(found: Sequence[Mapping[str, Any]], counted: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Medians over repetitions of a way over the way without, in the same repetition, with an interval of 90 %."""
    ratios: dict[str, Any] = {}
    for way in WAYS[1:]:
        name = way.replace(" ", "_")
        for clock in ("cpu", "wall"):
            pairs = [each[way][f"{clock}_s"] / each["without"][f"{clock}_s"] for each in found]
            ratios[f"step_{clock}_{name}"] = rounded(statistics.median(pairs))
            ratios[f"step_{clock}_{name}_interval"] = _interval(pairs)
        ratios[f"in_tracker_{name}"] = rounded(statistics.median(each[way]["in_tracker_share"] for each in found), 6)
        ratios[f"measurements_there_{name}"] = rounded(counted[way]["there"] / counted[way]["logged"])
    return ratios


def _interval(values: Sequence[float]) -> list[float]:
    draws = random.Random(0)
    medians = sorted(statistics.median(draws.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return [rounded(medians[RESAMPLES // 20]), rounded(medians[-RESAMPLES // 20])]


def _noise(found: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How much the way without differs from repetition to repetition: standard deviation over mean."""
    if len(found) < 2:
        return {"cpu": None, "wall": None}
    values = {clock: [each["without"][f"{clock}_s"] for each in found] for clock in ("cpu", "wall")}
    return {clock: rounded(statistics.stdev(each) / statistics.mean(each)) for clock, each in values.items()}


if __name__ == "__main__":
    main()
