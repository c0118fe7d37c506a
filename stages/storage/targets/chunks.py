"""One clip's values in one view, by one ranged read per array: what a worker of a training does for every sample.

A place says where the bytes lie and what their checksum is; it comes from the view table, which the manifest covers. Bytes
that were flipped, cut, swapped, replaced by older ones or deleted are found here and never become values.
"""

import dataclasses
from collections.abc import Collection
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.errors import ArtifactDamaged
from stages.storage.ranged import read_range
from stages.storage.targets.layout import ArraySpec, Extent, object_name

CHECKSUM_BYTES = 4
"""Zarr's crc32c codec lays the checksum behind the compressed bytes, little-endian."""

Values = npt.NDArray[Any]


class Chunk(NamedTuple):
    """Where one clip's values of one array lie in the unit's object."""

    offset_bytes: int
    size_bytes: int
    """With the checksum behind them."""
    crc32c: int
    """Of the bytes before that checksum. Taken over both it would be the same number for all chunks there are."""


class Place(NamedTuple):
    """A row of the view table: the pixels of one view of one clip, and where its values lie."""

    clip_id: str
    ordinal: int
    view: int
    slot: int
    start_frame: int
    y_px: int
    x_px: int
    size_px: int
    flip: bool
    num_real_frames: int
    chunks: tuple[Chunk, ...]
    """One per array of the store, in their order."""


@dataclasses.dataclass(frozen=True)
class ChunkReader:
    """Reads places of one store. Small, and the same in every process.

    Args:
        folder: the artifact's folder.
        extent: of the store.
    """

    folder: str
    extent: Extent

    def read(self, place: Place, names: Collection[str] | None = None) -> dict[str, Values]:
        """The values of a place, ``[t h w]`` or ``[t h w c]`` per array, in the type that they are stored in.

        Args:
            place: of this store.
            names: the arrays wanted; ``None``: all.

        Raises:
            ArtifactDamaged: the stored bytes are not those that were written.
        """
        return {
            spec.name: self._read(spec, place, chunk)
            for spec, chunk in zip(self.extent.arrays, place.chunks, strict=True)
            if names is None or spec.name in names
        }

    def _read(self, spec: ArraySpec, place: Place, chunk: Chunk) -> Values:
        path = f"{self.folder}/{object_name(spec, place.ordinal, place.view)}"
        try:
            data = read_range(path, chunk.offset_bytes, chunk.size_bytes)
        except FileNotFoundError:
            data = b""
        fault = damage(data, chunk)
        if fault:
            raise ArtifactDamaged(
                f"{path}: {spec.name} of clip {place.clip_id} in view {place.view} at byte {chunk.offset_bytes}: {fault}; "
                f"run `lvmae verify`, then delete {self.folder} and run precompute again"
            )
        return decoded(data, self.extent.shape(spec), spec.dtype)


def damage(data: bytes, chunk: Chunk) -> str | None:
    """What is wrong with the bytes of a chunk; ``None`` if they are those that were written."""
    if len(data) != chunk.size_bytes:
        return f"{len(data)} bytes instead of {chunk.size_bytes}"
    written = chunk.crc32c.to_bytes(CHECKSUM_BYTES, "little")
    whole = data[-CHECKSUM_BYTES:] == written and google_crc32c.value(data[:-CHECKSUM_BYTES]) == chunk.crc32c
    return None if whole else "crc32c differs"


def decoded(data: bytes, shape: tuple[int, ...], dtype: str) -> Values:
    """The values of a whole chunk."""
    kind = np.dtype(dtype).newbyteorder("<")
    size_bytes = int(np.prod(shape)) * kind.itemsize
    plain = pa.decompress(data[:-CHECKSUM_BYTES], decompressed_size=size_bytes, codec="zstd", asbytes=True)
    return np.frombuffer(plain, kind).reshape(shape).copy()
