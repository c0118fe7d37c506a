"""Targets: codes and priorities of every clip and view in Zarr, with the view table and the ledger beside them.

One shard object of one array holds one (clip shard, view): one writer each, zstd and crc32c, its sha256 in the ledger. A unit
exists when its ledger part does. ``row = ordinal * rows_per_shard + slot``. A missing object would be read as zeros by Zarr,
so readers check every object against the manifest first.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from models.grid import Grid
from stages.errors import ArtifactDamaged
from stages.storage.artifact import Artifact
from stages.storage.publish import sha256_file, sync_tree
from stages.storage.tables import read_table, write_table

ARRAYS = {"codes": "uint32", "priority": "float16"}
"""Codes need 18 bits at the paper's codebook; priorities are only compared with each other within one clip."""

VIEWS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("view", pa.int32()),
        ("row", pa.int32()),
        ("start_frame", pa.int32()),
        ("y_px", pa.int32()),
        ("x_px", pa.int32()),
        ("size_px", pa.int32()),
        ("flip", pa.bool_()),
        ("num_real_frames", pa.int32()),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("view", pa.int32()),
        ("num_clips", pa.int32()),
        ("codes_sha256", pa.string()),
        ("priority_sha256", pa.string()),
        ("min_code", pa.uint32()),
        ("max_code", pa.uint32()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The extent of a target store."""

    num_shards: int
    rows_per_shard: int
    num_views: int
    grid: Grid
    """Token slots in time, height and width."""


class TargetWriter:
    """The store of one targets artifact, being filled unit by unit.

    Args:
        folder: the artifact's folder.
        shape: its extent, fixed when it is made.
        attributes: what a reader must know, such as the quantizer's levels and the tokenizer's digest.
    """

    def __init__(self, folder: Path, shape: Shape, attributes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.shape = shape
        self._group = zarr.open_group(folder / "targets.zarr", mode="a", zarr_format=3)
        self._group.attrs.put({**vars(shape), **attributes, "grid": list(shape.grid)})
        self._arrays = {name: self._array(name, dtype) for name, dtype in ARRAYS.items()}
        sync_tree(folder / "targets.zarr")

    def _array(self, name: str, dtype: str) -> "zarr.Array[Any]":
        if name in self._group:
            return self._group[name]
        shape = self.shape
        return self._group.create_array(
            name,
            shape=(shape.num_shards * shape.rows_per_shard, shape.num_views, *shape.grid),
            chunks=(1, 1, *shape.grid),
            shards=(shape.rows_per_shard, 1, *shape.grid),
            dtype=dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
            fill_value=0,
            config={"write_empty_chunks": True},
        )

    def is_committed(self, ordinal: int, view: int) -> bool:
        """Whether a unit exists."""
        return self._ledger_path(ordinal, view).exists()

    def write_unit(
        self, ordinal: int, view: int, *, values: Mapping[str, npt.NDArray[Any]], views: Sequence[Mapping[str, Any]]
    ) -> None:
        """Publish one unit: one object per array, the unit's part of the view table, and last its ledger row.

        Args:
            ordinal: the clip shard.
            view: the view's number.
            values: per array ``[num_clips, t, h, w]``.
            views: per clip a row of the view table.
        """
        shape, count = self.shape, len(views)
        digests = {}
        for name, array in self._arrays.items():
            padded = np.zeros((shape.rows_per_shard, 1, *shape.grid), dtype=ARRAYS[name])
            padded[:count, 0] = values[name]
            start = ordinal * shape.rows_per_shard
            array[start : start + shape.rows_per_shard, view : view + 1] = padded
            sync_tree(self.folder / "targets.zarr" / name / "c" / str(ordinal) / str(view))  # Zarr renames but never syncs
            digests[f"{name}_sha256"] = sha256_file(self.folder / object_name(name, ordinal, view))
        write_table(self.folder / "views" / f"part-{ordinal:06d}-{view:02d}.parquet", views, VIEWS_SCHEMA)
        codes = values["codes"]
        row = {"ordinal": ordinal, "view": view, "num_clips": count, "min_code": int(codes.min()), "max_code": int(codes.max())}
        write_table(self._ledger_path(ordinal, view), [{**row, **digests}], LEDGER_SCHEMA)

    def _ledger_path(self, ordinal: int, view: int) -> Path:
        return self.folder / "ledger" / f"part-{ordinal:06d}-{view:02d}.parquet"


class TargetReader:
    """Targets of a committed artifact, read a whole (clip shard, view) at a time and verified on first use.

    Args:
        artifact: a targets artifact.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        for name in ("targets.zarr/zarr.json", *(f"targets.zarr/{array}/zarr.json" for array in ARRAYS)):
            artifact.verified(name)
        self._group = zarr.open_group(artifact.folder / "targets.zarr", mode="r", zarr_format=3)
        self._rows_per_shard: int = self.attributes["rows_per_shard"]
        self._units: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = {}
        parts = [name for name in artifact.manifest.files if name.startswith("views/")]
        rows = [row for name in parts for row in read_table(artifact.verified(name))]
        self.views = {(row["clip_id"], row["view"]): row for row in rows}

    @property
    def attributes(self) -> dict[str, Any]:
        """What the writer recorded: extent, quantizer levels, tokenizer digest."""
        return dict(self._group.attrs)

    def read(self, clip_id: str, view: int) -> dict[str, npt.NDArray[Any]]:
        """Codes ``uint32 [t h w]`` and priority ``float32 [t h w]`` of one clip in one view.

        Raises:
            ArtifactDamaged: the clip has no such view here, or the stored bytes are not those of the manifest.
        """
        if (clip_id, view) not in self.views:
            raise ArtifactDamaged(f"{self._artifact.folder}: holds no targets of clip {clip_id} in view {view}")
        ordinal, slot = divmod(self.views[clip_id, view]["row"], self._rows_per_shard)
        if (ordinal, view) not in self._units:
            self._units[ordinal, view] = self._read_unit(ordinal, view)
        return {name: values[slot] for name, values in self._units[ordinal, view].items()}

    def _read_unit(self, ordinal: int, view: int) -> dict[str, npt.NDArray[Any]]:
        rows = self._rows_per_shard
        unit = {}
        for name in ARRAYS:
            self._artifact.verified(object_name(name, ordinal, view))
            unit[name] = np.asarray(self._group[name][ordinal * rows : (ordinal + 1) * rows, view])
        return {"codes": unit["codes"], "priority": unit["priority"].astype(np.float32)}


def object_name(array: str, ordinal: int, view: int) -> str:
    """The file of one shard object, as Zarr's default chunk keys spell it."""
    return f"targets.zarr/{array}/c/{ordinal}/{view}/0/0/0"
