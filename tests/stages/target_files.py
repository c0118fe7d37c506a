"""Small stores of targets, made of random numbers. Without torch, so that a laboratory of faults starts fast."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import Config
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.storage.targets.layout import CODES, PRIORITY, ArraySpec, Extent, Unit
from stages.storage.targets.writing import TargetWriter
from stages.storage.workspace import Workspace

EXTENT = Extent(
    num_views=2,
    grid=(4, 2, 2),
    codebook_size=2**18,
    arrays=(CODES, PRIORITY, ArraySpec("motion", "float16", 2), ArraySpec("count", "int8")),
)
COUNTS = {0: 3, 2: 2}
"""Clips per shard; there is no clip in shard 1."""

Values = dict[str, npt.NDArray[Any]]


def random_values(unit: Unit, extent: Extent = EXTENT) -> Values:
    """Values of all clips of a unit, drawn for its digest; codes need 18 bits."""
    source = np.random.default_rng(list(unit.digest.encode()))
    found: Values = {}
    for spec in extent.arrays:
        shape = (unit.num_clips, *extent.shape(spec))
        if spec.dtype == "float16":
            found[spec.name] = source.normal(size=shape).astype(np.float32)
        else:
            high = extent.codebook_size if spec == CODES else 100
            found[spec.name] = source.integers(0, high, shape)
    return found


def clip_of(unit: Unit, slot: int) -> Clip:
    """A clip of a unit's shard; it lies nowhere."""
    return Clip(
        clip_id=f"clip{unit.ordinal}{slot}", source_id="s", key="k", num_frames=40, fps=30.0, width_px=48, height_px=32,
        ordinal=unit.ordinal, slot=slot, offset_bytes=0, size_bytes=0, crc32c=0,
    )  # fmt: skip


def view_rows(unit: Unit) -> list[dict[str, Any]]:
    """A unit's rows of the view table; every number is another one."""
    return [
        {
            "clip_id": clip_of(unit, slot).clip_id, "view": unit.view, "start_frame": slot, "y_px": 10 + slot,
            "x_px": 20 + unit.ordinal, "size_px": 32, "flip": bool((slot + unit.view) % 2), "num_real_frames": 8 - slot,
        }
        for slot in range(unit.num_clips)
    ]  # fmt: skip


def units(counts: Mapping[int, int] | None = None, extent: Extent = EXTENT, salt: str = "") -> list[Unit]:
    """The units of a store."""
    counts = COUNTS if counts is None else counts
    return [
        Unit(ordinal, view, count, f"{salt}{ordinal}/{view}")
        for ordinal, count in counts.items()
        for view in range(extent.num_views)
    ]


def committed(workspace: Workspace, wanted: Sequence[Unit] | None = None, name: str = "f" * 16) -> Artifact:
    """A store of random values under a fingerprint."""
    wanted = units() if wanted is None else wanted
    writer = TargetWriter(workspace.artifact_folder("precompute", name), EXTENT, {"views": {}})
    for unit in wanted:
        writer.write_unit(unit, values=random_values(unit), views=view_rows(unit))
    counts = {"units": len(wanted)}
    return artifact.commit(workspace, stage="precompute", name=name, config=Config(), inputs={}, counts=counts)


def slots(wanted: Sequence[Unit]) -> Iterator[tuple[Unit, int]]:
    """Every clip in every view."""
    return ((unit, slot) for unit in wanted for slot in range(unit.num_clips))


def listing(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder with its time of change and its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {name: data for name, (_, data) in listing(folder).items()}
