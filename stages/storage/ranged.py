"""Parts of files that never change, by one ranged read each; a process keeps the files it read last open."""

import contextlib
import functools
import os

_OPEN_FILES = 64
"""Files that a process keeps open; the least recently read is closed first."""


def read_range(path: str, offset_bytes: int, size_bytes: int) -> bytes:
    """Up to ``size_bytes`` of a file from an offset on; fewer where it ends.

    Raises:
        FileNotFoundError: there is no such file.
    """
    status = os.stat(path)  # a file that was replaced is another one
    return _opened(path, status.st_dev, status.st_ino).read(offset_bytes, size_bytes)


class _Open:
    """An open file. Reads name their place, so that threads and forked processes may share it."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, offset_bytes: int, size_bytes: int) -> bytes:
        pieces = []
        while size_bytes > 0 and (piece := os.pread(self._descriptor, size_bytes, offset_bytes)):
            pieces.append(piece)
            offset_bytes += len(piece)
            size_bytes -= len(piece)
        return b"".join(pieces)

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it was never opened
            os.close(self._descriptor)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _opened(path: str, device: int, inode: int) -> _Open:
    return _Open(path)
