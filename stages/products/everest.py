"""How much a token differs from the one before it at the same place: the score by which EVEREST chooses tokens."""

import itertools
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from einops import reduce

from stages.products import Footage, ProductConfig, Values


class Config(ProductConfig):
    """The root mean square difference of a token's pixels from those of the slot before, in shares of the full range, 0 to 1.

    The first slot has none before it and reuses the second's values, as in EVEREST.

    Source: EVEREST, arXiv 2211.10636. It takes the distance between embeddings by the patch embedding of the model in
    training, at the state it has at that step. This score is stored before training, so there is no such model: it is the
    distance between the pixels themselves, which is what an embedding measures that keeps distances (an orthogonal one
    exactly, a random one nearly, with noise on top). So it differs from EVEREST in that no weight of the model plays a part,
    and stays the same all through the training. Dividing by the root of the number of values changes no order.
    """

    dtype: ClassVar[str] = "float16"

    name: Literal["everest"] = "everest"
    """The name in a recipe."""

    def measure(self, footage: Footage) -> Values:
        """Differences ``[t h w]``."""
        frames, patch_px = footage.patching.tubelet_frames, footage.patching.patch_px
        slots = footage.pixels.reshape(-1, frames, *footage.pixels.shape[1:])  # [t dt H W 3]
        if len(slots) == 1:
            return np.zeros(footage.grid, np.float32)
        found = np.stack([difference(before, now, patch_px) for before, now in itertools.pairwise(slots)])
        return np.concatenate([found[:1], found])


def difference(before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8], patch_px: int) -> npt.NDArray[np.float64]:
    """Per patch the root mean square difference ``[h w]`` of two slots ``[dt H W C]``, in shares of the full range."""
    change = np.maximum(before, now) - np.minimum(before, now)
    squares = np.square(change, dtype=np.uint16)  # 255 squared just fits
    sums = reduce(squares, "dt (h y) (w x) C -> h w", "sum", y=patch_px, x=patch_px)  # whole numbers: exact in any order
    distance: npt.NDArray[np.float64] = np.sqrt(sums / (before.size / sums.size)) / 255
    return distance
