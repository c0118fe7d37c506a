"""What a target store consists of: arrays, files, tables, and what makes one unit the same as another.

Every clip shard has a Zarr group of its own with one array per product, ``[num_clips, num_views, t, h, w(, c)]``. So a shard
that lands later is a new group, and nothing is ever resized. One shard object of such an array holds one view of all clips.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import pyarrow as pa

from stages.storage.artifact import Artifact
from stages.storage.publish import canonical_json, sha256_bytes

STORE = "targets.zarr"
ROOT = f"{STORE}/zarr.json"

VIEWS_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("ordinal", pa.int32()),
        ("view", pa.int32()),
        ("slot", pa.int32()),
        ("start_frame", pa.int32()),
        ("y_px", pa.int32()),
        ("x_px", pa.int32()),
        ("size_px", pa.int32()),
        ("flip", pa.bool_()),
        ("num_real_frames", pa.int32()),
        ("chunks", pa.list_(pa.struct([("offset_bytes", pa.int64()), ("size_bytes", pa.int64()), ("crc32c", pa.uint32())]))),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("ordinal", pa.int32()),
        ("view", pa.int32()),
        ("num_clips", pa.int32()),
        ("unit", pa.string()),
        ("min_code", pa.uint32()),
        ("max_code", pa.uint32()),
        ("files", pa.list_(pa.struct([("name", pa.string()), ("size_bytes", pa.int64()), ("sha256", pa.string())]))),
    ]
)


class ArraySpec(NamedTuple):
    """One array of every clip shard."""

    name: str
    dtype: str
    num_channels: int | None = None
    """Values per token; ``None``: one, without an axis of its own."""


CODES = ArraySpec("codes", "uint32")
"""Codes need 18 bits at the paper's codebook."""
PRIORITY = ArraySpec("priority", "float16")
"""Priorities are only compared with each other within one clip."""


@dataclasses.dataclass(frozen=True)
class Extent:
    """What is the same for every clip shard of a store."""

    num_views: int
    grid: tuple[int, int, int]
    """Token slots in time, height and width."""
    codebook_size: int
    """Codes are below it."""
    arrays: tuple[ArraySpec, ...] = (CODES, PRIORITY)
    """In the order in which the view table names their chunks."""

    def attributes(self) -> dict[str, Any]:
        """The extent as JSON values."""
        return {**vars(self), "grid": list(self.grid), "arrays": [spec._asdict() for spec in self.arrays]}

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Self:
        """The extent that a store's attributes describe."""
        plain = {field.name: attributes[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**plain, "grid": tuple(plain["grid"]), "arrays": tuple(ArraySpec(**spec) for spec in plain["arrays"])})

    def shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """The shape of one clip's values in one view."""
        return (*self.grid,) if spec.num_channels is None else (*self.grid, spec.num_channels)


class UnitFile(NamedTuple):
    """What a ledger row says of one file of its unit."""

    name: str
    size_bytes: int
    sha256: str


class Unit(NamedTuple):
    """One view of all clips of one shard: what is computed, published and adopted as a whole."""

    ordinal: int
    """The clip shard."""
    view: int
    num_clips: int
    digest: str
    """Of all that determines its bytes: units with the same digest are the same."""


def unit_digest(snapshot: Artifact, ordinal: int, view: int, made_by: Mapping[str, Any]) -> str:
    """The digest of everything that determines a unit's bytes.

    Args:
        snapshot: the clips; of its files only the two of this shard count, so that a unit outlives snapshots.
        ordinal: the clip shard.
        view: the view's number.
        made_by: what turns clips into values, as JSON values.
    """
    files = snapshot.manifest.files
    clips = [f"index/part-{ordinal:06d}.parquet", f"shards/{snapshot.folder.name}-{ordinal:06d}.tar"]
    made_of = {"clips": [files[name].sha256 for name in clips], "ordinal": ordinal, "view": view}
    return sha256_bytes(canonical_json({**made_of, "made_by": made_by}))


def group_name(ordinal: int) -> str:
    """The metadata of a clip shard's group."""
    return f"{STORE}/{ordinal:06d}/zarr.json"


def array_name(spec: ArraySpec, ordinal: int) -> str:
    """The metadata of an array of a clip shard."""
    return f"{STORE}/{ordinal:06d}/{spec.name}/zarr.json"


def object_name(spec: ArraySpec, ordinal: int, view: int) -> str:
    """The file of one view of a clip shard, as Zarr's default chunk keys with dots spell it."""
    rest = ".0" * (3 if spec.num_channels is None else 4)
    return f"{STORE}/{ordinal:06d}/{spec.name}/c.0.{view}{rest}"


def views_name(ordinal: int, view: int) -> str:
    """A unit's part of the view table."""
    return f"views/part-{ordinal:06d}-{view:02d}.parquet"


def ledger_name(ordinal: int, view: int) -> str:
    """A unit's part of the ledger, which makes it exist."""
    return f"ledger/part-{ordinal:06d}-{view:02d}.parquet"
