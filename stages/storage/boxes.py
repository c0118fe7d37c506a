"""Boxes: where rendered objects are, one row per video with one value per frame."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.storage.tables import read_table, write_table

_SIDES = ("left_px", "top_px", "right_px", "bottom_px")

BOXES_SCHEMA = pa.schema([("key", pa.string()), *((side, pa.list_(pa.float32())) for side in _SIDES)])


def write_boxes(path: Path, boxes: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Publish the boxes [T 4] of every video: left, top, right and bottom in pixels."""
    rows = [
        {"key": key, **{side: values[:, column].tolist() for column, side in enumerate(_SIDES)}}
        for key, values in boxes.items()
    ]
    write_table(path, rows, BOXES_SCHEMA)


def read_boxes(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The boxes [T 4] of every video: left, top, right and bottom in pixels."""
    return {row["key"]: np.stack([np.float32(row[side]) for side in _SIDES], axis=1) for row in read_table(path)}
