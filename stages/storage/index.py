"""The index of a snapshot: which clips there are, what is known of each, and its bytes by one ranged read.

Rows stay in Arrow; a clip becomes an object when it is asked for, so that ten million of them cost what their columns do.
Selections share the columns and hold row numbers alone.
"""

import dataclasses
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.errors import ArtifactDamaged, ConfigError
from stages.readers import Box, Labels
from stages.storage import schemas
from stages.storage.artifact import Artifact
from stages.storage.ranged import read_range
from stages.storage.tables import read_arrow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """One clip: a row of the index."""

    clip_id: str
    source_id: str
    key: str
    """The source's name below its reader's root."""
    native_id: str = ""
    """What the annotation calls the part of the source that it was cut from; empty for all of it."""
    start_s: float = 0.0
    """Where it begins in the source."""
    start_frame: int = 0
    """Where it begins in that part, in frames of its own rate."""
    num_frames: int
    """Recorded frames; a short source has fewer than the recipe's clip length."""
    fps: float
    width_px: int
    height_px: int
    ordinal: int
    """The number of the shard that holds it."""
    slot: int
    """Its position within the shard."""
    offset_bytes: int
    size_bytes: int
    crc32c: int
    motion_offset_bytes: int | None = None
    """Where its motion vectors lie; ``None``: it has none."""
    motion_size_bytes: int | None = None
    motion_crc32c: int | None = None
    labels: Labels = dataclasses.field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    """Annotated boxes; their times count from the clip's first frame."""

    def label(self, column: str) -> str | None:
        """The one value of a label column; ``None`` if it has none.

        Raises:
            ConfigError: it has several.
        """
        values = self.labels.get(column, ())
        if len(values) > 1:
            raise ConfigError(
                f"clip {self.clip_id} ({self.key}) has {len(values)} values in {column!r}: {', '.join(values)}; "
                "name a column with one value per clip"
            )
        return values[0] if values else None


class Index(Sequence[Clip]):
    """The clips of a snapshot, or some of them, in shard and slot order.

    Args:
        snapshot: whose clips.

    Raises:
        ArtifactDamaged: an index part is not the one that the snapshot names.
    """

    def __init__(self, snapshot: Artifact) -> None:
        names = [name for name in snapshot.manifest.files if name.startswith("index/")]
        parts = sorted(names, key=lambda name: (len(name), name))
        self._table = pa.concat_tables([schemas.INDEX.empty_table(), *(_read(snapshot.verified(name)) for name in parts)])
        self._rows: npt.NDArray[np.int64] = np.arange(len(self._table))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> Clip: ...
    @overload
    def __getitem__(self, position: slice) -> "Index": ...
    def __getitem__(self, position: int | slice) -> "Clip | Index":
        """The clip at a position, or the clips of a slice."""
        if isinstance(position, slice):
            return self._of(self._rows[position])
        row = int(self._rows[position])
        return _clip({name: self._table.column(name)[row].as_py() for name in schemas.INDEX.names})

    def where(self, labels: Mapping[str, str]) -> "Index":
        """The clips that carry every one of these values."""
        kept = np.ones(len(self._table), dtype=bool)
        for column, value in labels.items():
            kept &= self._carries(column, value)
        return self._of(self._rows[kept[self._rows]])

    def without(self, labels: Mapping[str, str]) -> "Index":
        """The clips that carry none of these values."""
        dropped = np.zeros(len(self._table), dtype=bool)
        for column, value in labels.items():
            dropped |= self._carries(column, value)
        return self._of(self._rows[~dropped[self._rows]])

    def having(self, columns: Iterable[str]) -> "Index":
        """The clips that carry a value in at least one of these label columns."""
        kept = np.zeros(len(self._table), dtype=bool)
        for column in columns:
            kept |= self._values(column).is_valid().to_numpy()
        return self._of(self._rows[kept[self._rows]])

    def of_shard(self, ordinal: int) -> "Index":
        """The clips of one shard."""
        return self._of(self._rows[self._ordinals[self._rows] == ordinal])

    def ordinals(self) -> list[int]:
        """The numbers of the shards that hold them, in order."""
        return [int(ordinal) for ordinal in np.unique(self._ordinals[self._rows])]

    def by_shard(self) -> "dict[int, Index]":
        """The clips of every shard that holds some of them, by its number."""
        ordinals = self._ordinals[self._rows]
        order = np.argsort(ordinals, kind="stable")
        found, first = np.unique(ordinals[order], return_index=True)
        parts = np.split(self._rows[order], first[1:])
        return {int(ordinal): self._of(rows) for ordinal, rows in zip(found, parts, strict=False)}

    def column(self, name: str) -> npt.NDArray[Any]:
        """One column of all clips: numbers as they are, strings as objects."""
        values: npt.NDArray[Any] = self._table.column(name).take(pa.array(self._rows)).to_numpy(zero_copy_only=False)
        return values

    def label_columns(self) -> list[str]:
        """Every label column that at least one of them has."""
        labels = self._table.column("labels").take(pa.array(self._rows))
        names = {name for chunk in labels.chunks for name in pc.unique(chunk.keys).to_pylist()}
        return sorted(names)

    @functools.cached_property
    def _ordinals(self) -> npt.NDArray[np.int32]:
        """The shard of every row of the table."""
        ordinals: npt.NDArray[np.int32] = self._table.column("ordinal").to_numpy()
        return ordinals

    def _carries(self, column: str, value: str) -> npt.NDArray[np.bool_]:
        """Whether each row of the table has a value in a label column."""
        values = self._values(column)
        carries = np.zeros(len(self._table), dtype=bool)
        carries[pc.list_parent_indices(values).filter(pc.equal(pc.list_flatten(values), value)).to_numpy()] = True
        return carries

    def _values(self, column: str) -> pa.ChunkedArray:
        """The values of every row of the table in a label column; null where it has none."""
        return pc.map_lookup(self._table.column("labels"), query_key=column, occurrence="first")

    def _of(self, rows: npt.NDArray[np.int64]) -> "Index":
        chosen = object.__new__(Index)
        chosen._table, chosen._rows = self._table, rows
        return chosen


