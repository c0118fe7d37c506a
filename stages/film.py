"""A clip and what the networks make of it, as a short silent film: the moving counterpart of the stills in the report.

Every panel says what it shows, and where ground truth went into it: the blocks that the encoder was given are outlined, and the
tokenizer's panel is made from all true codes.
"""

from collections.abc import Iterator

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from stages import overlays
from stages.pictures import Frames, Picture
from stages.video_web import encode_webm

FPS = 12
"""Half the usual rate of a recording: slow enough to follow single blocks. Our choice."""
_PANEL_PX, _GAP_PX, _DPI = 192, 8, 100
_COLUMNS = 3
_TITLE_PX, _LEGEND_PX, _BAR_PX = 34, 28, 6
_INK = "#222222"
_BAR, _BAR_LEFT = (0, 114, 178), (221, 221, 221)


def film(picture: Picture, *, fps: int = FPS) -> bytes:
    """The recorded frames of a clip as a WebM film, with one panel for each thing that was made of it.

    Below the panels a bar shows how far the clip is. Equal pictures give equal bytes.

    Args:
        picture: the clip.
        fps: frames per second.
    """
    return encode_webm(frames(picture), fps=fps)


def frames(picture: Picture) -> Iterator[Frames]:
    """The frames of the film, ``uint8 [H W C]``."""
    titles = list(_panels(picture, 0))
    side = picture.original.shape[1]
    scale = max(1, round(_PANEL_PX / side))
    panel_px = side * scale
    backdrop = _backdrop(titles, panel_px)
    for number in range(picture.num_recorded_frames):
        canvas = backdrop.copy()
        for place, pixels in enumerate(_panels(picture, number).values()):
            y, x = _corner(place, panel_px)
            canvas[y : y + panel_px, x : x + panel_px] = overlays.enlarged(pixels, scale)
        _draw_bar(canvas, (number + 1) / picture.num_recorded_frames)
        yield canvas


def _panels(picture: Picture, number: int) -> dict[str, Frames]:
    """One frame of every panel, by its title."""
    frame, slot = picture.original[number], number * picture.roles.shape[0] // len(picture.original)
    roles = picture.roles[slot]
    recorded_slots = -(-picture.num_recorded_frames * picture.roles.shape[0] // len(picture.original))
    panels = {"original": frame, "the encoder's input": overlays.seen(frame, roles)}
    if picture.predicted is not None:
        panels["autoencoder: outlined blocks\nare given, all others predicted"] = overlays.outlined(
            picture.predicted[number], roles
        )
    panels["tokenizer, from all true codes"] = picture.tokenized[number]
    panels["priority, bright is high"] = overlays.laid_over(frame, overlays.heat(picture.priority[:recorded_slots])[slot], 0.7)
    panels["tokens of a training step"] = overlays.with_roles(frame, roles)
    return panels


def _corner(place: int, panel_px: int) -> tuple[int, int]:
    """Where a panel begins, from above and from the left."""
    row, column = divmod(place, _COLUMNS)
    return _TITLE_PX + row * (panel_px + _TITLE_PX), _GAP_PX + column * (panel_px + _GAP_PX)


def _backdrop(titles: list[str], panel_px: int) -> Frames:
    """The frame without its panels: their titles, and what the colours mean."""
    num_rows = -(-len(titles) // _COLUMNS)
    height = _even(num_rows * (panel_px + _TITLE_PX) + _LEGEND_PX + _BAR_PX + _GAP_PX)
    width = _even(_COLUMNS * (panel_px + _GAP_PX) + _GAP_PX)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    for place, title in enumerate(titles):
        y, x = _corner(place, panel_px)
        figure.text(x / width, 1 - (y - 3) / height, title, ha="left", va="bottom", fontsize=8, color=_INK, linespacing=1.0)
    handles = [Patch(facecolor=colour, label=overlays.ROLE_TITLES[role]) for role, colour in overlays.ROLE_COLOURS.items()]
    place_of_legend = (0.5, (_BAR_PX + _GAP_PX) / height)
    figure.legend(
        handles=handles, loc="lower center", bbox_to_anchor=place_of_legend, ncols=3, fontsize=8, frameon=False, borderpad=0
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _draw_bar(canvas: Frames, share: float) -> None:
    width = canvas.shape[1] - 2 * _GAP_PX
    bar = canvas[-_BAR_PX - 2 : -2, _GAP_PX : _GAP_PX + width]
    bar[:] = _BAR_LEFT
    bar[:, : round(share * width)] = _BAR


def _even(length: int) -> int:
    return length + length % 2
