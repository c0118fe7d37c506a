"""Checks of this machine: its decoder, its processors, its memory, its clock, and the disk below a root."""

import contextlib
import fcntl
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.upkeep.findings import Check, fail, ok, warn
from pipeline.wording import size
from stages.errors import PipelineError
from stages.fan_out import num_cores
from stages.storage.publish import sha256_file, sync_folder
from stages.video_command import ffmpeg_binary

SHARED_MEMORY = Path("/dev/shm")

_FREE_BYTES = 10_000_000_000
_FREE_SHARE = 0.05
_SHARED_BYTES = 1_000_000_000
_OPEN_FILES = 1024
_SKEW_S = 2.0
_FIRST_YEAR = 2024
_TIMEOUT_S = 30


def machine() -> Iterator[Check]:
    """All of this machine but its disk. Its Python is one of the packages' requirements."""
    yield decoder()
    yield processor()
    yield shared_memory(SHARED_MEMORY)
    yield open_files()
    yield clock(time.time())


def storage(root: Path) -> Iterator[Check]:
    """The disk below a root; where there is no root yet, the folder that it would be made in."""
    place = next(path for path in (root, *root.parents) if path.exists())
    yield writable(place)
    yield locks(place)
    yield skew(place)
    usage, counts = shutil.disk_usage(place), os.statvfs(place)
    yield room(usage.free, usage.total)
    yield inodes(counts.f_favail, counts.f_files)


def decoder() -> Check:
    """The ffmpeg that decodes videos, run once."""
    remedy = "install imageio-ffmpeg again, or name a working ffmpeg with the variable IMAGEIO_FFMPEG_EXE"
    try:
        binary = ffmpeg_binary(None)
        done = subprocess.run([binary, "-version"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (PipelineError, OSError, subprocess.SubprocessError) as error:
        return fail("ffmpeg", f"does not run: {error}", remedy)
    first = done.stdout.partition("\n")[0].partition(" Copyright")[0]
    return ok("ffmpeg", f"{first}, sha256 {sha256_file(binary)[:16]}, {binary}")


def processor() -> Check:
    """Processors and GPUs as PyTorch sees them."""
    import torch  # seconds: only here

    threads, cores = torch.get_num_threads(), num_cores()
    gpus = [torch.cuda.get_device_name(place) for place in range(torch.cuda.device_count())]
    found = f"torch {torch.__version__}, {threads} threads on {cores} cores, {', '.join(gpus) or 'no GPU'}"
    if threads > cores:
        return warn("torch", found, f"set OMP_NUM_THREADS={cores}: more threads than cores fight for them")
    if torch.version.cuda and not gpus and Path("/dev/nvidia0").exists():
        return warn("torch", found, "there is a GPU that PyTorch cannot use: look at nvidia-smi and at the driver's version")
    return ok("torch", found)


def shared_memory(place: Path) -> Check:
    """What worker processes hand batches over in."""
    if not place.is_dir():
        return warn("shared memory", f"{place} is not there", "run with --ipc=host or --shm-size=1g in a container")
    total = shutil.disk_usage(place).total
    if total < _SHARED_BYTES:
        found = f"{place} has {size(total)}"
        return warn("shared memory", found, "give a container --shm-size=1g, or set num_workers of the stages to 0")
    return ok("shared memory", f"{place} has {size(total)}")


def open_files() -> Check:
    """How many files a process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        return warn("open files", f"{soft} at a time", f"raise the limit with `ulimit -n {min(hard, 4096)}`")
    return ok("open files", f"{soft} at a time")


def clock(now_s: float) -> Check:
    """Whether this machine knows what year it is."""
    spelled = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if time.gmtime(now_s).tm_year < _FIRST_YEAR:
        return fail("clock", spelled, "set the clock, for example with chrony: ages and certificates are wrong otherwise")
    return ok("clock", spelled)


def writable(place: Path) -> Check:
    """Whether files can be made below a root in the way that artifacts are: synced, renamed, linked."""
    name = f"writing below {place}"
    done = "create"
    try:
        with _probe(place) as folder:
            path = folder / "probe"
            path.write_bytes(b"probe")
            done = "fsync"
            with path.open("rb") as file:
                os.fsync(file.fileno())
            sync_folder(folder)
            done = "rename"
            path.replace(folder / "renamed")
            done = "hard link"
            os.link(folder / "renamed", folder / "linked")
    except OSError as error:
        if done == "hard link":
            remedy = "use a file system with hard links: manifests are published with one"
            return fail(name, f"{done}: {error.strerror}", remedy)
        return fail(name, f"{done}: {error.strerror}", "give another --root, or make this one writable for this user")
    return ok(name, "create, fsync, rename and hard link work")


def locks(place: Path) -> Check:
    """Whether a lock that one process has keeps another out."""
    name = f"locks below {place}"
    try:
        with _probe(place) as folder, _opened(folder) as first, _opened(folder) as second:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return ok(name, "flock keeps others out")
    except OSError as error:
        return fail(name, f"flock: {error.strerror}", "mount the file system with locks (NFS: without nolock)")
    return fail(name, "two have the same lock", "mount the file system with locks (NFS: without nolock)")


def skew(place: Path) -> Check:
    """Whether the disk's clock is this machine's."""
    name = f"clock of {place}"
    try:
        with _probe(place) as folder:
            before_s = time.time()
            (folder / "probe").write_bytes(b"")
            apart_s = (folder / "probe").stat().st_mtime - before_s
    except OSError as error:
        return fail(name, f"cannot be asked: {error.strerror}", "give another --root, or make this one writable for this user")
    return compared(name, apart_s)


def compared(name: str, apart_s: float) -> Check:
    """Two clocks that should say the same."""
    if abs(apart_s) > _SKEW_S:
        return warn(name, f"{apart_s:+.1f} s beside this machine's", "set both by the same time server")
    return ok(name, f"{apart_s:+.2f} s beside this machine's")


def room(free_bytes: int, total_bytes: int) -> Check:
    """Free space."""
    found = f"{size(free_bytes)} free of {size(total_bytes)}"
    remedy = "`lvmae gc` says what may go; `lvmae plan RECIPE` says what a run needs"
    if free_bytes < max(_FREE_SHARE * total_bytes, _FREE_BYTES) / 10:
        return fail("disk", found, remedy)
    if free_bytes < min(_FREE_SHARE * total_bytes, _FREE_BYTES):
        return warn("disk", found, remedy)
    return ok("disk", found)


def inodes(free: int, total: int) -> Check:
    """Files that can still be made; some file systems do not count them."""
    if total == 0:
        return ok("inodes", "not counted by this file system")
    if free < 10_000:
        return fail("inodes", f"{free:,} free of {total:,}", "remove small files, or give a root on another file system")
    return ok("inodes", f"{free:,} free of {total:,}")


@contextlib.contextmanager
def _probe(place: Path) -> Iterator[Path]:
    """A folder below a place that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=place) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
