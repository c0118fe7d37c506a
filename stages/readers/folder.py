"""Videos below a folder, with their labels in a CSV beside them."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from stages.errors import ConfigError, SourceMissing
from stages.readers import ReaderConfig, Source, plain_name
from stages.storage.workspace import Workspace

LABELS_NAME = "labels.csv"
KEY_COLUMN = "path"
SUFFIXES = (
    *(
        ".3g2",
        ".3gp",
        ".264",
        ".asf",
        ".avi",
        ".flv",
        ".gif",
        ".h264",
        ".h265",
        ".hevc",
        ".ivf",
        ".m2ts",
        ".m4v",
        ".mj2",
        ".mkv",
    ),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


class Config(ReaderConfig):
    """A folder of videos: every file below it whose name ends like a video's, and every file its labels name.

    Files whose name starts with a dot, and what links to folders lead to, are left alone.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})

    name: Literal["folder"] = "folder"
    """The name in a recipe."""

    path: Path
    """The folder."""

    labels: str | None = None
    """A CSV below the folder: a column ``path``, relative to the folder, and one column per label. Null takes ``labels.csv``
    if there is one."""

    suffixes: tuple[str, ...] = SUFFIXES
    """Endings of the names of videos, in lower case."""

    def dataset_name(self) -> str:
        """The folder's own name."""
        return plain_name(self.path.expanduser().absolute().name)

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """What is found in the folder and what its labels name, each once.

        Raises:
            SourceMissing: there is no such folder, or no video in it.
            ConfigError: the labels cannot be read, or name something twice or outside the folder.
        """
        root = self.path.expanduser().absolute()
        if not root.is_dir():
            raise SourceMissing(f"{root}: no such folder; give the folder that holds the videos")
        labels = self._labels(root)
        paths = {spelled(path.relative_to(root)): path for path in _files(root) if path.suffix.lower() in self.suffixes}
        paths |= {key: root / key for key in labels if key not in paths}
        if not paths:
            raise SourceMissing(f"{root}: holds no video, that is no file whose name ends in one of {', '.join(self.suffixes)}")
        return [Source(key=key, path=path, labels=labels.get(key, {})) for key, path in sorted(paths.items())]

    def _labels(self, root: Path) -> dict[str, Mapping[str, str]]:
        path = root / (self.labels or LABELS_NAME)
        if not path.exists():
            if self.labels:
                raise ConfigError(f"{path}: no such file, although labels={self.labels!r}; leave it out to go without")
            return {}
        return read_labels(path)


def read_labels(path: Path) -> dict[str, Mapping[str, str]]:
    """The columns of a label file by the value of its column ``path``.

    Raises:
        ConfigError: it is not such a file.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            table = csv.DictReader(file, strict=True)
            columns, rows = table.fieldnames or [], list(table)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: not a CSV in UTF-8: {error}") from error
    if KEY_COLUMN not in columns:
        raise ConfigError(f"{path}: has no column {KEY_COLUMN!r}; it has {list(columns)}")
    labels: dict[str, Mapping[str, str]] = {}
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise ConfigError(f"{path}: row {number} has not the {len(columns)} fields of the header")
        key = PurePosixPath(row.pop(KEY_COLUMN))
        if key.is_absolute() or ".." in key.parts or not key.parts:
            raise ConfigError(f"{path}: row {number} names {str(key)!r}, which is not below the folder")
        if str(key) in labels:
            raise ConfigError(f"{path}: row {number} names {str(key)!r} a second time")
        labels[str(key)] = row
    return labels


def spelled(path: Path) -> str:
    """A relative path as text that any table can hold: bytes that are no UTF-8 become escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _files(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(folder) / name for name in names if not name.startswith("."))
