"""From a file that landed to the rerun: how soon by event and by the sensor, runs for a burst, and half-uploaded files.

    python benchmarks/landing.py [--data DIR] [--trials 5] [--period 30] [--files 100] [--uploads 100] [--quick]

A real Prefect server, its workers and ``lvmae watch`` run as processes of this machine, with the deployments and automations of
``prefect.yaml``. The run that is started only plans, so that what is timed is the way to it. A file has landed when its last
byte is written; a run has started when its state is Running. Then real videos are uploaded piece by piece, cut at drawn places,
with pauses longer than a file takes to settle, while the stage ``shard`` runs. ``--quick``: one trial, 10 files, 10 uploads.
"""

import argparse
import contextlib
import datetime
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common
from tests import servers
from tests.servers import PrefectServer

_OVERLAY = "demo"
_AIM_EVENT_S = 60.0
_AIM_SENSOR_S = 10.0
"""Beyond one period."""
_QUIET_S = 5.0
_SETTLE_S = 0.2
_PAUSE_S = 0.3
_BURST_S = 10.0
"""How long a burst of files takes to arrive."""
_REST_S = 45.0
"""How long it is waited for runs that should not come."""
_PATIENCE_S = 900.0
"""How long a machine that is busy with other things may take to start a server or a run."""
_ROUND = 10
"""Uploads that go on at a time."""
_ALONE_SHARE = 0.25
"""Of uploads whose whole length is set aside first, as some programs do."""


