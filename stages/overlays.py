"""One value per token laid over the frame that it belongs to: heat, roles in a training step, and what was hidden.

Plain arithmetic on pixels, for stills and films alike. Frames are ``uint8 [H W C]``, values of their tokens ``[h w]``.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import matplotlib
import numpy as np
import numpy.typing as npt

from stages.pictures import RANDOM, TOP, VISIBLE, Frames

ROLE_COLOURS: Mapping[int, str] = MappingProxyType({VISIBLE: "#0072B2", TOP: "#D55E00", RANDOM: "#F0E442"})
"""Told apart by readers with any colour vision. Source: M. Okabe and K. Ito, 2008."""
ROLE_TITLES: Mapping[int, str] = MappingProxyType(
    {VISIBLE: "seen by the encoder", TOP: "predicted: highest priority", RANDOM: "predicted: chosen at random"}
)
_BLANK = 235
"""The grey of pixels that are hidden."""

Colours = npt.NDArray[np.float64]
"""``[... 3]`` in [0, 1]."""


def heat(values: npt.NDArray[np.floating]) -> Colours:
    """A colour for every value, dark for the lowest that is given and bright for the highest; NaN counts as the lowest."""
    low, high = (float(edge(values)) if np.isfinite(values).any() else 0.0 for edge in (np.nanmin, np.nanmax))
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    colours: Colours = matplotlib.colormaps["inferno"](np.nan_to_num(scaled))[..., :3]
    return colours


def role_colours(roles: npt.NDArray[np.int64]) -> Colours:
    """The colour of every role; black for a token without a part in the step."""
    colours = np.zeros((*roles.shape, 3))
    for role, colour in ROLE_COLOURS.items():
        colours[roles == role] = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    return colours


def laid_over(frame: Frames, colours: Colours, opacity: float | npt.NDArray[np.floating]) -> Frames:
    """A frame in grey with one colour per token laid over it.

    Args:
        frame: the frame.
        colours: ``[h w 3]``.
        opacity: from 0 to 1, of all tokens or ``[h w]``.
    """
    grey = frame.mean(axis=2, keepdims=True).repeat(3, axis=2) / 255
    side = frame.shape[0] // colours.shape[0]
    laid = np.kron(colours, np.ones((side, side, 1)))
    share = np.kron(np.broadcast_to(opacity, colours.shape[:2]), np.ones((side, side)))[..., None]
    mixed: Frames = np.rint((grey * (1 - share) + laid * share) * 255).astype(np.uint8)
    return mixed


def outlined(frame: Frames, roles: npt.NDArray[np.int64]) -> Frames:
    """A frame with a coloured line around every token that the encoder saw."""
    drawn, side = frame.copy(), frame.shape[0] // roles.shape[0]
    colour = np.rint(role_colours(np.array(VISIBLE)) * 255).astype(np.uint8)
    width = max(1, side // 16)
    for y, x in np.argwhere(roles == VISIBLE) * side:
        cell = drawn[y : y + side, x : x + side]
        cell[:width] = cell[-width:] = colour
        cell[:, :width] = cell[:, -width:] = colour
    return drawn


def seen(frame: Frames, roles: npt.NDArray[np.int64]) -> Frames:
    """What the encoder gets of a frame; the rest is blank."""
    side = frame.shape[0] // roles.shape[0]
    is_seen = np.kron(roles == VISIBLE, np.ones((side, side), dtype=np.bool_))
    return np.where(is_seen[..., None], frame, np.uint8(_BLANK))


def with_roles(frame: Frames, roles: npt.NDArray[np.int64]) -> Frames:
    """A frame with the roles of its tokens; those without a part in the step stay grey."""
    return laid_over(frame, role_colours(roles), np.where(roles > 0, 0.75, 0.0))


def enlarged(frame: Frames, scale: int) -> Frames:
    """A frame of which each pixel is a block of whole pixels."""
    return frame.repeat(scale, axis=0).repeat(scale, axis=1)


def mosaic(rows: Sequence[Sequence[Frames]], *, cell_px: int, gap_px: int) -> tuple[Frames, int]:
    """Equal square images side by side on white, and the distance from one to the next in pixels.

    Args:
        rows: of images.
        cell_px: the side that every image is enlarged to, as near as whole pixels allow.
        gap_px: between them.
    """
    side = rows[0][0].shape[0]
    scale = max(1, round(cell_px / side))
    cell = side * scale + gap_px
    canvas = np.full((len(rows) * cell, len(rows[0]) * cell, 3), 255, dtype=np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            canvas[y * cell : y * cell + side * scale, x * cell : x * cell + side * scale] = enlarged(image, scale)
    return canvas, cell
