"""Whether an upload is complete: by a marker beside it, or because it rests and its container is closed.

An object of a store is complete by nature: it appears whole, under its ETag. A local file grows under its name, and a pause is
no end, so its headers are asked. One that is untouched for very long is taken for cut for good, and reading it tells.
"""

import math
import os
import time
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from stages import places
from stages.containers import unclosed
from stages.places import Place

MARKER = ".ok"


class Rule(NamedTuple):
    """When a source may be read."""

    upload: Literal["stable", "marker"] = "stable"
    """``stable``: its container is closed; ``marker``: a file beside it says so."""
    abandoned_s: float = 3600.0
    """Seconds after which an untouched file is read although its container is open."""

    def why_not(self, place: Place) -> str:
        """Why a source has to wait, in words that follow "it"; empty when it may be read.

        Raises:
            MediaError: there is nothing to read.
            OSError: the store does not answer.
        """
        if self.upload == "marker":
            return _unmarked(place)
        if places.is_remote(place.url) or age_s(place) >= self.abandoned_s:
            return ""
        with places.opened(place) as file:
            return unclosed(file, file.seek(0, os.SEEK_END))


def age_s(place: Place) -> float:
    """Seconds since a local file was touched, by the later of its times that is not in the future; infinite without a file.

    A copy may keep a time of change that a wrong clock wrote; the kernel's own time is never that of the copy's source.
    """
    try:
        status = os.lstat(place.url)
    except OSError:
        return math.inf
    now_s = time.time()
    return now_s - max((each for each in (status.st_mtime, status.st_ctime) if each <= now_s), default=now_s)


def _unmarked(place: Place) -> str:
    """Why nothing says that a source is complete. A marker that is older than the file was made for another one."""
    path = PurePosixPath(place.url.rpartition("/")[2])
    folder = place.url.removesuffix(path.name)
    markers = [Place(f"{folder}{name}") for name in (f"{path.name}{MARKER}", f"{path.stem}{MARKER}")]
    if places.is_remote(place.url):
        is_there = any(places.stamp(marker) for marker in markers)
        return "" if is_there else f"has no {path.name}{MARKER} beside it"
    times = [time_ns for marker in markers if (time_ns := _changed_ns(marker)) is not None]
    if not times:
        return f"has no {path.name}{MARKER} beside it"
    return "" if max(times) >= (_changed_ns(place) or 0) else "was changed after its marker was made; make the marker again"


def _changed_ns(place: Place) -> int | None:
    try:
        return os.lstat(place.url).st_mtime_ns
    except OSError:
        return None