def main() -> None:
    """Measure, print a table, write the result."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found, origin = _common.videos(asked.data and [asked.data], place / "videos")
        videos = sorted(found.iterdir())
        result = {
            "machine": _common.machine(),
            "setting": {name: getattr(asked, name) for name in ("trials", "period", "files", "uploads", "seed")},
            "data": origin,
            **_starts(asked, videos, place),
            "uploads": _uploads(asked, videos, place / "uploads"),
        }
    result["ratios"] = _ratios(asked, result)
    _common.say(_common.table(_rows(asked, result)))
    _common.finish("landing", result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, help="real videos; otherwise those of the other benchmarks, or generated ones")
    parser.add_argument("--trials", type=int, help="files whose way to a run is timed, by event and by the sensor (5; 1)")
    parser.add_argument("--period", type=int, default=30, help="seconds between two looks of the sensor (30)")
    parser.add_argument("--files", type=int, help="files of a burst (100; 10)")
    parser.add_argument("--uploads", type=int, help="half-uploaded files (100; 10)")
    parser.add_argument("--seed", type=int, default=0, help="of moments, places and pieces (0)")
    asked = parser.parse_args()
    asked.trials = asked.trials or (1 if asked.quick else 5)
    asked.files = asked.files or (10 if asked.quick else 100)
    asked.uploads = asked.uploads or (10 if asked.quick else 100)
    return asked


def _rows(asked: argparse.Namespace, result: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for way, aim in (("event", f"{_AIM_EVENT_S:.0f}"), ("sensor", f"{asked.period + _AIM_SENSOR_S:.0f}")):
        times = [each["started_s"] for each in result[way]]
        rows.append({"what": f"seconds to the rerun by {way}, median and most", "is": _pair(times), "aim": f"≤ {aim}"})
    burst, uploads = result["burst"], result["uploads"]
    rows.append({"what": f"runs for a burst of {burst['files']} files", "is": str(burst["runs"]), "aim": "1"})
    rows.append({"what": f"half-uploaded of {uploads['trials']} ingested", "is": str(uploads["ingested_half"]), "aim": "0"})
    rows.append({"what": "completed afterwards and ingested", "is": str(uploads["ingested_whole"]), "aim": "all"})
    return rows


def _pair(times: Sequence[float]) -> str:
    return f"{median(times):.1f}, {max(times):.1f}"


def _ratios(asked: argparse.Namespace, result: dict[str, Any]) -> dict[str, float]:
    uploads = result["uploads"]
    return {
        "event_most_over_aim": _common.rounded(max(each["started_s"] for each in result["event"]) / _AIM_EVENT_S, 3),
        "sensor_most_over_aim": _common.rounded(
            max(each["started_s"] for each in result["sensor"]) / (asked.period + _AIM_SENSOR_S), 3
        ),
        "runs_per_burst": float(result["burst"]["runs"]),
        "half_uploaded_ingested": uploads["ingested_half"] / uploads["trials"],
        "completed_ingested": uploads["ingested_whole"] / uploads["trials"],
    }


# a server, its workers, and files that land


def _starts(asked: argparse.Namespace, videos: Sequence[Path], place: Path) -> dict[str, Any]:
    incoming, root, draw = place / "incoming", place / "root", random.Random(asked.seed)
    incoming.mkdir()
    servers.START_S = _PATIENCE_S
    with contextlib.ExitStack() as stack:
        _common.say("a server and its workers start ...")
        server = stack.enter_context(servers.prefect_server(place / "prefect"))
        _deploy(server)
        pipeline = servers.deployment(server, "lvmae/pipeline")
        planned = {**pipeline["parameters"], "plan_only": True}
        servers.call(server, "PATCH", f"/deployments/{pipeline['id']}", {"parameters": planned})
        for pool in ("gpu", "cpu"):
            stack.enter_context(servers.worker(server, pool=pool, root=root))
        world = _World(server, pipeline["id"], incoming, list(videos))
        with _watching(server, incoming, root):
            by_event = [world.timed() for _ in _counted(asked.trials, "a file, by event")]
            burst = world.burst(asked.files)
        with _sensing(server, incoming, root, asked.period):
            by_sensor = []
            for _ in _counted(asked.trials, "a file, by the sensor, no event"):
                time.sleep(draw.uniform(0, asked.period))
                by_sensor.append(world.timed())
        looks = _looks(server)
    return {"event": by_event, "sensor": by_sensor, "burst": burst, "sensor_looks": looks}


def _deploy(server: PrefectServer) -> None:
    """The two deployments that take part, with the automation that belongs to one, and the pools that they run in."""
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    for pool in ("cpu", "gpu"):
        servers.call(server, "POST", "/work_pools/", {"name": pool, "type": "process", "base_job_template": template})
    servers.prefect(server, "--no-prompt", "deploy", "--name", "pipeline", "--name", "sensor")


def _counted(amount: int, what: str) -> Iterator[int]:
    for number in range(amount):
        _common.say(f"{what}: {number + 1} of {amount}")
        yield number


class _World:
    """A landing area and the runs that are started for it."""

    def __init__(self, server: PrefectServer, pipeline: str, incoming: Path, videos: list[Path]) -> None:
        self._server = server
        self._pipeline = pipeline
        self._incoming = incoming
        self._videos = videos
        self._number = 0

    def timed(self) -> dict[str, float]:
        """Seconds from a file's last byte until a run for it was made, and until it had started."""
        before = {run["id"] for run in self._runs()}
        landed = self._land()
        servers.eventually(lambda: len(self._runs()) > len(before), patience_s=_PATIENCE_S)
        (run,) = [run for run in self._runs() if run["id"] not in before]
        ended = servers.wait_for(self._server, run["id"], patience_s=_PATIENCE_S)
        if ended["state_type"] != "COMPLETED":
            raise RuntimeError(f"the run that was started ended as {ended['state_name']}: {ended['state']}")
        times = {"made_s": _since(landed, run["created"]), "started_s": _since(landed, ended["start_time"])}
        _common.say(str(times))
        return times

    def burst(self, amount: int) -> dict[str, Any]:
        """How many runs are made for many files that arrive one after the other."""
        _common.say(f"a burst of {amount} files")
        before = len(self._runs())
        for _ in range(amount):
            landed = self._land()
            time.sleep(_BURST_S / amount)
        servers.eventually(lambda: len(self._runs()) > before, patience_s=_PATIENCE_S)
        time.sleep(_REST_S)
        made = self._runs()[before:]
        for run in made:
            servers.wait_for(self._server, run["id"], patience_s=_PATIENCE_S)
        first = servers.flow_run(self._server, made[0]["id"])
        return {"files": amount, "runs": len(made), "started_s": _since(landed, first["start_time"])}

    def _land(self) -> datetime.datetime:
        """Copy the next video; when its last byte was there."""
        video = self._videos[self._number % len(self._videos)]
        shutil.copyfile(video, self._incoming / f"{self._number:04d}{video.suffix}")
        self._number += 1
        return datetime.datetime.now(datetime.UTC)

    def _runs(self) -> list[dict[str, Any]]:
        """Runs that were started for what landed, oldest first."""
        deployments = {"id": {"any_": [self._pipeline]}}
        found = servers.flow_runs(self._server, deployments=deployments)
        return sorted((run for run in found if run["parameters"].get("landed")), key=lambda run: str(run["created"]))


