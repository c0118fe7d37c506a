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
TEMPORARY = (".tmp", ".partial")
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
    """``folder``, created with its parents, every new name made durable before anything is put below it.

    So only the lowest folder that was there already may be new and not yet durable, if its maker was killed: seen to as well.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    present = missing[-1].parent if missing else folder
    with contextlib.suppress(PermissionError):  # above a root that was given: not ours, and durable
        sync_folder(present.parent)
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
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
def appearing(path: Path) -> Iterator[Path]:
    """A name for a file to be made and synced, which becomes ``path`` when the block ends and vanishes when it raises."""
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        _discard(temporary)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def publishing(path: Path) -> Iterator[BinaryIO]:
    """A file to write into, which becomes ``path`` when the block ends and vanishes when it raises."""
    with appearing(path) as temporary, temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def publish_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all, replacing what was there."""
    with publishing(path) as file:
        file.write(data)


def publish_new(path: Path, data: bytes) -> bool:
    """Write ``data`` to ``path`` unless it exists; whether this call made it. Of two racing calls exactly one does.

    Either way the name is durable when this returns: whoever made it may have been killed before seeing to that.
    """
    make_folder(path.parent)
    temporary = temporary_sibling(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        is_ours = True
    except FileExistsError:
        is_ours = False
    finally:
        _discard(temporary)
    sync_folder(path.parent)
    return is_ours


def temporary_sibling(path: Path) -> Path:
    """A name beside ``path`` that no reader looks at and no other writer uses."""
    return path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"


def sweep(folder: Path) -> int:
    """Finish what killed runs left below ``folder``: remove their temporary files and make the names of the others durable.

    The caller holds the artifact's lock.

    Returns:
        the number of files removed.
    """
    removed = 0
    for place, _, names in os.walk(folder):
        leftovers = [Path(place, name) for name in names if name.endswith(TEMPORARY)]
        for path in leftovers:
            path.unlink(missing_ok=True)
        removed += len(leftovers)
        sync_folder(Path(place))
    return removed


def _discard(temporary: Path) -> None:
    """Remove a temporary file, or leave it to the next sweep: that must not hide why it is not needed any more."""
    with contextlib.suppress(OSError):
        temporary.unlink(missing_ok=True)
