"""Videos below folders or prefixes of an object store, with their labels in a CSV beside them."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from stages.errors import ConfigError, SourceMissing
from stages.places import Place
from stages.readers import Labels, ReaderConfig, Source, plain_name
from stages.readers._annotations import labelled
from stages.readers._files import SUFFIXES, Tree, exists, join, tree
from stages.readers._tables import inner, table
from stages.storage.workspace import Workspace

LABELS_NAME = "labels.csv"
KEY_COLUMN = "path"

_NAME_CHARS = 64


class Config(ReaderConfig):
    """Folders of videos: every file below them whose name ends like a video's, and every file their labels name.

    Files whose name starts with a dot, and what links to folders lead to, are left alone.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})

    name: Literal["folder"] = "folder"
    """The name in a recipe."""

    path: str | tuple[str, ...] = Field(min_length=1)
    """A folder, a prefix such as ``s3://bucket/videos``, a glob in either, or a list of these. What a glob matches is taken,
    files and everything below folders. With several, keys start with the name of the folder, and the names must differ."""

    labels: str | None = None
    """A CSV in each folder, for a glob in the folder before the first wildcard: a column ``path``, relative to the folder, and
    one column per label; an empty cell is no label. Null takes ``labels.csv`` where there is one."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between the values of one cell of the labels, for example ``|``; null makes every cell one value."""

    suffixes: tuple[str, ...] = SUFFIXES
    """Endings of the names of videos, in lower case."""

    @field_validator("path", mode="before")
    @classmethod
    def _paths_are_text(cls, value: Any) -> Any:
        paths = value if isinstance(value, list | tuple) else [value]
        texts = [str(path) if isinstance(path, Path) else path for path in paths]
        return texts if paths is value else texts[0]

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [each.name for each in self._trees()]
        if len(set(names)) < len(names):
            raise ValueError(
                f"path: two of the folders {self.path} have the same name {names}; rename one, or give their parent"
            )
        return self

    def dataset_name(self) -> str:
        """The folder's own name, or the names of several."""
        return plain_name("-".join(each.name for each in self._trees()))[:_NAME_CHARS]

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """What is found in the folders and what their labels name, each once.

        Raises:
            SourceMissing: there is no such folder, or no video in it.
            ConfigError: the labels cannot be read, or name something twice or outside the folder.
        """
        trees = self._trees()
        for each in trees:
            yield from self._below(each, f"{each.name}/" if len(trees) > 1 else "")

    def _trees(self) -> list[Tree]:
        return [tree(path) for path in ((self.path,) if isinstance(self.path, str) else self.path)]

    def _below(self, folder: Tree, prefix: str) -> Iterator[Source]:
        files, labels, amount = folder.files(), self._labels(folder), 0
        for name, place, stamp in files:
            if name in labels or PurePosixPath(name).suffix.lower() in self.suffixes:
                amount += 1
                yield Source(key=prefix + name, place=place, labels=labels.pop(name, {}), stamp=stamp)
        for key, values in labels.items():
            if folder.takes(key):
                amount += 1
                yield Source(key=prefix + key, place=Place(join(folder.root, key)), labels=values)
        if not amount:
            endings = ", ".join(self.suffixes)
            raise SourceMissing(f"{join(*folder)}: holds no video, that is no file whose name ends in one of {endings}")

    def _labels(self, folder: Tree) -> dict[str, Labels]:
        url = join(folder.root, self.labels or LABELS_NAME)
        if exists(url):
            return read_labels(url, separator=self.separator)
        if self.labels:
            raise ConfigError(f"{url}: no such file, although labels={self.labels!r}; leave it out to go without")
        return {}


def read_labels(url: str | Path, *, separator: str | None = None) -> dict[str, Labels]:
    """The labels of a label file by the value of its column ``path``.

    Args:
        url: the file.
        separator: what stands between the values of one cell; null makes every cell one value.

    Raises:
        ConfigError: it is not such a file.
    """
    labels: dict[str, Labels] = {}
    for row in table(str(url), needed=[KEY_COLUMN]):
        key = inner(row.values[KEY_COLUMN], row.where)
        if key in labels:
            raise row.where.wrong(f"names {key!r} a second time; remove one of the two")
        columns = {column: cell for column, cell in row.values.items() if column != KEY_COLUMN}
        labels[key] = labelled({column: cell.split(separator) if separator else cell for column, cell in columns.items()})
    return labels
