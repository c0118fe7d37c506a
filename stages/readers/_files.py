"""Files that readers read, local or in an object store: below a folder or a prefix, matching a glob, or one by its name."""

import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from fsspec.utils import glob_translate

from stages import places
from stages.errors import ConfigError, MediaError, Reason, SourceMissing
from stages.places import Place, is_remote, place_of

SUFFIXES = (
    *(".264", ".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m4v"),
    *(".mj2", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Endings of the names of videos, in lower case."""

_WILDCARD = re.compile(r"[*?\[]")


class Tree(NamedTuple):
    """All below a folder or a prefix, or what matches a glob there."""

    root: str
    """The folder before the first wildcard."""
    pattern: str
    """What is below it; empty for all."""

    @property
    def name(self) -> str:
        """The folder's own name."""
        return PurePosixPath(self.root).name

    def takes(self, name: str) -> bool:
        """Whether the glob matches a name below the folder, or a folder that it lies in."""
        if not self.pattern:
            return True
        matches = re.compile(glob_translate(self.pattern)).match
        return any(matches(part) for part in (name, *map(str, PurePosixPath(name).parents[:-1])))

    def files(self) -> Iterator[tuple[str, Place, str]]:
        """Files with name, place and stamp; names that start with a dot are left alone.

        Raises:
            SourceMissing: there is no such folder.
        """
        return (file for file in places.listing(self.root) if self.takes(file[0]))


def tree(url: str) -> Tree:
    """A folder, a prefix of an object store, or a glob in either.

    A local path that exists as it is spelled is no glob, whatever its characters.
    """
    spelled = place_of(url).url.rstrip("/") or "/"
    if not _WILDCARD.search(spelled) or (not is_remote(spelled) and Path(spelled).exists()):
        return Tree(spelled, "")
    parts = spelled.split("/")
    first = next(at for at, part in enumerate(parts) if _WILDCARD.search(part))
    return Tree("/".join(parts[:first]) or "/", "/".join(parts[first:]))


def join(root: str, name: str) -> str:
    """``name`` below ``root``, be that a path or an URL."""
    return f"{place_of(root).url.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder of a file, be that a path or an URL."""
    return place_of(url).url.rpartition("/")[0] or "/"


def exists(url: str) -> bool:
    """Whether a file or an object lies there."""
    place = place_of(url)
    return bool(places.stamp(place)) if is_remote(place.url) else Path(place.url).is_file()


@contextlib.contextmanager
def opened(url: str) -> Iterator[io.BufferedIOBase]:
    """The bytes of a file or an object.

    Raises:
        SourceMissing: it is not there, or may not be read.
        ConfigError: it changes while it is read.
    """
    place = place_of(url)
    try:
        with places.opened(_followed(place)) as file:
            yield file  # type: ignore[misc]
    except MediaError as error:
        kind = SourceMissing if error.reason in (Reason.MISSING, Reason.UNREADABLE, Reason.NOT_A_FILE) else ConfigError
        raise kind(f"{url}: {error.detail}; give a file that can be read") from error


def _followed(place: Place) -> Place:
    """The file that a link points at: what a list is may be a link, what a video is may not."""
    return place if is_remote(place.url) else place_of(Path(place.url).resolve())
