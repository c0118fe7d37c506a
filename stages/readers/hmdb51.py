"""HMDB51: 51 actions, three official splits with a file per class.

Source: the "three splits" of Kuehne et al., ICCV 2011.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import ClassVar, Literal

from stages.errors import SourceMissing
from stages.readers import Source
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, labelled, streamed
from stages.readers._files import join, tree
from stages.readers._tables import lines
from stages.storage.workspace import Workspace

_SPLITS: Mapping[str, str | None] = MappingProxyType({"0": None, "1": "train", "2": "test"})


class Config(AnnotatedConfig):
    """The clips of ``<class>_test_splitN.txt``. Class numbers follow the sorted class names; clips that the split leaves unused
    have no label ``split``."""

    FIELDS: ClassVar[Mapping[str, str | int]] = {"id": "x", "class": "x"}

    name: Literal["hmdb51"] = "hmdb51"
    """The name in a recipe."""

    fold: Literal[1, 2, 3] = 1
    """Which of the three official splits."""

    file: str = "{class}/{id}.avi"
    """Where a video lies below ``videos``: a template of ``id`` and ``class``; the ending ``.*`` finds any."""

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The clips of all classes.

        Raises:
            SourceMissing: there is no file of the split.
            ConfigError: one cannot be understood.
        """
        return streamed(self._segments())

    def _segments(self) -> Iterator[Segment]:
        videos = Videos(self)
        for class_id, (name, file) in enumerate(sorted(self._classes().items())):
            for where, line in lines(join(self.annotations, file)):
                clip, _, flag = line.rpartition(" ")
                if flag not in _SPLITS or not clip.strip():
                    raise where.wrong(f"is {line[:80]!r} and not a file name with 0, 1 or 2; correct it")
                labels = labelled({"class": name, "class_id": class_id, "split": _SPLITS[flag]})
                video_id = PurePosixPath(clip.strip()).stem
                yield Segment(where, *videos.find(where, **{"id": video_id, "class": name}), None, labels)

    def _classes(self) -> dict[str, str]:
        """The file of every class."""
        wanted = re.compile(rf"([^/]+)_test_split{self.fold}\.txt")
        names = [name for name, _, _ in tree(self.annotations).files()]
        found = {match[1]: name for name in names if (match := wanted.fullmatch(name))}
        if not found:
            raise SourceMissing(f"{self.annotations}: holds no <class>_test_split{self.fold}.txt; give their folder")
        return found
