"""Diving48 in its second version: dives of 48 kinds, one per file.

Source: the annotation files of Li et al., RESOUND, ECCV 2018, relabelled in 2020. The labels of the first version differ.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

from stages.errors import ConfigError
from stages.readers import Source
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, labelled, streamed
from stages.readers._tables import document, objects
from stages.storage.workspace import Workspace

PARTS = ("takeoff", "somersault", "twist", "position")
"""What a class is made of, in the order of the vocabulary."""

_NUMBER = re.compile(r"_\d+$")


class Config(AnnotatedConfig):
    """The dives of ``Diving48_V2_train.json`` and ``Diving48_V2_test.json``. The class is the four parts of the dive in the
    words of ``Diving48_vocab.json``, each also a label of its own; the group is the video that a dive was cut from."""

    name: Literal["diving48"] = "diving48"
    """The name in a recipe."""

    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    """Which lists to read."""

    file: str = "{id}.mp4"
    """Where a video lies below ``videos``: a template of ``id``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The dives of the lists.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood.
        """
        return streamed(self._segments())

    def _segments(self) -> Iterator[Segment]:
        vocabulary, videos = self._vocabulary(), Videos(self)
        for split in self.splits:
            for where, entry in objects(self.annotation(f"Diving48_V2_{split}.json"), "vid_name", "label"):
                video_id, label = str(entry["vid_name"]), entry["label"]
                if not isinstance(label, int) or not 0 <= label < len(vocabulary):
                    raise where.wrong(f"label {label!r} is none of the {len(vocabulary)} words; take version 2 of all")
                dive = vocabulary[label]
                labels = {
                    "class": " ".join(dive),
                    "class_id": label,
                    "split": split,
                    "group": _NUMBER.sub("", video_id),
                    **dict(zip(PARTS, dive, strict=True)),
                }
                yield Segment(where, *videos.find(where, id=video_id), None, labelled(labels))

    def _vocabulary(self) -> list[list[str]]:
        url = self.annotation("Diving48_vocab.json")
        vocabulary = document(url)
        dives = vocabulary if isinstance(vocabulary, list) else [vocabulary]
        if not all(isinstance(dive, list) and len(dive) == len(PARTS) for dive in dives):
            raise ConfigError(f"{url}, line 1: is not a list of lists of {', '.join(PARTS)}; take the official file")
        return [[str(part) for part in dive] for dive in dives]
