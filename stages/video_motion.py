"""Motion of a clip as its own encoder saw it: the vectors of an H.264 clip on a coarse grid, as the bytes of an .npy file.

What these vectors are, and what they are not:

* They are what made the encoder's residual cheap, not what moved. Where there is little texture they are noise.
* Only clips that were encoded for it can be read: with one reference on either side and no pyramid of B-frames, the frame
  that a vector points at is the nearest I- or P-frame on that side, and its distance is known. FFmpeg does not tell it.
* Keyframes have none, and neither have blocks that were coded afresh; other frames of the tubelet stand in where they can.
* Camera motion is in them, and so is a cut, as nonsense.
* They are in pixels of the stored clip: whoever crops or flips a view must do the same with them.

Source: export of motion vectors in FFmpeg (libavutil/motion_vector.h). The grid and the units are ours.
"""

import gc
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags2
from av.video.frame import PictureType

TUBELET_FRAMES = 2
CELL_PX = 16
"""A cell of the grid: a tubelet of frames by a square of pixels, as the models' tokens."""
UNITS_PER_PX = 4
"""Values are quarter pixels per frame."""

_LARGEST = 127
_ANCHORS = (PictureType.I, PictureType.P, PictureType.S, PictureType.SI, PictureType.SP)


class _Frame(NamedTuple):
    """One frame in the order of display."""

    is_anchor: bool
    """Whether others may refer to it: it is no B-frame."""
    vectors: npt.NDArray[Any] | None
    """FFmpeg's table of its vectors; none if it has none."""


def motion_file(path: Path) -> bytes:
    """The motion of a clip, as an .npy file of ``int8 [T/2, H/16, W/16, 2]``, sizes rounded up, without pickled objects.

    The last axis is (x, y): how far what is seen in a cell moved from the frame before to this one, to the right and down,
    in quarter pixels per frame, averaged over the area of all vectors of the cell's two frames, rounded and limited to
    127. Where nothing is known it is 0.

    Args:
        path: an H.264 clip of our own making, encoded for motion vectors.
    """
    frames, height_px, width_px = _read(path)
    data = io.BytesIO()
    np.save(data, motion(frames, height_px=height_px, width_px=width_px), allow_pickle=False)
    del frames
    gc.collect(1)  # PyAV ties a frame and its vectors into a ring: few objects, and hundreds of megabytes of pixels
    return data.getvalue()


def motion(frames: Sequence[_Frame], *, height_px: int, width_px: int) -> npt.NDArray[np.int8]:
    """The grid of :func:`motion_file` from the vectors of every frame."""
    shape = tuple(-(-size // cell) for size, cell in ((len(frames), TUBELET_FRAMES), (height_px, CELL_PX), (width_px, CELL_PX)))
    num_cells = int(np.prod(shape))
    tables = [(number, frame.vectors) for number, frame in enumerate(frames) if frame.vectors is not None]
    if not tables:
        return np.zeros((*shape, 2), np.int8)
    lengths = [len(vectors) for _, vectors in tables]
    time = np.repeat([number for number, _ in tables], lengths)
    past, future = _distances([frame.is_anchor for frame in frames])

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.concatenate([vectors[name] for _, vectors in tables]).astype(np.float64)

    cell_y = np.clip(column("dst_y") // CELL_PX, 0, shape[1] - 1)
    cell_x = np.clip(column("dst_x") // CELL_PX, 0, shape[2] - 1)
    cell = ((time // TUBELET_FRAMES * shape[1] + cell_y) * shape[2] + cell_x).astype(np.int64)
    area = column("w") * column("h")
    # A vector leads from a block to where it is copied from: backwards in time, or forwards.
    gain = np.where(column("source") < 0, -1.0 / past[time], 1.0 / future[time]) * UNITS_PER_PX / column("motion_scale")
    known = np.bincount(cell, area, num_cells)
    sums = [np.bincount(cell, area * gain * column(name), num_cells) for name in ("motion_x", "motion_y")]
    means = np.stack(sums, axis=-1) / np.maximum(known, 1)[:, None]
    return np.clip(np.rint(means), -_LARGEST, _LARGEST).astype(np.int8).reshape(*shape, 2)


def _read(path: Path) -> tuple[list[_Frame], int, int]:
    """Every frame's vectors, and the height and width of a frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.options = {"skip_loop_filter": "all", "skip_idct": "all"}  # no pixel is looked at
        stream.codec_context.flags2 |= Flags2.export_mvs
        stream.codec_context.thread_count = 1
        frames = [_frame(frame) for frame in container.decode(stream)]
        return frames, stream.height, stream.width


def _frame(frame: av.VideoFrame) -> _Frame:
    exported = frame.side_data.get("MOTION_VECTORS")
    return _Frame(frame.pict_type in _ANCHORS, exported.to_ndarray() if exported is not None and len(exported) else None)


def _distances(is_anchor: Sequence[bool]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Frames from each frame to the nearest anchor before it and after it; 1 where there is none."""
    numbers = np.arange(len(is_anchor))
    before = np.maximum.accumulate(np.where(is_anchor, numbers, -1))
    after = np.minimum.accumulate(np.where(is_anchor, numbers, len(numbers))[::-1])[::-1]
    past = numbers - np.concatenate([[-1], before[:-1]])
    future = np.concatenate([after[1:], [len(numbers)]]) - numbers
    return np.maximum(past, 1), np.maximum(future, 1)
