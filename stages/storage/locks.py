"""Locks of live runs: an artifact's folder for who makes it, its manifest for who reads it. No byte is written for them.

The kernel frees them when a process ends, however it ends. They are advisory, and hold on one machine and on network file
systems that pass them on.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

_PATIENCE_S = 0.2
"""How long a lock is tried for: whoever only asks whether a folder is held has it for a moment."""
_PAUSE_S = 0.02


class Held(Exception):
    """Another live process has the lock."""


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Have a folder or a file alone.

    Raises:
        Held: another process has it.
        FileNotFoundError: it is not there, or was moved away meanwhile.
    """
    with _open(path) as descriptor:
        _lock(descriptor, fcntl.LOCK_EX)
        _check_place(descriptor, path)
        yield


class Readers:
    """Manifests that are kept from being collected while they are read; one for a whole run."""

    def __init__(self) -> None:
        self._descriptors: dict[Path, int] = {}

    def take(self, path: Path) -> None:
        """Keep a file until ``close``.

        Raises:
            FileNotFoundError: it is not there, or is being collected.
        """
        if path in self._descriptors:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _lock(descriptor, fcntl.LOCK_SH)
            _check_place(descriptor, path)
        except Held as error:
            os.close(descriptor)
            raise FileNotFoundError(f"{path}: is being collected") from error
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptors[path] = descriptor

    def close(self) -> None:
        """Let all of them go."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def is_held(path: Path) -> bool:
    """Whether a live process has a folder or a file, to make it or to read it."""
    try:
        with _open(path) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    until_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise Held from None
            time.sleep(_PAUSE_S)
        else:
            return


def _check_place(descriptor: int, path: Path) -> None:
    """See that what was locked is what lies there: it may have been moved away before it was locked."""
    locked, there = os.fstat(descriptor), path.stat()
    if (locked.st_dev, locked.st_ino) != (there.st_dev, there.st_ino):
        raise FileNotFoundError(f"{path}: was replaced meanwhile")
