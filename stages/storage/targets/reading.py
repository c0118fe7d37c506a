"""Targets of a committed artifact: where each clip's values lie, and whole units at once.

The view table is read and verified when a reader is made, in the main process. It stays there: workers get a ``ChunkReader``
and, with every sample, the place of that sample.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.errors import ArtifactDamaged
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.storage.tables import read_arrow
from stages.storage.targets.chunks import Chunk, ChunkReader, Place, Values, decoded
from stages.storage.targets.layout import ROOT, VIEWS_SCHEMA, ArraySpec, Extent, object_name

_NUMBERS = ("start_frame", "y_px", "x_px", "size_px", "flip", "num_real_frames")


class _Part(NamedTuple):
    """A unit's part of the view table, a row per clip in slot order."""

    ids: npt.NDArray[np.bytes_]
    numbers: npt.NDArray[np.int32]
    """``[clips, columns]``, in the order of ``_NUMBERS``."""
    chunks: npt.NDArray[np.int64]
    """``[clips, arrays, 3]``: offset, size, checksum."""


class TargetReader:
    """The targets of an artifact.

    Args:
        artifact: a targets artifact.

    Raises:
        ArtifactDamaged: its attributes or a part of the view table are not those of the manifest.
    """

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self.attributes: Mapping[str, Any] = json.loads(artifact.verified(ROOT).read_bytes())["attributes"]
        """What the writer recorded: the extent, the quantizer, the views, digests of the inputs."""
        self.extent = Extent.of(self.attributes)
        self.chunks = ChunkReader(str(artifact.folder), self.extent)
        """Reads places; for workers."""
        names = [name for name in artifact.manifest.files if name.startswith("views/")]
        self._parts = dict(self._part(name) for name in names)

    def __len__(self) -> int:
        """Rows of the view table."""
        return sum(len(part.ids) for part in self._parts.values())

    def place(self, clip: Clip, view: int) -> Place:
        """Where the values of a clip in a view lie, and which pixels they belong to.

        Raises:
            ArtifactDamaged: the clip has no such view here.
        """
        part = self._parts.get((clip.ordinal, view))
        if part is None or clip.slot >= len(part.ids) or part.ids[clip.slot].decode() != clip.clip_id:
            raise ArtifactDamaged(
                f"{self._artifact.folder}: holds no targets of clip {clip.clip_id} in view {view}; they were made of another "
                "snapshot: run precompute on this one"
            )
        return self._place(part, clip.ordinal, view, clip.slot)

    def places(self) -> Iterator[Place]:
        """Every place, by clip shard, view and slot."""
        for ordinal, view in sorted(self._parts):
            part = self._parts[ordinal, view]
            yield from (self._place(part, ordinal, view, slot) for slot in range(len(part.ids)))

    def read(self, place: Place) -> dict[str, Values]:
        """The values of a place per array, verified by their checksums.

        Raises:
            ArtifactDamaged: the stored bytes are not those that were written.
        """
        return self.chunks.read(place)

    def read_unit(self, ordinal: int, view: int) -> dict[str, Values]:
        """One view of all clips of a shard, ``[num_clips, t, h, w]`` or with channels behind, verified by the manifest.

        Raises:
            ArtifactDamaged: the stored bytes are not those of the manifest.
            KeyError: there is no such unit.
        """
        part = self._parts[ordinal, view]
        return {spec.name: self._whole(part, number, spec, ordinal, view) for number, spec in enumerate(self.extent.arrays)}

    def _whole(self, part: _Part, number: int, spec: ArraySpec, ordinal: int, view: int) -> Values:
        data = self._artifact.verified(object_name(spec, ordinal, view)).read_bytes()
        spans = [(int(offset), int(offset + size)) for offset, size, _ in part.chunks[:, number]]
        return np.stack([decoded(data[begin:end], self.extent.shape(spec), spec.dtype) for begin, end in spans])

    def _place(self, part: _Part, ordinal: int, view: int, slot: int) -> Place:
        start_frame, y_px, x_px, size_px, flip, num_real_frames = part.numbers[slot].tolist()
        return Place(
            clip_id=part.ids[slot].decode(),
            ordinal=ordinal,
            view=view,
            slot=slot,
            start_frame=start_frame,
            y_px=y_px,
            x_px=x_px,
            size_px=size_px,
            flip=bool(flip),
            num_real_frames=num_real_frames,
            chunks=tuple(Chunk(*chunk) for chunk in part.chunks[slot].tolist()),
        )

    def _part(self, name: str) -> tuple[tuple[int, int], _Part]:
        table = read_arrow(self._artifact.verified(name))
        if not table.schema.equals(VIEWS_SCHEMA):
            raise ArtifactDamaged(
                f"{self._artifact.folder / name}: its columns are not those of a view table: another version wrote it; delete "
                f"{self._artifact.folder} and run precompute again"
            )
        ordinal, view = (table.column(column)[0].as_py() for column in ("ordinal", "view"))
        numbers = [table.column(column).cast(pa.int32()).to_numpy() for column in _NUMBERS]
        ids = np.array(table.column("clip_id").to_pylist(), dtype=np.bytes_)
        return (ordinal, view), _Part(ids, np.stack(numbers, axis=1), _chunk_columns(table, len(self.extent.arrays)))


def _chunk_columns(table: pa.Table, num_arrays: int) -> npt.NDArray[np.int64]:
    """Where the chunks lie, ``[clips, arrays, 3]``."""
    chunks = table.column("chunks").combine_chunks().flatten()
    columns = [chunks.field(name).cast(pa.int64()).to_numpy() for name in Chunk._fields]
    return np.stack(columns, axis=1).reshape(len(table), num_arrays, len(columns))