def read_clip(snapshot: Artifact, clip: Clip) -> bytes:
    """The encoded video of one clip, by a ranged read of its tar.

    Raises:
        ArtifactDamaged: the tar is gone, or the bytes are not those that were indexed.
    """
    return _member(snapshot, clip, "video", (clip.offset_bytes, clip.size_bytes, clip.crc32c))


def read_motion(snapshot: Artifact, clip: Clip) -> npt.NDArray[np.int8] | None:
    """The motion vectors stored with a clip, ``int8``; ``None`` if it has none.

    Raises:
        ArtifactDamaged: the tar is gone, or the bytes are not those that were indexed.
    """
    if clip.motion_offset_bytes is None or clip.motion_size_bytes is None or clip.motion_crc32c is None:
        return None
    place = (clip.motion_offset_bytes, clip.motion_size_bytes, clip.motion_crc32c)
    motion: npt.NDArray[np.int8] = np.load(io.BytesIO(_member(snapshot, clip, "motion", place)), allow_pickle=False)
    return motion


def _member(snapshot: Artifact, clip: Clip, kind: str, place: tuple[int, int, int]) -> bytes:
    """The bytes of one member of a shard, given its offset, size and crc32c."""
    path = snapshot.folder / "shards" / f"{snapshot.folder.name}-{clip.ordinal:06d}.tar"
    offset_bytes, size_bytes, crc32c = place
    try:
        data = read_range(str(path), offset_bytes, size_bytes)
    except FileNotFoundError as error:
        raise ArtifactDamaged(f"{path}: missing, although {snapshot.manifest_path} names it; restore it from a copy") from error
    if len(data) != size_bytes or google_crc32c.value(data) != crc32c:
        raise ArtifactDamaged(
            f"{path}: the {kind} of clip {clip.clip_id} at byte {offset_bytes} is damaged ({len(data)} of {size_bytes} bytes, "
            "crc32c differs); run `lvmae verify`"
        )
    return data


def _read(path: Path) -> pa.Table:
    table = read_arrow(path)
    if not table.schema.equals(schemas.INDEX):
        raise ArtifactDamaged(
            f"{path}: its columns are not those of an index: {', '.join(table.schema.names)}; another version wrote it; "
            "shard again into an empty root"
        )
    return table


def _clip(row: Mapping[str, Any]) -> Clip:
    known = {name: value for name, value in row.items() if value is not None}
    labels = {column: tuple(values) for column, values in row["labels"] or ()}
    boxes = tuple(Box(**{**box, "labels": tuple(box["labels"] or ())}) for box in row["boxes"] or ())
    return Clip(**{**known, "labels": labels, "boxes": boxes})
