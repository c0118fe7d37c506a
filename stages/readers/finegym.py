"""FineGym: gymnastics in whole broadcasts, of which single elements are labelled with 99 or 288 classes.

Source: the annotation files of Shao et al., arXiv 2004.06704, versions 1.0 and 1.1. An element's times count from its event,
and an element of several stages runs from the first to the last.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from stages.errors import ConfigError
from stages.readers import Source, Span
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, gathered, labelled
from stages.readers._tables import Where, document, integer, lines, ordered
from stages.storage.workspace import Workspace

_NAME = re.compile(r"(?P<video>.+)_(?P<event>E_\d+_\d+)_(?P<element>A_\d+_\d+)")
_CATEGORY = re.compile(r"Clabel:\s*(?P<number>\d+);.*;\s*(?P<name>[^;]+)")


class Element(NamedTuple):
    """What a line of an element list names."""

    name: str
    video: str
    event: str
    element: str


class Config(AnnotatedConfig):
    """The elements of ``gym99_train_element_v1.1.txt`` and its siblings, as spans of the whole videos; the group is the video.

    Three classes of Gym288 share their words with another one: there ``class_id`` tells more than ``class``.
    """

    name: Literal["finegym"] = "finegym"
    """The name in a recipe."""

    classes: Literal["gym99", "gym288"] = "gym99"
    """Which set of classes."""

    splits: tuple[Literal["train", "val"], ...] = ("train", "val")
    """Which lists to read."""

    file: str = "{id}.*"
    """Where a video lies below ``videos``: a template of ``id``; the ending ``.*`` finds any."""

    def dataset_name(self) -> str:
        """The set of classes."""
        return f"{self.name}_{self.classes}"

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The videos with their elements.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood, or names an element that has no time.
        """
        return gathered(self._segments())

    def _segments(self) -> Iterator[Segment]:
        names, videos = self._names(), Videos(self)
        url = self.annotation("finegym_annotation_info_v1.1.json", "finegym_annotation_info_v1.0.json")
        events = document(url)
        for split in self.splits:
            stem = f"{self.classes}_{split}_element"
            for where, line in lines(self.annotation(f"{stem}_v1.1.txt", f"{stem}.txt", f"{stem}_v1.0.txt")):
                element, class_id = _element(line, where)
                if class_id not in names:
                    raise where.wrong(f"class {class_id} is not in {self.classes}_categories.txt; take both of one release")
                labels = labelled({"class": names[class_id], "class_id": class_id, "split": split, "group": element.video})
                try:
                    start_s, end_s = _times(events, element)
                except (KeyError, TypeError, IndexError, ValueError) as error:
                    hint = "versions 1.0 and 1.1 differ: take both files from one"
                    raise where.wrong(f"{element.name!r} has no times in {url}; {hint}") from error
                span = Span(element.name, *ordered(start_s, end_s, where), labels)
                yield Segment(where, *videos.find(where, id=element.video), span, {})

    def _names(self) -> dict[int, str]:
        url = self.annotation(f"{self.classes}_categories.txt")
        names = {}
        for where, line in lines(url):
            match = _CATEGORY.fullmatch(line)
            if match is None:
                raise where.wrong(f"is {line[:80]!r} and not 'Clabel: 0; ...; name'; take the official file")
            names[int(match["number"])] = match["name"].strip()
        if not names:
            raise ConfigError(f"{url}, line 1: holds no class; take the official file")
        return names


def _element(line: str, where: Where) -> tuple[Element, int]:
    name, _, label = line.rpartition(" ")
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise where.wrong(f"is {line[:80]!r} and not <video>_E_0_9_A_0_9 with a class; take the official list")
    return Element(match[0], *match.groups()), integer(label, where, "the class")


def _times(events: Mapping[str, Any], element: Element) -> tuple[float, float]:
    """Start and end of an element in its video, in seconds."""
    event = events[element.video][element.event]
    stages = event["segments"][element.element]["timestamps"]
    event_start_s = float(event["timestamps"][0][0])
    return event_start_s + float(stages[0][0]), event_start_s + float(stages[-1][1])
