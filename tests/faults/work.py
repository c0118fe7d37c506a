"""What the laboratory runs in its children: the ways to publish a file, well and badly."""

import os
import stat
from pathlib import Path

from stages.storage import publish


def publish_bytes(path: str, data: str, flaw: str = "") -> None:
    spoil(flaw)
    publish.publish_bytes(Path(path), data.encode())


def publish_new(path: str, data: str, flaw: str = "") -> bool:
    spoil(flaw)
    return publish.publish_new(Path(path), data.encode())


def publishing(path: str, data: str, flaw: str = "") -> None:
    """In four pieces; the last is larger than the buffer."""
    spoil(flaw)
    piece = len(data) // 6
    with publish.publishing(Path(path)) as file:
        for start in (0, piece, 2 * piece):
            file.write(data[start : start + piece].encode())
        file.write(data[3 * piece :].encode())


def sweep(folder: str) -> int:
    return publish.sweep(Path(folder))


def sweep_and(way: str, folder: str, path: str, data: str) -> None:
    """What the next run does."""
    sweep(folder)
    globals()[way](path, data)


def write_directly(path: str, data: str) -> None:
    """What most code does."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode())


FLAWS = ("file sync", "folder sync", "any sync")


def spoil(flaw: str) -> None:
    """Leave out a step of the protocol, in this process and for good."""
    real = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and flaw == "file sync":
            real(descriptor)

    if flaw in ("file sync", "any sync"):
        os.fsync = sync  # type: ignore[assignment]
    elif flaw == "folder sync":
        publish.sync_folder = lambda folder: None
