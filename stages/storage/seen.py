"""What the last listing of the sources found: where each lies, and which bytes it held under which stamp.

A cache: it spares reading every source again on every run, and says where a planned source lies now. It depends on the machine,
so it is no part of a dataset; without it, everything is read once more.
"""

import contextlib
import filecmp
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import ArtifactDamaged
from stages.places import Place
from stages.storage.publish import make_folder, temporary_sibling
from stages.storage.tables import read_arrow

SEEN_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("stamp", pa.string()),
        ("annotation", pa.string()),
        ("source_id", pa.string()),
        ("size_bytes", pa.int64()),
        ("url", pa.binary()),
        ("offset_bytes", pa.int64()),
        ("length_bytes", pa.int64()),
    ]
)


class Sighting(NamedTuple):
    """A source as it was seen."""

    key: str
    stamp: str
    """The version of its bytes; empty when there was nothing to see."""
    annotation: str
    """A digest of all that was annotated about it."""
    source_id: str
    size_bytes: int
    url: str
    offset_bytes: int
    length_bytes: int

    @property
    def place(self) -> Place:
        """Where it lies."""
        return Place(self.url, self.offset_bytes, self.length_bytes)


class Seen:
    """The sightings of one listing.

    Args:
        table: as ``SEEN_SCHEMA`` says.
    """

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()  # taking rows of many chunks would join them every time
        self._ids: npt.NDArray[np.bytes_] | None = None
        self._order: npt.NDArray[np.int64] | None = None

    @classmethod
    def load(cls, path: Path) -> "Seen":
        """The sightings in a file; none when it is missing or damaged, for it is a cache."""
        with contextlib.suppress(ArtifactDamaged):
            table = read_arrow(path)
            if table.schema.equals(SEEN_SCHEMA):
                return cls(table)
        return cls(SEEN_SCHEMA.empty_table())

    def __len__(self) -> int:
        return len(self._table)

    def at(self, keys: Sequence[str]) -> list[Sighting | None]:
        """The sighting of each key."""
        rows = pc.index_in(pa.array(keys, pa.string()), value_set=self._table["key"])
        return self._taken(rows)

    def keys_among(self, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` that were seen."""
        asked = pa.array(keys, pa.string())
        return set(asked.filter(pc.is_in(asked, value_set=self._table["key"])).to_pylist())

    def num_missing_from(self, later: "Seen") -> int:
        """How many keys a later listing lacks."""
        return len(self) - int(pc.sum(pc.is_in(self._table["key"], value_set=later._table["key"])).as_py() or 0)

    def holders(self, source_ids: Sequence[str]) -> list[list[Sighting]]:
        """Per source every sighting of its bytes."""
        if self._ids is None or self._order is None:
            ids = self._table["source_id"].to_numpy().astype("S64")
            self._order = np.argsort(ids, kind="stable")
            self._ids = ids[self._order]
        wanted = np.array([source_id.encode() for source_id in source_ids], dtype="S64")
        firsts, lasts = np.searchsorted(self._ids, wanted, "left"), np.searchsorted(self._ids, wanted, "right")
        found = []
        for first, last in zip(firsts, lasts, strict=True):
            found.append([row for row in self._taken(pa.array(self._order[first:last])) if row])
        return found

    def _taken(self, rows: pa.Array) -> list[Sighting | None]:
        found = self._table.take(rows).to_pylist()
        return [Sighting(**{**row, "url": os.fsdecode(row["url"])}) if row["key"] is not None else None for row in found]


class SeenWriter:
    """A new file of sightings, written batch by batch beside the one that it may replace.

    Args:
        folder: where it lies; made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self._path = temporary_sibling(make_folder(folder) / "seen.parquet")
        self._writer = pq.ParquetWriter(self._path, SEEN_SCHEMA, compression="zstd", write_page_checksum=True)

    def add(self, sightings: Sequence[Sighting]) -> None:
        """Append a batch."""
        rows = [{**sighting._asdict(), "url": os.fsencode(sighting.url)} for sighting in sightings]  # a path need not be UTF-8
        columns = [[row[name] for row in rows] for name in SEEN_SCHEMA.names]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SEEN_SCHEMA, strict=True)]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=SEEN_SCHEMA))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()

    def written(self) -> Seen:
        """What was written, after ``close``."""
        return Seen.load(self._path)

    def keep(self, path: Path) -> Seen:
        """Put the file in the place of an earlier one, unless that holds the same; what was written."""
        written = self.written()
        if path.exists() and filecmp.cmp(path, self._path, shallow=False):
            self._path.unlink()
        else:
            self._path.replace(path)
        return written
