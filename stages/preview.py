"""A picture of what a tokenizer does to a few windows: what was there, what is rebuilt of which tokens, and their priority."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from matplotlib.figure import Figure
from torch import Tensor

from stages.mosaics import png
from stages.quality import Rebuilt, psnr_db

_FRAMES_SHOWN = (0, 5, 10, 15)
WINDOWS_SHOWN = 3
_CELL_INCHES = 1.5


def tokenizer_preview(found: Rebuilt, num_windows: int = WINDOWS_SHOWN) -> bytes:
    """A PNG with one block of rows per window: what was there, what became of it, and which tokens mattered.

    Args:
        found: windows and their reconstructions.
        num_windows: windows to show, spread over those that there are.
    """
    frames = [frame for frame in _FRAMES_SHOWN if frame < found.windows.shape[2]]
    chosen: list[int] = torch.linspace(0, len(found.windows) - 1, min(num_windows, len(found.windows))).long().tolist()
    kinds = ["original", "all tokens", "kept tokens", "random tokens", "priority"]
    size = (_CELL_INCHES * len(frames) * len(chosen), _CELL_INCHES * len(kinds) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(kinds), len(frames) * len(chosen), squeeze=False)
    for block, window in enumerate(chosen):
        cells = axes[:, block * len(frames) : (block + 1) * len(frames)]
        _draw_window(cells, found, window, frames)
    for row, kind in enumerate(kinds):
        axes[row, 0].set_ylabel(kind, fontsize=9)
    return png(figure, dpi=80)


def _draw_window(cells: npt.NDArray[Any], found: Rebuilt, window: int, frames: list[int]) -> None:
    tubelet = found.windows.shape[2] // found.priority.shape[1]
    priority = found.priority[window].cpu().numpy()
    true = found.windows[window : window + 1]
    for row, clips in enumerate((found.windows, found.complete, found.sparse, found.drawn)):
        quality = "" if row == 0 else f"{float(psnr_db(clips[window : window + 1], true)):.1f} dB"
        for column, frame in enumerate(frames):
            cells[row, column].imshow(_pixels(clips[window, :, frame]))
            cells[row, column].set_title(quality if column == 0 else f"frame {frame}" if row == 0 else "", fontsize=8)
    for column, frame in enumerate(frames):
        cells[4, column].imshow(priority[frame // tubelet], cmap="magma", vmin=0, vmax=max(priority.max(), 1e-9))
    for axis in cells.flat:
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_frame_on(False)


def _pixels(frame: Tensor) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = (rearrange(frame, "C H W -> H W C").clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels
