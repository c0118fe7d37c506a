"""UCF101: 101 actions, three official splits, groups of clips that were cut from one video.

Source: the files of Soomro et al., arXiv 1212.0402, "Train/Test Splits for Action Recognition".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, Literal

from stages.readers import Source
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, labelled, streamed
from stages.readers._tables import Where, integer, lines
from stages.storage.workspace import Workspace

_NAME = re.compile(r"(?P<class>[^/]+)/(?P<id>v_\S+_(?P<group>g\d+)_c\d+)\.\w+")


class Config(AnnotatedConfig):
    """The clips of ``trainlist0N.txt`` and ``testlist0N.txt``; class numbers are those of ``classInd.txt``, from 1."""

    FIELDS: ClassVar[Mapping[str, str | int]] = {"id": "x", "class": "x"}

    name: Literal["ucf101"] = "ucf101"
    """The name in a recipe."""

    fold: Literal[1, 2, 3] = 1
    """Which of the three official splits."""

    file: str = "{class}/{id}.avi"
    """Where a video lies below ``videos``: a template of ``id`` and ``class``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The clips of both lists.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood, or a group has clips in both.
        """
        return streamed(self._segments())

    def _segments(self) -> Iterator[Segment]:
        numbers, videos, splits = self._numbers(), Videos(self), dict[str, str]()
        for split in ("train", "test"):
            for where, line in lines(self.annotation(f"{split}list{self.fold:02d}.txt")):
                name, _, number = line.partition(" ")
                match = _NAME.fullmatch(name)
                if match is None or match["class"] not in numbers:
                    raise where.wrong(f"is {line[:80]!r} and not class/v_x_g01_c01.avi, the class in classInd.txt")
                if number and integer(number, where, "class number") != numbers[match["class"]]:
                    raise where.wrong(f"{match['class']} has number {number}, and {numbers[match['class']]} in classInd.txt")
                group = f"{match['class']}_{match['group']}"
                if splits.setdefault(group, split) != split:
                    raise where.wrong(f"group {group} is in {splits[group]} already; take both lists of one split")
                labels = {"class": match["class"], "class_id": numbers[match["class"]], "split": split, "group": group}
                yield Segment(where, *videos.find(where, **match.groupdict()), None, labelled(labels))

    def _numbers(self) -> dict[str, int]:
        return dict(_class_line(where, line) for where, line in lines(self.annotation("classInd.txt")))


def _class_line(where: Where, line: str) -> tuple[str, int]:
    number, _, name = line.partition(" ")
    if not name:
        raise where.wrong(f"is {line[:80]!r} and not a number and a class; take the official file")
    return name.strip(), integer(number, where, "class number")
