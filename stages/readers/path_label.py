"""The text lists of published video models: ``path label``, or with a range of frames ``path start total label``."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import ClassVar, Literal

from pydantic import Field

from stages.errors import ConfigError
from stages.places import is_remote
from stages.readers import Labels, ReaderConfig, Source, Span, plain_name
from stages.readers._annotations import Segment, labelled, located, streamed
from stages.readers._files import SUFFIXES, join, parent
from stages.readers._tables import Where, integer, lines, ordered
from stages.storage.workspace import Workspace

ALL = -1
"""In place of a first frame or a number of frames: all of the video."""

_SEPARATORS: Mapping[str, str | None] = MappingProxyType({"space": None, "comma": ",", "tab": "\t"})


class Config(ReaderConfig):
    """One text list per split, a line per video or per range of its frames. Paths may hold the separator: lines are split
    from the right. Folders of images are refused, for this project decodes videos only."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"lists", "root"})

    name: Literal["path_label"] = "path_label"
    """The name in a recipe."""

    lists: dict[str, str] = Field(min_length=1)
    """The list of each split, a local path or an URL: ``{train: train.csv, val: val.csv}``. The split becomes a label."""

    root: str | None = None
    """The folder or the URL that paths are relative to; null takes each list's own folder."""

    columns: Literal["path label", "path start total label", "path start total"] = "path label"
    """What a line holds. ``start`` and ``total`` are the first frame and the number of frames; -1 for ``total`` means all."""

    separator: Literal["space", "comma", "tab"] = "space"
    """What stands between the columns; ``space`` takes any run of spaces and tabs."""

    multi_label: bool = False
    """Whether a label may be several, with commas between them; not with ``separator: comma``."""

    fps: float | None = Field(default=None, gt=0)
    """Frames per second by which ranges of frames were counted; needed if the lists have any."""

    def dataset_name(self) -> str:
        """The name of the folder of the first list."""
        return plain_name(PurePosixPath(parent(next(iter(self.lists.values())))).name)

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """What the lists name, in their order.

        Raises:
            SourceMissing: there is no such list.
            ConfigError: a line cannot be meant, names a folder, or has a range of frames although there is no ``fps``.
        """
        if self.multi_label and self.separator == "comma":
            raise ConfigError("multi_label: commas cannot separate both columns and labels; set separator to space or tab")
        return streamed(self._segments(), "lines of one video must follow each other, in one list")

    def _segments(self) -> Iterator[Segment]:
        for split, url in self.lists.items():
            base = join(self.root or parent(url), "")
            for where, line in lines(url):
                yield self._segment(where, line, split, base)

    def _segment(self, where: Where, line: str, split: str, base: str) -> Segment:
        names = self.columns.split()
        fields = [field.strip() for field in line.rsplit(_SEPARATORS[self.separator], len(names) - 1)]
        if len(fields) < len(names) or not all(fields):
            raise where.wrong(f"is {line[:80]!r} and not {self.columns!r} by {self.separator}; set columns and separator")
        values = dict(zip(names, fields, strict=True))
        key, place = located(values["path"], base, where)
        if not key.lower().endswith(SUFFIXES) and not is_remote(place.url) and Path(place.url).is_dir():
            raise where.wrong(f"{key!r} is a folder of images, which are not decoded; give the video that they were taken from")
        labels = labelled({"class": self._classes(values.get("label", ""), where), "split": split})
        span = self._span(values, where, labels) if "total" in values else None
        return Segment(where, key, place, span, {} if span else labels)

    def _classes(self, label: str, where: Where) -> list[str]:
        if self.multi_label:
            return label.split(",")
        if "," in label:
            raise where.wrong(f"the label is {label!r}; set multi_label for several, or separator: comma for columns by comma")
        return [label]

    def _span(self, values: Mapping[str, str], where: Where, labels: Labels) -> Span | None:
        start, total = (integer(values[name], where, name) for name in ("start", "total"))
        if total == ALL and start in (0, ALL):
            return None
        if start < 0 or total < 0:
            raise where.wrong(f"start {start} and total {total}: give both, or -1 for total and 0 for start to take all of it")
        if self.fps is None:
            raise where.wrong(f"takes frames {start} to {start + total}; set fps, the rate by which they were counted")
        return Span(f"{start}+{total}", *ordered(start / self.fps, (start + total) / self.fps, where), labels)
