"""What Prefect costs: the stage shard over many sources as a Prefect flow with a local server, and without Prefect.

    python benchmarks/orchestration.py [--sources 2000] [--per-shard 32] [--rounds 1] [--work DIR] [--quick]

Sources are copies of one video that differ in their bytes, of two sizes: ``kinetics`` is as long and as large as a video of
that set, 300 frames at 340 x 256; ``least`` has 16 frames at 64 x 64, so that a source is as little work as it can be and what
Prefect adds weighs most. Both ways read the same sources with the same command, ``lvmae shard``, once with ``--engine prefect``
and a real server with SQLite on the same machine; every round changes which goes first, and all artifacts must come out equal.
Counted are wall time, processor time with that of the server, the server's memory, and its database. ``--quick`` takes 100
sources.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import imageio_ffmpeg

from benchmarks import _common
from tests import servers
from tests.faults import processes
from tests.pipelines import artifact_files

WAYS = ("plain", "prefect")
SIZES = {
    "kinetics": ("340x256", 300, ["--overlay", "demo"]),
    "least": ("64x64", 16, ["--overlay", "demo", "--overlay", "smoke"]),
}
"""Frames of the sources of each size, how many, and the overlays with which they are read."""
_DRAIN_S = 180.0
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """What one run took."""

    wall_s: float
    cpu_s: float
    """Of the run's own processes."""
    server_cpu_s: float


