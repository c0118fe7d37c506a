"""A picture of what a tokenizer does to a few windows: original, rebuilt from all and from the kept tokens, and priority."""

import io

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_FRAMES_SHOWN = (0, 5, 10, 15)


def tokenizer_preview(
    original: npt.NDArray[np.uint8],
    complete: npt.NDArray[np.uint8],
    sparse: npt.NDArray[np.uint8],
    *,
    priority: npt.NDArray[np.floating],
) -> bytes:
    """A PNG with one row per window and kind.

    Args:
        original: ``uint8 [B T H W C]``.
        complete: the same windows rebuilt from all tokens.
        sparse: the same windows rebuilt from the kept tokens alone.
        priority: ``float [B t h w]``.
    """
    frames = [frame for frame in _FRAMES_SHOWN if frame < original.shape[1]]
    kinds = {"original": original, "all tokens": complete, "kept tokens": sparse}
    figure = Figure(figsize=(2 * len(frames) * 2, 4.2 * len(original)), layout="constrained")
    axes = figure.subplots(2 * len(original), 2 * len(frames), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    tubelet = original.shape[1] // priority.shape[1]
    for row in range(len(original)):
        cells = axes[2 * row : 2 * row + 2].reshape(2, 2, len(frames)).reshape(4, len(frames))
        for kind, (title, clip) in enumerate(kinds.items()):
            for column, frame in enumerate(frames):
                cells[kind][column].imshow(clip[row, frame])
                cells[kind][column].set_title(f"{title}, frame {frame}", fontsize=7)
        for column, frame in enumerate(frames):
            cells[3][column].imshow(priority[row, frame // tubelet], cmap="magma", vmin=0, vmax=priority[row].max())
            cells[3][column].set_title(f"priority, frame {frame}", fontsize=7)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=80, metadata={"Software": None})
    return buffer.getvalue()
