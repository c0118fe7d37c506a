"""Frames of clips with scores laid over them as heat, and the tokens of highest score outlined."""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

_COLUMNS = 3
_CELL_INCHES = 1.2
_OUTLINE = "#56B4E9"


class Panel(NamedTuple):
    """One clip."""

    title: str
    frames: npt.NDArray[np.uint8]
    """``[T H W 3]``"""
    scores: Mapping[str, npt.NDArray[np.floating]]
    """``[t h w]`` each, by name; every panel has the same."""
    top: Mapping[str, npt.NDArray[np.int64]]
    """Positions of the tokens to outline, in the order of the token grid."""


def picture(panels: list[Panel]) -> bytes:
    """A PNG: panels side by side, in each a column per frame, a row of frames and a row per score."""
    names = ["frame", *panels[0].scores]
    size = (_CELL_INCHES * _COLUMNS * len(panels) + 1, _CELL_INCHES * len(names) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(names), _COLUMNS * len(panels), squeeze=False)
    for number, panel in enumerate(panels):
        _draw(axes[:, number * _COLUMNS : (number + 1) * _COLUMNS], panel)
    for row, name in enumerate(names):
        axes[row, 0].set_ylabel(name, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=64, metadata={"Software": None})
    return buffer.getvalue()


def _draw(axes: npt.NDArray[Any], panel: Panel) -> None:
    shown = [round(len(panel.frames) * (column + 0.7) / _COLUMNS) for column in range(_COLUMNS)]
    for column, frame in enumerate(shown):
        axes[0, column].imshow(panel.frames[frame])
        axes[0, column].set_title(f"{panel.title}, {frame}" if column == 0 else str(frame), fontsize=8)
        for row, name in enumerate(panel.scores, start=1):
            _heat(axes[row, column], panel, name, frame)


def _heat(axis: Any, panel: Panel, name: str, frame: int) -> None:
    """A frame in grey under the scores of its slot; the scale is the clip's, without its highest hundredth."""
    scores, side = panel.scores[name], panel.frames.shape[1]
    slot = frame * len(scores) // len(panel.frames)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    axis.imshow(panel.frames[frame].mean(axis=2), cmap="gray", vmin=0, vmax=255, extent=extent)
    high = max(float(np.quantile(scores, 0.99)), 1e-9)
    axis.imshow(scores[slot], cmap="inferno", alpha=0.55, vmin=float(scores.min()), vmax=high, extent=extent)
    chosen = np.stack(np.unravel_index(panel.top[name], scores.shape), axis=1)  # [k 3]
    cell = side / scores.shape[1]
    for _, y, x in chosen[chosen[:, 0] == slot]:
        axis.add_patch(Rectangle((x * cell, y * cell), cell - 1, cell - 1, fill=False, edgecolor=_OUTLINE, linewidth=1.2))
