"""How much moves in a token, by optical flow: the score of the masking "Flow" that LVMAE compares itself with."""

import itertools
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import numpy.typing as npt
from einops import reduce
from pydantic import Field

from stages.products import Footage, ProductConfig, Values

Picture = npt.NDArray[np.integer[Any] | np.floating[Any]]

_PRESETS = {
    "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
    "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class Config(ProductConfig):
    """Flow energy: |dx| + |dy| in pixels of the view per frame, averaged over a token's frames and pixels.

    Every frame is compared with the one before it. The first frame has none before it and counts as the second.
    Camera motion is in it: where the camera pans, everything moves.

    Source: arXiv 2411.13683, Table 1: flow scaled to [-1, 1], |x| and |y| averaged over a tubelet, then compared within the
    clip. Factors that a whole clip shares change no order, so none is applied here. The paper's flow is RAFT's; this is
    OpenCV's dense inverse search (arXiv 1603.03590), which needs neither trained weights nor a GPU. RAFT is not built: the
    nearest to it here is ``medium`` at the view's own size. OpenCV searches a picture in the same stripes on any number of
    threads, so the values do not depend on it.
    """

    dtype: ClassVar[str] = "float16"

    name: Literal["flow"] = "flow"
    """The name in a recipe."""
    preset: Literal["ultrafast", "fast", "medium"] = "fast"
    """OpenCV's settings. The first two resolve a quarter of ``size_px``, ``medium`` half of it, at several times the cost."""
    size_px: int = Field(default=128, ge=16)
    """Height and width to which frames are scaled before, in grey. Our choice."""

    def measure(self, footage: Footage) -> Values:
        """Energies ``[t h w]``."""
        grid, side_px = footage.grid, self.size_px
        frames = [_scaled(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), side_px, side_px) for frame in footage.pixels]
        if len(frames) == 1:
            return np.zeros(grid, np.float32)
        search = cv2.DISOpticalFlow.create(_PRESETS[self.preset])
        energies = []
        for before, now in itertools.pairwise(frames):
            # An array instead of the None would be taken for a first guess; OpenCV's types do not know that.
            flow = search.calc(before, now, None)  # type: ignore[call-overload]
            energies.append(_scaled(np.abs(flow).sum(axis=-1), grid.h, grid.w))
        per_frame = np.stack([energies[0], *energies]) * (footage.view.size_px / side_px)
        return reduce(per_frame, "(t dt) h w -> t h w", "mean", dt=footage.patching.tubelet_frames)


def _scaled(image: Picture, height: int, width: int) -> Picture:
    """A picture in another size: the mean of what a pixel covers where it shrinks, linear in between where it grows."""
    shrinks = image.shape[0] >= height
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
