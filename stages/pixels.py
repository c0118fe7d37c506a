"""Features that nothing was learned for: coarse pixel statistics, with and without time. The bar a network has to clear."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from models.shapes import Float

PIXELS = "pixels"
FRAMES = "frames"
TITLES: Mapping[str, str] = MappingProxyType({PIXELS: "pixel statistics over time", FRAMES: "frames without their order"})
"""What a reader of the report calls them."""


def pool_time(slots: Float[Tensor, "*batch t D"], bins: int) -> Float[Tensor, "*batch wide"]:
    """Means over ``bins`` equal parts of time, joined in order, so that a linear readout can tell early from late.

    Parts overlap by one slot where ``t`` does not divide by ``bins``; with fewer slots than bins, slots repeat.
    """
    pooled = functional.adaptive_avg_pool1d(rearrange(slots, "... t D -> ... D t"), bins)
    return rearrange(pooled, "... D bins -> ... (bins D)")


def pixel_features(frames: npt.NDArray[np.uint8], *, bins: int, cells: int) -> dict[str, npt.NDArray[np.float32]]:
    """Both kinds of trivial features of one clip, one row each.

    ``pixels``: brightness, its spread over time and the change from frame to frame, in every cell of a coarse grid and
    every part of time. ``frames``: colours and spatial spread of every cell in each frame, averaged over all frames, so that
    neither their order nor a change from one to the next can matter.

    Args:
        frames: the recorded frames, ``uint8 [T H W C]``, two or more.
        bins: parts of time.
        cells: cells of the coarse grid along each side.
    """
    clip = torch.from_numpy(frames).float().div(255)
    clip = rearrange(clip, "T H W C -> T C H W")
    grey = clip.mean(dim=1, keepdim=True)
    level = _coarse(grey, cells)  # [T, cells*cells]
    change = _coarse((grey[1:] - grey[:-1]).abs(), cells)  # [T-1, cells*cells]
    mean = pool_time(level, bins)
    spread = (pool_time(level.square(), bins) - mean.square()).clamp_min(0).sqrt()
    colour = _coarse(clip, cells)  # [T, C*cells*cells]
    contrast = (_coarse(grey.square(), cells) - level.square()).clamp_min(0).sqrt()
    return {
        PIXELS: torch.cat([mean, spread, pool_time(change, bins)]).numpy(),
        FRAMES: torch.cat([colour, contrast], dim=1).mean(dim=0).numpy(),
    }


def _coarse(images: Float[Tensor, "T C H W"], cells: int) -> Float[Tensor, "T wide"]:
    return functional.adaptive_avg_pool2d(images, cells).flatten(1)
