"""AVA 2.2: people in films, boxed once a second, with all they do at that moment.

Source: the annotation files of Gu et al., arXiv 1705.08421, version 2.2.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

from pydantic import Field

from stages.errors import ConfigError
from stages.readers import Box, Source, Span
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, gathered, labelled
from stages.readers._tables import Row, lines, table
from stages.storage.workspace import Workspace

_COLUMNS = ("video_id", "timestamp", "left", "top", "right", "bottom", "action_id", "person_id")
_EDGES = ("left", "top", "right", "bottom")
_NUM_ACTIONS = 80
_LABEL_MAPS: Mapping[str, str] = MappingProxyType(
    {"evaluated": "ava_action_list_v2.2_for_activitynet_2019.pbtxt", "all": "ava_action_list_v2.2.pbtxt"}
)
_NAME = re.compile(r"name\s*:\s*([\"'])(?P<name>.*)\1")
_NUMBER = re.compile(r"(?:label_)?id\s*:\s*(?P<number>\d+)")


class Config(AnnotatedConfig):
    """The annotated moments of ``ava_train_v2.2.csv`` and ``ava_val_v2.2.csv``, as spans around them with their boxes.

    The class of a span is every action in it, the label of a box what its person does; tracks are the official person numbers,
    and the group is the film. Moments of ``ava_<split>_excluded_timestamps_v2.2.csv`` are left out, as the official score does.
    """

    name: Literal["ava"] = "ava"
    """The name in a recipe."""

    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """Which lists to read."""

    actions: Literal["evaluated", "all"] = "evaluated"
    """Which actions to keep: the 60 that are evaluated or all 80. A box without any stays, without a label."""

    window_s: float = Field(default=3.0, gt=0)
    """Length of a span; the moment is in its middle. The annotators saw three seconds."""

    file: str = "{id}.*"
    """Where a video lies below ``videos``: a template of ``id``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The films with their moments.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood.
        """
        return gathered(self._segments())

    def _segments(self) -> Iterator[Segment]:
        names, videos = self._names(), Videos(self)
        for split in self.splits:
            excluded = self._excluded(split)
            rows = table(self.annotation(f"ava_{split}_v2.2.csv"), header=_COLUMNS)
            for (video_id, moment_s), group in itertools.groupby(rows, key=_moment):
                if (video_id, moment_s) not in excluded:
                    moment = list(group)
                    span = self._span(moment, moment_s, split, names)
                    yield Segment(moment[0].where, *videos.find(moment[0].where, id=video_id), span, {})

    def _span(self, rows: list[Row], moment_s: float, split: str, names: Mapping[int, str]) -> Span:
        first = rows[0]
        actions = sorted({number for row in rows if (number := _action(row)) in names})
        columns = {"class": [names[number] for number in actions], "class_id": actions, "split": split}
        labels = labelled({**columns, "group": first.text("video_id")})
        half_s = self.window_s / 2
        native_id = f"{first.text('video_id')}_{first.text('timestamp')}"
        return Span(native_id, max(0.0, moment_s - half_s), moment_s + half_s, labels, _boxes(rows, moment_s, names))

    def _names(self) -> dict[int, str]:
        """Actions by number, from a label map in the text form of protocol buffers."""
        url = self.annotation(_LABEL_MAPS[self.actions])
        text = [line for _, line in lines(url)]
        names = [match["name"] for line in text if (match := _NAME.match(line))]
        numbers = [int(match["number"]) for line in text if (match := _NUMBER.match(line))]
        if not names or len(names) != len(numbers):
            raise ConfigError(
                f"{url}, line 1: {len(names)} names and {len(numbers)} numbers of actions; take the official file"
            )
        return dict(zip(numbers, names, strict=True))

    def _excluded(self, split: str) -> set[tuple[str, float]]:
        rows = table(self.annotation(f"ava_{split}_excluded_timestamps_v2.2.csv"), header=_COLUMNS[:2])
        return {_moment(row) for row in rows}


def _moment(row: Row) -> tuple[str, float]:
    return row.text("video_id"), row.number("timestamp")


def _action(row: Row) -> int:
    number = row.integer("action_id")
    if not 1 <= number <= _NUM_ACTIONS:
        raise row.where.wrong(f"action {number} is none of the {_NUM_ACTIONS}; take the official list")
    return number


def _boxes(rows: list[Row], moment_s: float, names: Mapping[int, str]) -> tuple[Box, ...]:
    """One box per person and place, from a row per action."""
    actions: dict[tuple[str, tuple[float, ...]], set[int]] = {}
    for row in rows:
        left, top, right, bottom = edges = tuple(row.number(edge) for edge in _EDGES)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise row.where.wrong(f"the box {edges} is not left, top, right, bottom in shares from 0 to 1; correct it")
        actions.setdefault((row.text("person_id"), edges), set()).update({_action(row)} & names.keys())
    return tuple(
        Box(moment_s, left, top, right, bottom, person, tuple(names[number] for number in sorted(numbers)))
        for (person, (left, top, right, bottom)), numbers in actions.items()
    )
