"""Which parts of a source are read in which pass: spans of time, widened, put in order and grouped. Nothing here runs anything.

Times are on the source's clock, which is zero where its container starts, as in a player.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

MAX_BRANCHES = 12
"""Windows of one pass: each has an encoder of its own, with its memory and its threads."""

_GAP_US = 30_000_000
"""A stretch that belongs to no window and is worth a new pass rather than decoding it. Our choice: a start costs 0.1 s."""
_RUN_UP_US = 1_000_000
"""What is read before the first window, so that its first frame never hangs on how exactly a container can be sought in."""


class Window(NamedTuple):
    """A part of a source that becomes clips of its own."""

    span: int
    """Which of the spans that were asked for."""
    start_us: int
    end_us: int | None
    """The first moment that no longer belongs to it; none reads to the end."""

    def holds(self, time_us: int | None) -> bool:
        """Whether a frame of that time belongs to it; one without a time only belongs to the whole."""
        if self.end_us is None:
            return True
        return time_us is not None and self.start_us <= time_us < self.end_us


WHOLE = Window(0, 0, None)
"""All of a source."""


def windows_of(spans: Sequence[tuple[float, float]], *, margin_s: float) -> list[Window]:
    """The windows of those spans (start and end in seconds) that last, each wider by the margin on both sides."""
    return [
        Window(number, max(0, round((start_s - margin_s) * 1e6)), round((end_s + margin_s) * 1e6))
        for number, (start_s, end_s) in enumerate(spans)
        if math.isfinite(start_s) and math.isfinite(end_s) and end_s > start_s and end_s + margin_s > 0
    ]


def passes(windows: Sequence[Window], *, max_duration_s: float) -> Iterator[tuple[Window, ...]]:
    """The windows in groups, each for one pass; in sum about every part of the source is decoded once.

    A pass reads what lies between its windows too, so a long way to the next begins another one, and no pass of several
    windows reads more than a source may last.
    """
    group: list[Window] = []
    for window in sorted(windows, key=lambda window: (window.start_us, window.end_us or 0, window.span)):
        if group and not _joins(window, group, max_duration_s=max_duration_s):
            yield tuple(group)
            group = []
        group.append(window)
    if group:
        yield tuple(group)


def seek_us(group: Sequence[Window]) -> int:
    """Where a pass over these windows may begin: whole seconds, and a little before the first of them."""
    return max(0, group[0].start_us - _RUN_UP_US) // 1_000_000 * 1_000_000


def end_us(group: Sequence[Window]) -> int | None:
    """Where a pass over these windows may end."""
    ends = [window.end_us for window in group if window.end_us is not None]
    return max(ends) if len(ends) == len(group) else None


def _joins(window: Window, group: Sequence[Window], *, max_duration_s: float) -> bool:
    reached = end_us(group)
    if len(group) == MAX_BRANCHES or reached is None or window.end_us is None:
        return False
    lasts_us = max(window.end_us, reached) - seek_us(group)
    return window.start_us - reached <= _GAP_US and lasts_us < (max_duration_s - 2) * 1e6
