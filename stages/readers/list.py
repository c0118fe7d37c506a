"""Videos that a list names, in CSV, TSV, JSON lines or Parquet: with labels, and with start and end for parts of videos."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages.errors import ConfigError, SourceMissing
from stages.readers import Labels, ReaderConfig, Source, Span, plain_name
from stages.readers._annotations import Segment, is_value, labelled, located, streamed
from stages.readers._files import join, opened, parent
from stages.readers._tables import Where, lines, number, ordered, parsed, table
from stages.storage.workspace import Workspace

PATH, START, END, ID = "path", "start_s", "end_s", "id"

_BATCH_ROWS = 4096

Rows = Iterator[tuple[Where, Mapping[str, Any]]]


class Config(ReaderConfig):
    """A list with a row per video, or per part of one; read row by row, whatever its length.

    Its columns: ``path``, relative to ``root``, absolute, or an URL; ``start_s`` and ``end_s`` for a part, in seconds;
    ``id`` for what the part, or the video, is called; every other one is a label. Lists in JSON lines and Parquet, and cells of
    a CSV that are a JSON list, are labels with several values.
    """

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path", "root"})

    name: Literal["list"] = "list"
    """The name in a recipe."""

    path: str
    """The list, a local path or an URL. Rows of one video follow each other."""

    root: str | None = None
    """The folder or the URL that paths are relative to; null takes the list's own folder."""

    format: Literal["csv", "tsv", "jsonl", "parquet"] | None = None
    """What the list is; null goes by the ending of its name."""

    separator: str | None = Field(default=None, min_length=1)
    """What stands between the values of one cell of a CSV or TSV, for example ``|``; null makes every cell one value."""

    def dataset_name(self) -> str:
        """The list's own name without its ending."""
        return plain_name(PurePosixPath(self.path).name.partition(".")[0])

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """What the list names, in its order.

        Raises:
            SourceMissing: there is no such list, or it names nothing.
            ConfigError: it cannot be read, or a row of it cannot be meant.
        """
        base = join(self.root or parent(self.path), "")
        amount = 0
        for source in streamed((self._segment(where, row, base) for where, row in self._rows()), "sort the list by path"):
            amount += 1
            yield source
        if not amount:
            raise SourceMissing(f"{self.path}: names no video; give a list with at least one row")

    def _rows(self) -> Rows:
        ending = PurePosixPath(self.path).suffix.lower().removeprefix(".")
        read = _FORMATS.get(self.format or ending)
        if read is None:
            raise ConfigError(f"{self.path}: ends in {ending!r} and in none of {', '.join(_FORMATS)}; say which with format")
        return read(self.path)

    def _segment(self, where: Where, row: Mapping[str, Any], base: str) -> Segment:
        if not isinstance(row.get(PATH), str) or not row[PATH].strip():
            raise where.wrong(f"nothing stands in column {PATH!r}; fill it in or remove the row")
        key, place = located(row[PATH].strip(), base, where)
        labels = self._labels(where, row)
        start, end, native_id = _text(row, START), _text(row, END), _text(row, ID)
        if not start and not end:
            return Segment(where, key, place, None, {**labels, ID: (native_id,)} if native_id else labels)
        start_s, end_s = ordered(number(start, where, START), number(end, where, END), where)
        return Segment(where, key, place, Span(native_id or f"{start}-{end}", start_s, end_s, labels), {})

    def _labels(self, where: Where, row: Mapping[str, Any]) -> Labels:
        columns = {column: value for column, value in row.items() if column not in (PATH, START, END, ID) and value is not None}
        for column, value in columns.items():
            if not isinstance(value, str) and not is_value(value):
                raise where.wrong(f"column {column!r} is {str(value)[:80]}; a label is a text, a number, or a list of these")
        return labelled({column: self._values(value) for column, value in columns.items()})

    def _values(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value.startswith("["):
            with contextlib.suppress(json.JSONDecodeError):
                return values if is_value(values := json.loads(value)) else value
        return value.split(self.separator) if self.separator else value


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    return "" if value is None else str(value).strip()


def _csv(url: str) -> Rows:
    return ((row.where, row.values) for row in table(url, needed=[PATH]))


def _tsv(url: str) -> Rows:
    return ((row.where, row.values) for row in table(url, needed=[PATH], delimiter="\t"))


def _jsonl(url: str) -> Rows:
    for where, line in lines(url):
        row = parsed(line, url, where.spot)
        if not isinstance(row, dict):
            raise where.wrong(f"is {line[:80]} and not an object; write one object per line")
        yield where, row


def _parquet(url: str) -> Rows:
    with opened(url) as file:
        try:
            table = pq.ParquetFile(file)
            if PATH not in table.schema_arrow.names:
                raise ConfigError(f"{url}: has no column {PATH!r}; it has {table.schema_arrow.names}")
            batches = (batch.to_pylist() for batch in table.iter_batches(batch_size=_BATCH_ROWS))
            for count, row in enumerate((row for batch in batches for row in batch), start=1):
                yield Where(url, f"row {count}"), row
        except pa.ArrowException as error:
            raise ConfigError(f"{url}: is not Parquet that can be read: {error}; write it again") from error


_FORMATS: Mapping[str, Callable[[str], Rows]] = MappingProxyType(
    {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "ndjson": _jsonl, "parquet": _parquet}
)
