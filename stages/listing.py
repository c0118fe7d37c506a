"""What a reader found, with identities: the sha256 of every source's bytes, or why there are none to read."""

import dataclasses
import os
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from stages.errors import MediaError, Reason
from stages.readers import Source
from stages.storage.publish import canonical_json, sha256_bytes, sha256_file
from stages.video import check_file

_AHEAD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Listed:
    """A source as it was found."""

    source_id: str
    """sha256 of its bytes; where there are none to read, of its key and the reason."""
    key: str
    path: Path
    labels: Mapping[str, str]
    size_bytes: int
    stamp: tuple[int, ...]
    """What changes with the file: size, time of change, inode."""
    fault: MediaError | None
    """Why its bytes cannot be read."""


def identify(source: Source) -> Listed:
    """A source with its identity; reads the whole file."""
    fault, digest, size_bytes = None, "", 0
    before = stamp(source.path)
    try:
        check_file(source.path)
        digest, size_bytes = sha256_file(source.path), before[0]
    except MediaError as error:
        fault = error
    except OSError as error:
        fault = MediaError(Reason.UNREADABLE, f"cannot be read: {error.strerror}")
    if fault:
        digest = sha256_bytes(canonical_json({"key": source.key, "reason": fault.reason}))
    return Listed(
        source_id=digest,
        key=source.key,
        path=source.path,
        labels=source.labels,
        size_bytes=size_bytes,
        stamp=before,
        fault=fault,
    )


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file does, or nothing when it is not there."""
    try:
        status = os.lstat(path)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, num_workers: int) -> Generator[Result]:
    """``function`` of every item, in the order of the items, computed by threads that run a bounded distance ahead."""
    waiting: list[Future[Result]] = []
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD * num_workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
