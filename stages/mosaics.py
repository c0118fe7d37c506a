"""Rows of frames of one clip under each other as one figure, and figures as PNG bytes; equal inputs give equal bytes."""

import io
from collections.abc import Mapping, Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stages import overlays
from stages.pictures import Frames

INK = "#222222"
DPI = 100
_CELL_PX, _GAP_PX = 128, 4
_TOP_PX, _BOTTOM_PX = 26, 34


def strip(frames: Sequence[Frames]) -> bytes:
    """Frames side by side, as a PNG."""
    canvas, _ = overlays.mosaic([frames], cell_px=_CELL_PX, gap_px=_GAP_PX)
    figure = Figure(figsize=(canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    figure.figimage(canvas, 0, 0)
    return png(figure)


def titled(rows: Mapping[str, Sequence[Frames]], frame_numbers: Sequence[int], *, title_px: int) -> bytes:
    """Frames in titled rows with their numbers above, and below what the colours of roles mean, as a PNG.

    Args:
        rows: equal square frames, by title.
        frame_numbers: of the columns.
        title_px: width of the place for titles.
    """
    canvas, cell = overlays.mosaic(list(rows.values()), cell_px=_CELL_PX, gap_px=_GAP_PX)
    height, width = canvas.shape[0] + _TOP_PX + _BOTTOM_PX, canvas.shape[1] + title_px
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.figimage(canvas, title_px, _BOTTOM_PX)
    for row, title in enumerate(rows):
        y = 1 - (_TOP_PX + (row + 0.5) * cell) / height
        figure.text((title_px - 10) / width, y, title, ha="right", va="center", fontsize=10, color=INK)
    for column, number in enumerate(frame_numbers):
        x = (title_px + (column + 0.5) * cell) / width
        figure.text(x, 1 - (_TOP_PX - 6) / height, f"frame {number}", ha="center", va="bottom", fontsize=10, color=INK)
    handles = [Patch(facecolor=colour, label=overlays.ROLE_TITLES[role]) for role, colour in overlays.ROLE_COLOURS.items()]
    place = ((title_px + canvas.shape[1] / 2) / width, 0)
    figure.legend(handles=handles, loc="lower center", bbox_to_anchor=place, ncols=len(handles), fontsize=10, frameon=False)
    return png(figure)


def png(figure: Figure, *, dpi: float = DPI) -> bytes:
    """A figure as PNG bytes that say nothing of the program that drew it."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
