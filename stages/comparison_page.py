"""A comparison as one HTML page that needs nothing else: no scripts, nothing loaded from anywhere."""

from collections.abc import Sequence
from typing import NamedTuple

from stages import pages
from stages.comparison import Comparison, Pair
from stages.scoring import Interval
from stages.summary import probability

TEMPLATE = "comparison.html.jinja"
_LEFT_PX, _WIDTH_PX, _ROW_PX = 330, 430, 30


class Mark(NamedTuple):
    """One difference in the chart, in pixels."""

    title: str
    y: float
    x: float
    low: float
    high: float
    is_certain: bool


class Chart(NamedTuple):
    """Differences with their intervals, one line each."""

    marks: Sequence[Mark]
    ticks: Sequence[tuple[float, str]]
    zero: float
    width: int
    height: int
    left: int


def render(comparison: Comparison) -> bytes:
    """The page, in UTF-8. Every text in it is escaped: file names and labels come from whoever made the videos."""
    drawn = chart(comparison.pairs)
    return pages.render(TEMPLATE, {"reach": reach}, comparison=comparison, chart=drawn, verdict=verdict)


def reach(interval: Interval) -> str:
    """The interval of a difference as a person reads it."""
    low, high = (f"{100 * value:+.1f}".replace("-", "−") for value in interval)
    return f"{low} to {high} points"


def verdict(pair: Pair) -> str:
    """One sentence on a pair that claims no more than its test allows."""
    chance = probability(pair.adjusted_p_value).replace("p", "adjusted p")
    if not pair.is_certain:
        return f"{pair.first} and {pair.second} are not told apart on these clips ({chance})."
    better, worse = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
    return f"{better} is better than {worse} by {100 * abs(pair.difference):.1f} points, and not by chance ({chance})."


def chart(pairs: Sequence[Pair]) -> Chart:
    """Where every difference lies between the outermost ends of all intervals."""
    ends = [0.05, *(abs(end) for pair in pairs for end in pair.interval)]
    most = max(ends)
    centre, scale = _LEFT_PX + _WIDTH_PX / 2, (_WIDTH_PX / 2 - 20) / most
    marks = []
    for number, pair in enumerate(pairs):
        x, low, high = (centre + scale * value for value in (pair.difference, *pair.interval))
        title = f"{pair.first} less {pair.second}: {pair.label}, {pair.probe}"
        marks.append(Mark(title, _ROW_PX * (number + 0.5), x, low, high, pair.is_certain))
    step = next(one for one in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if most / one <= 4)
    values = [step * count for count in range(-int(most / step), int(most / step) + 1)]
    ticks = [(centre + scale * value, f"{100 * value:+.0f}".replace("-", "−") if value else "0") for value in values]
    return Chart(marks, ticks, centre, _LEFT_PX + _WIDTH_PX, _ROW_PX * len(pairs) + 40, _LEFT_PX)
