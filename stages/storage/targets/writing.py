"""Targets being written: one unit after the other, each whole or not at all.

Zarr encodes into memory, and what comes out is published as every other file is: Zarr's own store renames without syncing. A
unit is its objects, its part of the view table and last its ledger row, which makes it exist. One unit has one writer, and a
second one writes the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from stages.errors import ArtifactDamaged, TargetsInvalid
from stages.storage.artifact import FileRecord
from stages.storage.publish import publish_bytes, sha256_bytes
from stages.storage.tables import encode_table, read_table
from stages.storage.targets.chunks import CHECKSUM_BYTES, Chunk, ChunkReader, Place, Values
from stages.storage.targets.layout import (
    CODES,
    LEDGER_SCHEMA,
    ROOT,
    VIEWS_SCHEMA,
    ArraySpec,
    Extent,
    Unit,
    UnitFile,
    array_name,
    group_name,
    ledger_name,
    object_name,
    views_name,
)


class TargetWriter:
    """The store of one targets artifact, being filled unit by unit.

    Args:
        folder: the artifact's folder.
        extent: of the store.
        attributes: what a reader must know beside the extent, such as the quantizer and the tokenizer's digest.
    """

    def __init__(self, folder: Path, extent: Extent, attributes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.extent = extent
        self._reader = ChunkReader(str(folder), extent)
        self._settle(ROOT, _group({**attributes, **extent.attributes()}))

    def holds(self, unit: Unit) -> bool:
        """Whether a unit exists, and every byte of it is as its ledger row says."""
        path = self.folder / ledger_name(unit.ordinal, unit.view)
        try:
            row = read_ledger(path)
        except (FileNotFoundError, ArtifactDamaged):
            return False
        if row["unit"] != unit.digest or path.read_bytes() != _encoded_ledger(row):  # not all of a table is under a checksum
            return False
        return all(self._is_whole(name, record) for name, record in row["files"].items())

    def prepare(self, ordinal: int, num_clips: int) -> None:
        """Publish the metadata of a clip shard, which is the same for all its units."""
        self._settle(group_name(ordinal), _group({}))
        for spec in self.extent.arrays:
            self._settle(array_name(spec, ordinal), _encoded(self.extent, spec, num_clips)["zarr.json"])

    def write_unit(
        self,
        unit: Unit,
        *,
        values: Mapping[str, Values],
        views: Sequence[Mapping[str, Any]],
        again: Mapping[int, Mapping[str, Values]] | None = None,
    ) -> None:
        """Publish one unit: one object per array, the unit's part of the view table, and last its ledger row.

        Args:
            unit: which.
            values: per array ``[num_clips, t, h, w]``, with channels behind where it has some.
            views: per clip its row of the view table, without the places.
            again: per slot values that were computed a second time; the unit exists only if they are what was stored.

        Raises:
            TargetsInvalid: a code is not in the codebook, a value is not finite, or the second computation differs.
        """
        self.prepare(unit.ordinal, unit.num_clips)
        kept = {spec.name: self._kept(unit, spec, values[spec.name], views) for spec in self.extent.arrays}
        records: dict[str, FileRecord] = {}
        chunks = [self._publish_object(unit, spec, kept[spec.name], records) for spec in self.extent.arrays]
        rows = [
            {**view, "ordinal": unit.ordinal, "slot": slot, "chunks": where}
            for slot, (view, where) in enumerate(zip(views, zip(*chunks, strict=True), strict=True))
        ]
        self._publish(views_name(unit.ordinal, unit.view), encode_table(rows, VIEWS_SCHEMA), records)
        for slot, second in (again or {}).items():
            self._compare(Place(**rows[slot]), second)
        codes = kept[CODES.name]
        row = {"ordinal": unit.ordinal, "view": unit.view, "num_clips": unit.num_clips, "unit": unit.digest, "files": records}
        row |= {"min_code": int(codes.min()), "max_code": int(codes.max())}
        publish_bytes(self.folder / ledger_name(unit.ordinal, unit.view), _encoded_ledger(row))

    def _publish_object(self, unit: Unit, spec: ArraySpec, values: Values, records: dict[str, FileRecord]) -> list[Chunk]:
        """Publish one view of one array; where each clip's values lie in it."""
        name = object_name(spec, unit.ordinal, unit.view)
        data = _encoded(self.extent, spec, unit.num_clips, view=unit.view, values=values)[Path(name).name]
        self._publish(name, data, records)
        return _chunks(data, unit.num_clips)

    def _publish(self, name: str, data: bytes, records: dict[str, FileRecord]) -> None:
        publish_bytes(self.folder / name, data)
        records[name] = FileRecord(size_bytes=len(data), sha256=sha256_bytes(data))

    def _settle(self, name: str, data: bytes) -> None:
        """Publish what several units share, unless it is there."""
        path = self.folder / name
        if not path.exists() or path.read_bytes() != data:
            publish_bytes(path, data)

    def _is_whole(self, name: str, record: FileRecord) -> bool:
        path = self.folder / name
        return path.is_file() and FileRecord.of(path) == record

    def _kept(self, unit: Unit, spec: ArraySpec, values: Values, views: Sequence[Mapping[str, Any]]) -> Values:
        """The values in the type that is stored, after checking every one.

        Raises:
            TargetsInvalid: one cannot be stored.
        """
        wanted = (unit.num_clips, *self.extent.shape(spec))
        if values.shape != wanted:
            raise TargetsInvalid(f"{spec.name} of clip shard {unit.ordinal} has the shape {values.shape} instead of {wanted}")
        with np.errstate(over="ignore", invalid="ignore"):
            kept = values.astype(spec.dtype)
        wrong = ~np.isfinite(kept) if kept.dtype.kind == "f" else kept != values
        if spec.name == CODES.name:
            wrong |= kept >= self.extent.codebook_size
        if wrong.any():
            bad = np.unique(np.nonzero(wrong)[0])
            ids = ", ".join(views[slot]["clip_id"] for slot in bad[:4]) + (f" and {len(bad) - 4} more" if len(bad) > 4 else "")
            bound = f"below {self.extent.codebook_size}" if spec.name == CODES.name else f"finite in {spec.dtype}"
            raise TargetsInvalid(
                f"{spec.name} of clip {ids} in view {unit.view} is {values[wrong][0]}, and must be {bound}; the view of clip "
                f"shard {unit.ordinal} is not stored: look at the tokenizer's metrics, or set precompute.precision to fp32"
            )
        return kept

    def _compare(self, place: Place, second: Mapping[str, Values]) -> None:
        """Hold what was stored, as a training would read it, against a second computation."""
        for name, stored in self._reader.read(place).items():
            if not np.array_equal(stored, second[name].astype(stored.dtype)):
                count = np.count_nonzero(stored != second[name].astype(stored.dtype))
                raise TargetsInvalid(
                    f"{name} of clip {place.clip_id} in view {place.view} came out differently when it was computed again "
                    f"({count} of {stored.size} values): this machine does not compute reproducibly; the view of clip shard "
                    f"{place.ordinal} is not stored: look for faulty memory, or set precompute.precision to fp32"
                )


