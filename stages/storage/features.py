"""Frozen features of an evaluation: one safetensors file per clip shard and view, whole or not at all, so that a killed run
resumes.

A file holds one float32 tensor ``[clips, cells, width]`` per kind of features, and in its header the ids of the clips in row
order. What probes answered lies beside them while a run is under way.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from stages.storage.artifact import CHECKPOINTS
from stages.storage.publish import canonical_json, publish_bytes, sha256_bytes

Rows = npt.NDArray[np.float32]


class FeatureUnit(NamedTuple):
    """What is made and published together."""

    ordinal: int
    """The clip shard."""
    view: int
    """The view of its clips; some clips have fewer than others."""


def is_committed(folder: Path, unit: FeatureUnit) -> bool:
    """Whether the features of a unit exist."""
    return _part_path(folder, unit).exists()


def write_part(folder: Path, unit: FeatureUnit, *, clip_ids: Sequence[str], features: Mapping[str, Rows]) -> None:
    """Publish the features of one unit; equal features give equal bytes.

    Args:
        folder: the artifact's folder.
        unit: the clip shard and the view.
        clip_ids: the clips, in row order.
        features: per kind ``[clips, cells, width]``.
    """
    tensors = {name: np.ascontiguousarray(rows) for name, rows in features.items()}
    publish_bytes(_part_path(folder, unit), safetensors.numpy.save(tensors, {"clip_ids": json.dumps(list(clip_ids))}))


def read_kind(folder: Path, units: Iterable[FeatureUnit], name: str) -> dict[tuple[str, int], Rows]:
    """One kind of features of several units: per clip id and view ``[cells, width]``."""
    found: dict[tuple[str, int], Rows] = {}
    for unit in units:
        with safetensors.safe_open(_part_path(folder, unit), framework="numpy") as part:
            keys = [(clip_id, unit.view) for clip_id in json.loads(part.metadata()["clip_ids"])]
            found.update(zip(keys, part.get_tensor(name), strict=True))
    return found


def scores_path(folder: Path, key: Sequence[str]) -> Path:
    """Where scores are kept under a key until the artifact is published."""
    return folder / CHECKPOINTS / "scores" / f"{sha256_bytes(canonical_json(list(key)))[:16]}.safetensors"


def _part_path(folder: Path, unit: FeatureUnit) -> Path:
    return folder / "features" / f"part-{unit.ordinal:06d}-{unit.view:02d}.safetensors"
