"""Room on the disk: looked at before a stage writes, and said plainly when it runs out in the middle."""

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from stages.errors import NoRoom

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS = ("no space left", "disk quota exceeded", "(os error 28)", "(os error 122)")
"""How libraries that have no error number say it."""
_REMEDY = (
    "`lvmae gc` says what may go, `lvmae plan` what a run needs; or give another --root. What is committed stays, and the same "
    "command continues from there"
)


def check_room(root: Path, needed_bytes: int | None, what: str) -> None:
    """Nothing, when there is room for what a stage needs, or it is not known how much that is.

    Args:
        root: where it writes.
        needed_bytes: at most; ``None``: not known.
        what: which stage.

    Raises:
        NoRoom: there is not.
    """
    free_bytes = free(root)
    if needed_bytes is not None and needed_bytes > free_bytes:
        raise NoRoom(
            f"{root}: {what} needs up to {_spelled(needed_bytes)}, and {_spelled(free_bytes)} are free; it was not begun. "
            f"{_REMEDY}"
        )


@contextlib.contextmanager
def saying_when_full(root: Path, what: str) -> Iterator[None]:
    """Turn an error that means a full disk into one that says so, with what is free and what to do.

    Raises:
        NoRoom: the disk became full.
    """
    try:
        yield
    except NoRoom:
        raise
    except OSError as error:
        if not is_full(error):
            raise
        raise NoRoom(f"{root}: the disk became full in {what}, {_spelled(free(root))} are free ({error}). {_REMEDY}") from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, means that a disk is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    if isinstance(error, OSError) and any(word in str(error).lower() for word in _WORDS):
        return True
    return error.__cause__ is not None and is_full(error.__cause__)


def free(root: Path) -> int:
    """Bytes that are free on the disk of a root, or of the folder that it will be made in."""
    there = next(path for path in (root, *root.parents) if path.exists())
    return shutil.disk_usage(there).free


def _spelled(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