def read_ledger(path: Path) -> dict[str, Any]:
    """A unit's ledger row; ``files`` are the records of its files by name. One of another version has no ``unit``.

    Raises:
        ArtifactDamaged: it cannot be read.
        FileNotFoundError: there is none.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    (row,) = read_table(path)
    files = {file["name"]: FileRecord(size_bytes=file["size_bytes"], sha256=file["sha256"]) for file in row.get("files", ())}
    return {"unit": "", **row, "files": files}


def _encoded_ledger(row: Mapping[str, Any]) -> bytes:
    """A ledger row as a file."""
    files = [UnitFile(name, record.size_bytes, record.sha256) for name, record in row["files"].items()]
    return encode_table([{**row, "files": files}], LEDGER_SCHEMA)


def _chunks(data: bytes, num_clips: int) -> list[Chunk]:
    """Where each clip's values lie in a shard object, by the index at its end."""
    size_bytes = num_clips * 2 * 8
    index = np.frombuffer(data[-size_bytes - CHECKSUM_BYTES : -CHECKSUM_BYTES], "<u8").reshape(num_clips, 2).tolist()
    ends = [(offset, size, data[offset + size - CHECKSUM_BYTES : offset + size]) for offset, size in index]
    return [Chunk(offset, size, int.from_bytes(checksum, "little")) for offset, size, checksum in ends]


def _encoded(
    extent: Extent, spec: ArraySpec, num_clips: int, *, view: int | None = None, values: Values | None = None
) -> dict[str, bytes]:
    """The files of one array of a clip shard, by the names that Zarr gives them: its metadata, and one view if it is given."""
    store: dict[str, Any] = {}
    shape = extent.shape(spec)
    array: Any = zarr.create_array(
        store=MemoryStore(store),
        shape=(num_clips, extent.num_views, *shape),
        chunks=(1, 1, *shape),
        shards=(num_clips, 1, *shape),
        dtype=spec.dtype,
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        fill_value=0,
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    if view is not None and values is not None:
        array[:, view : view + 1] = values[:, None]
    return {name: data.to_bytes() for name, data in store.items()}


def _group(attributes: Mapping[str, Any]) -> bytes:
    """The metadata of a group, as Zarr spells it."""
    return json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2, sort_keys=True).encode()
