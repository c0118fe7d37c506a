"""Kinetics-400, 600 and 700: ten seconds of YouTube per row, one class each.

Source: the annotation files of Kay et al., arXiv 1705.06950, and its successors; also those under the header of ActivityNet.
"""

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, Literal

from stages.readers import Source, Span
from stages.readers._annotations import AnnotatedConfig, Segment, Videos, gathered, labelled, streamed
from stages.readers._tables import Row, ordered, table
from stages.storage.workspace import Workspace

_ACTIVITYNET: Mapping[str, str] = MappingProxyType(
    {"label": "Class label", "youtube_id": "YouTube Identifier", "time_start": "Start time", "time_end": "End time"}
)
_SPELLINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"train": ("train",), "val": ("val", "validate"), "test": ("test",)}
)
"""What the file of a split may be called."""


class Config(AnnotatedConfig):
    """The clips of ``train.csv``, ``val.csv`` and ``test.csv``. Class numbers follow the sorted labels of ``train.csv``; the
    group is the YouTube video."""

    FIELDS: ClassVar[Mapping[str, str | int]] = {"id": "x", "start": 0, "end": 10, "class": "x", "split": "train"}

    name: Literal["kinetics"] = "kinetics"
    """The name in a recipe."""

    num_classes: Literal[400, 600, 700] = 400
    """Which Kinetics it is; names the data set, and the annotation files if they are called ``kinetics_400_train.csv``."""

    splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val")
    """Which lists to read."""

    trimmed: bool = True
    """Whether files hold the ten seconds alone; otherwise they are whole videos, called ``{id}``, to be cut at them."""

    file: str = "{id}_{start:06d}_{end:06d}.mp4"
    """Where a video lies below ``videos``: a template of ``id``, ``start``, ``end`` (seconds), ``class`` and ``split``, such as
    ``{split}/{class}/{id}_{start:06d}_{end:06d}.mp4``; the ending ``.*`` finds any."""

    def dataset_name(self) -> str:
        """Name and number of classes."""
        return f"{self.name}{self.num_classes}"

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The clips of the lists.

        Raises:
            SourceMissing: a list is not there.
            ConfigError: a list cannot be understood.
        """
        return streamed(self._segments()) if self.trimmed else gathered(self._segments())

    def _segments(self) -> Iterator[Segment]:
        names = sorted({row.text(_column(row, "label")) for row in self._rows("train")})
        numbers = {name: number for number, name in enumerate(names)}
        videos = Videos(self)
        for split in self.splits:
            for row in self._rows(split):
                yield self._segment(row, split, numbers, videos)

    def _rows(self, split: str) -> Iterator[Row]:
        prefixes = ["", "kinetics_", *(f"kinetics{before}{self.num_classes}_" for before in ("", "_", "-"))]
        return table(self.annotation(*(f"{prefix}{word}.csv" for prefix in prefixes for word in _SPELLINGS[split])))

    def _segment(self, row: Row, split: str, numbers: Mapping[str, int], videos: Videos) -> Segment:
        video_id = row.text(_column(row, "youtube_id"))
        label = row.values.get(_column(row, "label", needed=split != "test"), "").strip()
        if label not in numbers and (label or split != "test"):
            raise row.where.wrong(f"label {label!r} is not in the list of split train; take all lists of one release")
        start_s, end_s = (row.number(_column(row, name)) for name in ("time_start", "time_end"))
        start_s, end_s = ordered(start_s, end_s, row.where)
        labels = labelled({"class": label, "class_id": numbers.get(label), "split": split, "group": video_id})
        times = {"start": int(start_s), "end": int(end_s)}
        key, place = videos.find(row.where, **{"id": video_id, "class": label, "split": split}, **times)
        if self.trimmed:
            return Segment(row.where, key, place, None, labels)
        span = Span("{id}_{start:06d}_{end:06d}".format(id=video_id, **times), start_s, end_s, labels)
        return Segment(row.where, key, place, span, {})


def _column(row: Row, name: str, *, needed: bool = True) -> str:
    """What a list calls the column ``name``."""
    for spelling in (name, _ACTIVITYNET[name]):
        if spelling in row.values:
            return spelling
    if needed:
        raise row.where.wrong(f"there is no column {name!r} but {list(row.values)}; take the official list")
    return name
