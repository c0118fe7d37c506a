"""Frozen features of an evaluation: one safetensors file per clip shard, whole or not at all, so that a killed run resumes.

A file holds one float32 tensor ``[clips, width]`` per kind of features, and in its header the ids of the clips in row order.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from stages.storage.publish import publish_bytes

Rows = npt.NDArray[np.float32]


def is_committed(folder: Path, ordinal: int) -> bool:
    """Whether the features of a clip shard exist."""
    return _part_path(folder, ordinal).exists()


def write_part(folder: Path, ordinal: int, *, clip_ids: Sequence[str], features: Mapping[str, Rows]) -> None:
    """Publish the features of one clip shard; equal features give equal bytes.

    Args:
        folder: the artifact's folder.
        ordinal: the clip shard.
        clip_ids: the clips, in row order.
        features: per kind ``[clips, width]``.
    """
    tensors = {name: np.ascontiguousarray(rows) for name, rows in features.items()}
    publish_bytes(_part_path(folder, ordinal), safetensors.numpy.save(tensors, {"clip_ids": json.dumps(list(clip_ids))}))


def read_kind(folder: Path, ordinals: Sequence[int], name: str) -> dict[str, Rows]:
    """One kind of features of several clip shards: per clip id its row."""
    found: dict[str, Rows] = {}
    for ordinal in ordinals:
        with safetensors.safe_open(_part_path(folder, ordinal), framework="numpy") as part:
            clip_ids = json.loads(part.metadata()["clip_ids"])
            found.update(zip(clip_ids, part.get_tensor(name), strict=True))
    return found


def _part_path(folder: Path, ordinal: int) -> Path:
    return folder / "features" / f"part-{ordinal:06d}.safetensors"
