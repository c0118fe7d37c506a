"""Parquet files that appear whole, with page checksums: plain rows in, plain rows out."""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import ArtifactDamaged
from stages.storage.publish import publish_bytes

Row = Mapping[str, Any]


def encode_table(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """Rows as the bytes of a Parquet file: equal rows give equal bytes."""
    buffer = io.BytesIO()
    pq.write_table(as_arrow(rows, schema), buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def write_table(path: Path, rows: Sequence[Row], schema: pa.Schema) -> None:
    """Publish rows as one Parquet file."""
    publish_bytes(path, encode_table(rows, schema))


def write_groups(file: BinaryIO | io.RawIOBase, groups: Iterable[Sequence[Row]], schema: pa.Schema) -> int:
    """Write rows as a Parquet file of one row group per group, one group in memory at a time; how many there were."""
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in groups:
            writer.write_table(as_arrow(rows, schema), row_group_size=len(rows))
            count += 1
    return count


def read_arrow(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file, page checksums verified.

    Raises:
        ArtifactDamaged: it is not such a file, or a page is not as it was written.
    """
    with _reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:  # read_table would load pandas
        return file.read(columns=columns)


def read_table(path: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of one Parquet file, maps as dictionaries."""
    return as_rows(read_arrow(path, columns))


class Groups:
    """A Parquet file that is read one row group at a time; its footer is parsed once.

    Args:
        path: the file, which never changes.

    Raises:
        ArtifactDamaged: it is not such a file; its methods say so too.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _reading(path):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)

    def num_rows(self, number: int) -> int:
        """How many rows a group has."""
        return int(self._file.metadata.row_group(number).num_rows)

    def rows(self, number: int, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """The rows of a group."""
        with _reading(self._path):
            return as_rows(self._file.read_row_group(number, columns=columns))


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtifactDamaged(f"{path}: cannot be read as a table ({error}); run `lvmae verify`") from error


def as_arrow(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Rows of plain values as a table; a column that a row lacks is null."""
    return pa.Table.from_pylist([{name: _plain(row.get(name)) for name in schema.names} for row in rows], schema=schema)


def as_rows(table: pa.Table) -> list[dict[str, Any]]:
    """A table as rows of plain values, maps as dictionaries."""
    rows: list[dict[str, Any]] = table.to_pylist(maps_as_pydicts="strict")
    return rows


def _plain(value: Any) -> Any:
    """A value as Arrow takes it: maps sorted by key, so that equal ones give equal bytes; named tuples as dictionaries."""
    if isinstance(value, Mapping):
        return [(key, _plain(value[key])) for key in sorted(value)]
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    return value