def main() -> None:
    """Generate, run both ways in turn, print a table, write the result."""
    asked = _arguments()
    processes.adopt_orphans()
    folder = Path(tempfile.mkdtemp(prefix="orchestration-", dir=asked.work))
    try:
        with servers.prefect_server(folder / "home") as server:
            found = {size: _measure(size, asked, folder, server) for size in SIZES}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _common.say(f"\n{_common.table([row for one in found.values() for row in one['rows']])}\n")
    result = {
        "machine": _common.machine(),
        "setting": {"sources": asked.sources, "sources_per_shard": asked.per_shard, "rounds": asked.rounds},
        "sizes": found,
        "ratios": {
            "overhead": found["kinetics"]["overhead"],
            "overhead_least": found["least"]["overhead"],
            "processor_overhead": found["kinetics"]["processor_overhead"],
        },
    }
    _common.finish("orchestration", result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--sources", type=int, help="videos (2000; 100 with --quick)")
    parser.add_argument("--per-shard", type=int, default=32, help="sources of a task (32)")
    parser.add_argument("--rounds", type=int, default=1, help="runs each way (1)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where a temporary folder is made")
    asked = parser.parse_args()
    asked.sources = asked.sources or (100 if asked.quick else 2000)
    return asked


def _sources(size: str, folder: Path, amount: int) -> None:
    """One video, and copies that differ in a box of free space at the end, which readers skip."""
    folder.mkdir()
    first = folder.parent / f"{size}.mp4"
    frames, num_frames, _ = SIZES[size]
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", f"testsrc2=s={frames}:r=25"]
    subprocess.run([*argv, "-frames:v", str(num_frames), "-pix_fmt", "yuv420p", str(first)], check=True)
    data = first.read_bytes()
    for number in range(amount):
        (folder / f"{number:05d}.mp4").write_bytes(data + (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big"))


def _measure(size: str, asked: argparse.Namespace, folder: Path, server: servers.PrefectServer) -> dict[str, Any]:
    _sources(size, folder / f"{size}-sources", asked.sources)
    time.sleep(3)  # a younger file might still be written, and would be left for later
    before, tasks_before = _server(server), _num_tasks(server)
    costs: dict[str, list[Cost]] = {way: [] for way in WAYS}
    files: list[Mapping[str, str]] = []
    peak = before["memory_bytes"]
    for number in range(asked.rounds):
        for way in WAYS if number % 2 == 0 else WAYS[::-1]:
            root = folder / f"{size}-{way}-{number}"
            costs[way].append(_run(way, size, root, asked, server))
            peak = max(peak, _server(server)["memory_bytes"])
            files.append(artifact_files(root))
            assert files[0] == files[-1], "both ways must make the same bytes"
            shutil.rmtree(root)
            _common.say(f"{size}, {way}: {costs[way][-1]}")
    num_tasks = _num_tasks(server) - tasks_before
    after = _server(server)
    rows = [
        {
            "source": size,
            "way": way,
            "wall s": statistics.median(cost.wall_s for cost in costs[way]),
            "processor s": statistics.median(cost.cpu_s for cost in costs[way]),
            "server's processor s": statistics.median(cost.server_cpu_s for cost in costs[way]),
        }
        for way in WAYS
    ]
    plain, prefect = rows
    total = prefect["processor s"] + prefect["server's processor s"]
    return {
        "rows": rows,
        "ways": {way: [cost._asdict() for cost in costs[way]] for way in WAYS},
        "task_runs": num_tasks,
        "server": {
            "memory_bytes_before": before["memory_bytes"],
            "memory_bytes_peak": max(peak, after["memory_bytes"]),
            "database_growth_bytes": after["database_bytes"] - before["database_bytes"],
            "database_growth_bytes_per_task_run": round((after["database_bytes"] - before["database_bytes"]) / num_tasks),
        },
        "overhead": _common.rounded(prefect["wall s"] / plain["wall s"]),
        "overhead_s": _common.rounded(prefect["wall s"] - plain["wall s"]),
        "processor_overhead": _common.rounded(total / plain["processor s"]),
    }


def _num_tasks(server: servers.PrefectServer) -> int:
    return int(servers.call(server, "POST", "/task_runs/count", {}))


def _run(way: str, size: str, root: Path, asked: argparse.Namespace, server: servers.PrefectServer) -> Cost:
    argv = [sys.executable, "-m", "pipeline", "shard", "lvmae", *SIZES[size][2], "--no-tracking", "--root", str(root)]
    argv += ["--source", str(root.parent / f"{size}-sources"), "--set", f"shard.sources_per_shard={asked.per_shard}"]
    argv += ["--engine", "prefect"] if way == "prefect" else []
    environment = server.environment if way == "prefect" else servers.clean_environment()
    num_tasks = _num_tasks(server)
    begun, cpu_s, server_cpu_s = time.perf_counter(), _children_s(), _server(server)["cpu_s"]
    log = root.with_suffix(".log")
    with log.open("wb") as output:
        done = subprocess.run(argv, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=_common.ROOT, check=False)
    if done.returncode:
        raise RuntimeError(log.read_text()[-3000:])
    wall_s = time.perf_counter() - begun
    _reap_orphans(server)
    if way == "prefect":
        _drained(server, num_tasks + -(-asked.sources // asked.per_shard) + 1)
    return Cost(round(wall_s, 2), round(_children_s() - cpu_s, 2), round(_server(server)["cpu_s"] - server_cpu_s, 2))


def _reap_orphans(server: servers.PrefectServer) -> None:
    """Wait for what a run left to this process, such as the server that its workers were forked from: it counts as well."""
    for pid in processes.children(os.getpid()):
        if pid != server.process.pid:
            os.waitpid(pid, 0)


def _children_s() -> float:
    """Processor time of all that this process started and that has ended, with what they started and waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _server(server: servers.PrefectServer) -> dict[str, Any]:
    """What the server takes now."""
    tree = [server.process.pid, *processes.descendants(server.process.pid)]
    stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split() for pid in tree]
    database = [path.stat().st_size for path in server.home.glob("prefect.db*")]
    return {
        "cpu_s": sum(int(field[11]) + int(field[12]) for field in stats) / _TICKS,
        "memory_bytes": sum(int(field[21]) for field in stats) * os.sysconf("SC_PAGE_SIZE"),
        "database_bytes": sum(database),
    }


def _drained(server: servers.PrefectServer, wanted: int) -> None:
    """Wait until the server knows all task runs, for it takes them in a little late; what it does then counts as its work."""
    deadline = time.monotonic() + _DRAIN_S
    while _num_tasks(server) < wanted:
        assert time.monotonic() < deadline, f"the server knows fewer than {wanted} task runs"
        time.sleep(1)


if __name__ == "__main__":
    main()
