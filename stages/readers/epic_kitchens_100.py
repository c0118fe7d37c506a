"""EPIC-KITCHENS-100: hours of cooking, cut into actions of one verb and one noun.

Source: the annotation files of Damen et al., arXiv 2006.13256. Older copies with a leading column ``uid`` are read as well.
"""

import ast
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from stages.readers import Source, Span
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, gathered, labelled
from stages.readers._tables import Row, Where, number, ordered, table
from stages.storage.workspace import Workspace

_FILES: Mapping[str, str] = MappingProxyType({"train": "train", "val": "validation", "test": "test_timestamps"})
_NEEDED = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp")
_LABELLED = ("narration", "verb_class", "noun_class", "all_noun_classes")


class Config(AnnotatedConfig):
    """The actions of ``EPIC_100_train.csv`` and its siblings, as spans of the whole videos.

    ``verb`` and ``noun`` are the names of the official verb and noun classes, ``verb_id`` and ``noun_id`` their numbers,
    ``nouns`` all things touched, and ``class`` is verb and noun together. The group is the participant.
    """

    FIELDS: ClassVar[Mapping[str, str | int]] = {"id": "x", "participant": "x"}

    name: Literal["epic_kitchens_100"] = "epic_kitchens_100"
    """The name in a recipe."""

    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Which lists to read; ``test`` has times and no labels."""

    file: str = "{participant}/videos/{id}.MP4"
    """Where a video lies below ``videos``: a template of ``id`` and ``participant``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The videos with their actions.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood.
        """
        return gathered(self._segments())

    def _segments(self) -> Iterator[Segment]:
        videos, verbs, nouns = Videos(self), self._classes("verb"), self._classes("noun")
        for split in self.splits:
            needed = _NEEDED if split == "test" else (*_NEEDED, *_LABELLED)
            for row in table(self.annotation(f"EPIC_100_{_FILES[split]}.csv"), needed=needed):
                labels: dict[str, object] = {"split": split, "group": row.text("participant_id")}
                if split != "test":
                    labels |= _action(row, verbs, nouns)
                key, place = videos.find(row.where, id=row.text("video_id"), participant=row.text("participant_id"))
                start_s, end_s = (_seconds(row, column) for column in ("start_timestamp", "stop_timestamp"))
                span = Span(row.text("narration_id"), *ordered(start_s, end_s, row.where), labelled(labels))
                yield Segment(row.where, key, place, span, {})

    def _classes(self, kind: str) -> dict[int, str]:
        url = self.annotation(f"EPIC_100_{kind}_classes.csv")
        return {row.integer("id"): row.text("key") for row in table(url, needed=["id", "key"])}


def _action(row: Row, verbs: Mapping[int, str], nouns: Mapping[int, str]) -> dict[str, object]:
    verb_id, noun_id = row.integer("verb_class"), row.integer("noun_class")
    verb, noun = _named(verb_id, verbs, row.where, "verb"), _named(noun_id, nouns, row.where, "noun")
    return {
        "class": f"{verb} {noun}",
        "verb": verb,
        "verb_id": verb_id,
        "noun": noun,
        "noun_id": noun_id,
        "nouns": [_named(each, nouns, row.where, "noun") for each in _numbers(row, "all_noun_classes")],
        "narration": row.text("narration"),
    }


def _named(class_id: int, names: Mapping[int, str], where: Where, kind: str) -> str:
    if class_id not in names:
        raise where.wrong(f"{kind} class {class_id} is not in EPIC_100_{kind}_classes.csv; take both of one release")
    return names[class_id]


def _numbers(row: Row, column: str) -> list[int]:
    """A list of numbers as Python writes it."""
    try:
        values = ast.literal_eval(row.text(column))
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        values = None
    if not isinstance(values, list) or not all(isinstance(value, int) for value in values):
        raise row.where.wrong(f"{column} is {row.values[column]!r}, which is not a list of numbers; correct it")
    return values


def _seconds(row: Row, column: str) -> float:
    """Seconds of ``HH:MM:SS.ss``."""
    parts = row.text(column).split(":")
    if len(parts) != 3:
        raise row.where.wrong(f"{column} is {row.values[column]!r}, which is not HH:MM:SS.ss; correct it")
    hours, minutes, seconds = (number(part, row.where, column) for part in parts)
    return 3600 * hours + 60 * minutes + seconds