@contextlib.contextmanager
def _watching(server: PrefectServer, incoming: Path, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    options = ("--recipe", "lvmae", "--overlay", _OVERLAY, "--root", str(root), "--quiet", str(_QUIET_S))
    argv = [sys.executable, "-m", "pipeline", "watch", str(incoming), *options]
    log = server.home / "watch.log"
    with servers.alive(servers.spawn(argv, log=log, environment=server.environment)) as process:
        servers.eventually(lambda: log.exists() and "watching" in log.read_text(), patience_s=_PATIENCE_S)
        yield process


@contextlib.contextmanager
def _sensing(server: PrefectServer, incoming: Path, root: Path, period_s: int) -> Iterator[None]:
    """The sensor's schedule, on, with what it looks at."""
    sensor = servers.deployment(server, "lvmae-sensor/sensor")
    parameters = {"recipe": "lvmae", "overlays": [_OVERLAY], "source": str(incoming), "root": str(root), "plan_only": True}
    schedules = [{"schedule": {"interval": period_s}, "active": True}]
    servers.call(server, "PATCH", f"/deployments/{sensor['id']}", {"parameters": parameters, "schedules": schedules})
    yield
    servers.call(server, "PATCH", f"/deployments/{sensor['id']}", {"paused": True})


def _looks(server: PrefectServer) -> dict[str, Any]:
    """How often the sensor looked, and what a look that found nothing new took from its start to its end."""
    runs = servers.flow_runs(server, flows={"name": {"any_": ["lvmae-sensor"]}})
    ended = [run for run in runs if run["state_type"] == "COMPLETED"]
    idle = [run["total_run_time"] for run in ended if "nothing new" in str(run["state"].get("message"))]
    quiet = [run["total_run_time"] for run in ended]
    return {"looks": len(ended), "idle_s": _common.rounded(median(idle or quiet), 3) if ended else None}


def _since(landed: datetime.datetime, moment: str) -> float:
    return round((datetime.datetime.fromisoformat(moment) - landed).total_seconds(), 2)


# half-uploaded files


def _uploads(asked: argparse.Namespace, videos: Sequence[Path], place: Path) -> dict[str, Any]:
    """Uploads that stop twice at drawn places, with a run of the stage and a look at what landed after each piece."""
    draw = random.Random(asked.seed + 1)
    folder = place / "incoming"
    folder.mkdir(parents=True)
    stage = _stage(folder, place / "root")
    counts = {"trials": 0, "looks_at_half": 0, "ingested_half": 0, "quarantined_half": 0, "landed_half": 0}
    for first in range(0, asked.uploads, _ROUND):
        _common.say(f"uploads: {first + 1} to {min(first + _ROUND, asked.uploads)} of {asked.uploads}")
        batch = [
            _Upload(folder, number, draw.choice(videos), draw) for number in range(first, min(first + _ROUND, asked.uploads))
        ]
        whole = stage()["committed"]
        for piece in range(2):
            for upload in batch:
                upload.send(piece)
            time.sleep(_PAUSE_S)
            found = stage()
            counts["looks_at_half"] += len(batch)
            counts["ingested_half"] += found["committed"] - whole
            counts["quarantined_half"] += found["quarantined"]
            counts["landed_half"] += found["landed"]
        for upload in batch:
            upload.finish()
        time.sleep(_PAUSE_S)
        stage()
        counts["trials"] += len(batch)
    return {**counts, "ingested_whole": stage()["committed"]}


class _Upload:
    """One file that is uploaded in three pieces, of which some set the whole length aside first."""

    def __init__(self, folder: Path, number: int, video: Path, draw: random.Random) -> None:
        # A box that players pass over makes its bytes its own: the same video comes more than once.
        self._data = video.read_bytes() + (12).to_bytes(4) + b"free" + number.to_bytes(4)
        self._path = folder / f"{number:04d}{video.suffix}"
        self._ends = sorted(draw.randrange(1, len(self._data)) for _ in range(2))
        self._is_set_aside = draw.random() < _ALONE_SHARE

    def send(self, piece: int) -> None:
        """Write up to where the upload pauses."""
        end = self._ends[piece]
        rest = len(self._data) - end if self._is_set_aside and _index_comes_last(self._data) else 0
        self._path.write_bytes(self._data[:end] + bytes(rest))

    def finish(self) -> None:
        """Write all of it."""
        self._path.write_bytes(self._data)


def _index_comes_last(data: bytes) -> bool:
    """Of an mp4; only then do its headers tell that a part is still zeros."""
    return 0 <= data.find(b"mdat") < data.find(b"moov")


def _stage(folder: Path, root: Path) -> Callable[[], dict[str, int]]:
    """Runs the stage, and says what it came to and how many had landed before it."""
    from stages import shard
    from stages.arrivals import arrivals
    from stages.errors import SourceMissing
    from stages.storage.workspace import Workspace

    config = shard.Config.model_validate(
        {
            "source": {"name": "folder", "path": str(folder)},
            "clip": {"num_frames": 16, "min_frames": 1, "size_px": 32, "encoding": {"name": "h264", "preset": "ultrafast"}},
            "settle_s": _SETTLE_S,
            "limits": {"max_frames": 100_000},
            "max_failed_share": 1,
        }
    )
    workspace = Workspace(root)

    def run() -> dict[str, int]:
        if not any(folder.iterdir()):
            return {"committed": 0, "quarantined": 0, "landed": 0}
        landed = len(arrivals(config, workspace).landed)
        try:
            counts = shard.run(config, {}, workspace).counts
        except SourceMissing:  # nothing is complete yet, so there is no clip
            return {"committed": 0, "quarantined": 0, "landed": landed}
        return {"committed": counts["committed"], "quarantined": counts["quarantined"], "landed": landed}

    return run


if __name__ == "__main__":
    main()
