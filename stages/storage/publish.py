"""Files that appear whole or not at all: a temporary sibling, fsync, rename, fsync of the folder.

A reader never sees half a file, and a file that was reported as published survives a power cut. Temporary names end in
``.tmp`` and start with a dot; ``sweep`` removes what a killed run left of them.
"""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

_READ_BYTES = 1 << 20
_TEMPORARY = (".tmp", ".partial")
"""Endings of unfinished files: ours and Zarr's."""


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no spaces, no NaN, a final newline. What every digest is taken over."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def sha256_bytes(data: bytes) -> str:
    """The sha256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes in hex, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> Path:
    """``folder``, created with its parents, every new name made durable."""
    missing = [folder, *folder.parents]
    missing = [path for path in missing if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in reversed(missing):
        sync_folder(path.parent)
    return folder


def sync_tree(folder: Path) -> None:
    """Make every file and every name below ``folder`` survive a power cut, for libraries that do not see to it."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the block ends and vanishes when it raises."""
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def publish_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all, replacing what was there."""
    with publishing(path) as file:
        file.write(data)


def publish_new(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` unless it exists; whether this call made it. Of two racing calls exactly one does."""
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def temporary_sibling(path: Path) -> Path:
    """A name beside ``path`` that no reader looks at and no other writer uses."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def sweep(folder: Path) -> int:
    """Remove the temporary files of killed runs below ``folder``; their number. The caller holds the artifact's lock."""
    leftovers = [path for path in folder.rglob("*") if path.suffix in _TEMPORARY and path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
