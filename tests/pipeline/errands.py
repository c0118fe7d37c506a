"""Pieces of work for the tests of the fan-out, in a module of their own: every worker process imports it."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prefect import runtime

from stages.errors import ConfigError
from stages.fan_out import tick


class Errand(NamedTuple):
    ordinal: int
    folder: Path


def write(errand: Errand) -> tuple[int, str, int]:
    """Write a file, tell of it twice, and say in which attempt of which task that was."""
    tick()
    (errand.folder / f"{errand.ordinal}.bin").write_bytes(bytes(errand.ordinal))
    tick()
    return errand.ordinal, runtime.task_run.name, runtime.task_run.run_count


def write_with_one_fault(errand: Errand) -> tuple[int, str, int]:
    if errand.ordinal == 3 and first_time(errand):
        tick()
        raise OSError("the disk is away for a moment")
    return write(errand)


def write_with_one_kill(errand: Errand) -> tuple[int, str, int]:
    if errand.ordinal == 1 and first_time(errand):
        os.kill(os.getpid(), signal.SIGKILL)
    return write(errand)


def write_slowly(errand: Errand) -> tuple[int, str, int]:
    """The same, leaving word of the process each time it is done."""
    time.sleep(0.5)
    (errand.folder / f"ran-{errand.ordinal}-{os.getpid()}-{time.time_ns()}").touch()
    return write(errand)


def refuse(errand: Errand) -> None:
    (errand.folder / f"refused-{runtime.task_run.run_count}").mkdir()
    raise ConfigError("not to be tried again")


def first_time(errand: Errand) -> bool:
    with contextlib.suppress(FileExistsError):
        (errand.folder / "first").mkdir()
        return True
    return False


def errands(folder: Path, count: int) -> Iterator[Errand]:
    return (Errand(ordinal, folder) for ordinal in range(count))
