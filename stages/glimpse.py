"""A picture of one clip in the middle of a pretraining: what the encoder sees, what is predicted, and how wrong that is.

The pretraining has no tokenizer to decode predictions with, so it shows the error of every predicted token instead.
"""

import dataclasses

import numpy as np
import numpy.typing as npt

from stages import mosaics, overlays
from stages.pictures import Frames

_TITLE_PX = 150
_NUM_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class Glimpse:
    """One clip, ``uint8 [T H W C]``, and what a training step makes of its tokens, all ``[t h w]``."""

    frames: Frames
    num_recorded_frames: int
    scores: npt.NDArray[np.float32] | None
    """What the tokens to predict are chosen by, such as priority; ``None`` where nothing is stored."""
    roles: npt.NDArray[np.int64]
    """As in ``stages.pictures``."""
    errors: npt.NDArray[np.float32]
    """Of the prediction, as the loss counts it; NaN where nothing was predicted or nothing counts."""


def drawn(glimpse: Glimpse, num_columns: int = _NUM_COLUMNS) -> bytes:
    """The picture as a PNG: a few frames, spread evenly over the recorded part, with one row for each thing shown.

    Args:
        glimpse: the clip.
        num_columns: frames to show, if there are as many.
    """
    last = glimpse.num_recorded_frames - 1
    frames = np.linspace(0, last, min(num_columns, last + 1)).round().astype(int)
    return mosaics.titled(_rows(glimpse, frames), frames.tolist(), title_px=_TITLE_PX)


def _rows(glimpse: Glimpse, frames: npt.NDArray[np.int64]) -> dict[str, list[Frames]]:
    slots = frames * glimpse.roles.shape[0] // len(glimpse.frames)
    moments = [(glimpse.frames[frame], slot) for frame, slot in zip(frames, slots, strict=True)]
    rows = {
        "original": [frame for frame, _ in moments],
        "the encoder's input": [overlays.seen(frame, glimpse.roles[slot]) for frame, slot in moments],
    }
    if glimpse.scores is not None:
        colours = overlays.heat(glimpse.scores[: slots[-1] + 1])
        rows["priority"] = [overlays.laid_over(frame, colours[slot], 0.7) for frame, slot in moments]
    rows["tokens"] = [overlays.with_roles(frame, glimpse.roles[slot]) for frame, slot in moments]
    counted = np.isfinite(glimpse.errors)
    most = glimpse.errors[counted].max() if counted.any() else 0.0
    colours = overlays.heat(np.where(counted, glimpse.errors, 0.0))
    title = f"error of the\nprediction, dark 0,\nbright {most:.3g}"
    rows[title] = [overlays.laid_over(frame, colours[slot], 0.85 * counted[slot]) for frame, slot in moments]
    return rows
