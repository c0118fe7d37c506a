"""What the benchmarks share: arguments, facts about the machine, what a process tree cost, tables and results.

A benchmark prints a table, writes ``results/<name>.json`` and ends with one line of JSON that holds its ratios. Nothing in a
result says whose machine it was or where its files lay.
"""

import argparse
import ctypes
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"

_PACKAGES = ("av", "imageio-ffmpeg", "numpy", "onnxruntime", "pyarrow", "torch", "torchcodec", "video2dataset", "webdataset")
_ADOPT_ORPHANS = 36
"""``PR_SET_CHILD_SUBREAPER`` of prctl(2)."""
_SAMPLE_S = 0.2
_SUFFIXES = frozenset({".avi", ".mkv", ".mov", ".mp4", ".webm"})


class Spent(NamedTuple):
    """What a process and all that it started cost."""

    wall_s: float
    cpu_s: float
    """User and system time of every process of the tree."""
    peak_rss_bytes: Mapping[str, int]
    """The most memory that any one process of a program took at a time, by the program's name."""
    peak_tree_bytes: int
    """The most that all of them took together; pages that they share count in each."""
    output: str


def arguments(description: str) -> argparse.ArgumentParser:
    """A command line with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description.strip().splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="about a minute: less data, one repetition")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the JSON goes (benchmarks/results)")
    return parser


def machine() -> dict[str, Any]:
    """Facts that decide a measurement: processor, cores, memory, versions, and how busy the machine is now."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "ffmpeg": _ffmpeg_version(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def videos(folders: Sequence[Path] | None, place: Path, *, every: int = 1) -> tuple[Path, list[str]]:
    """A folder with copies of every so many-th video, and where they come from, by the folders' own names.

    Args:
        folders: where to look. None takes ``actions`` and ``skate`` below ``$LVMAE_DATA`` or ``../shared/data``; where there
            are none, clips are generated.
        place: the folder to fill.
        every: of the videos in the order of their names, every how many-th is taken.
    """
    place.mkdir(parents=True, exist_ok=True)
    wanted = real_folders() if folders is None else folders
    found = [(folder, path) for folder in wanted for path in sorted(folder.rglob("*")) if path.suffix in _SUFFIXES]
    for folder, path in found[::every]:
        shutil.copyfile(path, place / "-".join([folder.name, *path.relative_to(folder).parts]))
    if not found:
        _generate(place, amount=max(4, 40 // every))
        return place, ["generated"]
    return place, [folder.name for folder in wanted]


def real_folders() -> list[Path]:
    """``actions`` and ``skate`` below ``$LVMAE_DATA`` or ``../shared/data``, those that there are."""
    root = Path(os.environ.get("LVMAE_DATA", ROOT.parent / "shared" / "data"))
    return [folder for name in ("actions", "skate") if (folder := root / name).is_dir()]


def spend(argv: Sequence[str | Path], *, environment: Mapping[str, str] | None = None) -> Spent:
    """Run a program to its end and count what it cost, with all that it started; no other child may be running.

    Raises:
        RuntimeError: it failed.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0):
        raise RuntimeError("cannot adopt the processes that a benchmarked program leaves behind: Linux 3.4 or later is needed")
    begun = time.perf_counter()
    child = subprocess.Popen(
        [str(word) for word in argv], stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}, text=True
    )
    watch = _Watch(child.pid)
    assert child.stdout is not None  # it was asked for
    output = child.stdout.read()
    cpu_s, failed = _reap(child)
    wall_s = time.perf_counter() - begun
    watch.stop()
    if failed:
        raise RuntimeError(f"{' '.join(map(str, argv))[:300]}: ended with {failed}; what it printed:\n{output[-2000:]}")
    return Spent(wall_s, cpu_s, watch.peaks, watch.peak_tree, output)


def peak_bytes() -> int:
    """The most memory that this process took; unlike ``getrusage``, not that of its parent before it began."""
    return _kilobytes(_status(os.getpid()), "VmHWM")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as text, numbers to three digits and flush right."""
    names = list(rows[0])
    cells = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def finish(name: str, result: Mapping[str, Any], *, out: Path) -> None:
    """Write a result, which holds ``ratios``, and print its last line."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.json"
    path.write_text(json.dumps({"benchmark": name, **result}, indent=2) + "\n")
    say(json.dumps({"benchmark": name, "ratios": result["ratios"]}))


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def rounded(value: float, digits: int = 4) -> float:
    """A number to so many significant digits."""
    return float(f"{value:.{digits}g}")


def _generate(place: Path, *, amount: int) -> None:
    """Moving patterns under noise, of 4 to 9 seconds, which cost about as much to decode and encode as real videos."""
    import imageio_ffmpeg

    for number in range(amount):
        pattern = ("testsrc2", "mandelbrot", "life=mold=10:ratio=0.2")[number % 3]
        size = f"{':' if '=' in pattern else '='}s=640x360:r=25"
        argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", "-f", "lavfi", "-i", pattern + size]
        argv += ["-vf", f"noise=alls=12:allf=t:all_seed={number},format=yuv420p", "-t", str(4 + number % 6), "-c:v", "libx264"]
        subprocess.run([*argv, "-preset", "veryfast", "-threads", "1", str(place / f"{number:04d}.mp4")], check=True)


class _Watch:
    """Looks at the memory of a tree of processes a few times per second."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._over = threading.Event()
        self.peaks: dict[str, int] = {}
        self.peak_tree = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            total = 0
            for process in _tree(self._root):
                status = _status(process)
                name, peak, now = status.get("Name", "?"), _kilobytes(status, "VmHWM"), _kilobytes(status, "VmRSS")
                self.peaks[name] = max(self.peaks.get(name, 0), peak)
                total += now
            self.peak_tree = max(self.peak_tree, total)


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    found = [root]
    for process in found:
        try:
            tasks = list(Path(f"/proc/{process}/task").iterdir())
            found += [int(child) for task in tasks for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found


def _status(process: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _kilobytes(status: Mapping[str, str], field: str) -> int:
    return int(status.get(field, "0 kB").split()[0]) * 1024


def _reap(child: "subprocess.Popen[str]") -> tuple[float, int]:
    """The processor time of a child and of every orphan it leaves, and how the child itself ended."""
    cpu_s, failed = 0.0, 0
    while True:
        try:
            process, status, usage = os.wait4(-1, 0)
        except ChildProcessError:
            child.returncode = failed
            return cpu_s, failed
        cpu_s += usage.ru_utime + usage.ru_stime
        if process == child.pid:
            failed = os.waitstatus_to_exitcode(status)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 100 else f"{value:,.0f}"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ffmpeg_version() -> str | None:
    import imageio_ffmpeg

    return str(imageio_ffmpeg.get_ffmpeg_version())
