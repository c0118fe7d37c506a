"""How far what a token shows moved, as the clip's own encoder saw it: stored motion vectors, cut like the view's pixels.

Nothing is decoded and nothing is searched, so it is all but free. What these vectors are worth is said in
:mod:`stages.video_motion`: they are what made the encoder's residual cheap, and noise where there is little texture.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from stages.errors import ArtifactDamaged
from stages.products import Footage, ProductConfig, Values, stored_motion
from stages.video_motion import CELL_PX, TUBELET_FRAMES, UNITS_PER_PX


class Config(ProductConfig):
    """The mean motion vector (dx, dy) of a token, to the right and down, in pixels of the view per frame.

    A view may begin anywhere, so a token lies over up to eight cells of the stored grid; each counts by the frames and
    pixels that the token has of it. Where the encoder stored nothing the vector is 0, and that is averaged in. The vectors of
    a mirrored view point the other way. A masking that ranks by this product takes the vector's length.

    Source: that codec motion guides masking is MGM's (Fan et al., ICCV 2023). The resampling is ours.
    """

    dtype: ClassVar[str] = "float16"
    num_channels: ClassVar[int | None] = 2
    needs_motion: ClassVar[bool] = True

    name: Literal["codec_motion"] = "codec_motion"
    """The name in a recipe."""

    def measure(self, footage: Footage) -> Values:
        """Vectors ``[t h w 2]``.

        Raises:
            ConfigError: the clip was stored without motion.
            ArtifactDamaged: the stored motion does not cover the view.
        """
        view, patching, motion = footage.view, footage.patching, stored_motion(footage)
        weights = _weights(footage, motion.shape)
        # Whole numbers up to the division: no order of summation changes the result.
        sums = np.einsum("ti,hj,wk,ijkc->thwc", *weights, motion.astype(np.int64), optimize=True)
        turned = sums[:, :, ::-1] * (-1, 1) if view.flip else sums
        means: Values = turned / (patching.tubelet_frames * patching.patch_px**2 * UNITS_PER_PX)
        return means


def _weights(footage: Footage, cells: Sequence[int]) -> Sequence[npt.NDArray[np.int64]]:
    """For time, rows and columns: how many frames or pixels each token has of each cell of the stored grid."""
    view, grid, patching = footage.view, footage.grid, footage.patching
    sizes = (patching.tubelet_frames, patching.patch_px, patching.patch_px)
    offsets = (view.start_frame, view.y_px, view.x_px)
    weights = [
        overlaps(grid[axis], sizes[axis], cells[axis], cell_size, offset=offsets[axis])
        for axis, cell_size in enumerate((TUBELET_FRAMES, CELL_PX, CELL_PX))
    ]
    if any((found.sum(axis=1) != size).any() for found, size in zip(weights, sizes, strict=True)):
        raise ArtifactDamaged(
            f"clip {view.clip_id}: its stored motion is {list(cells)}, too small for {len(footage.pixels)} frames from "
            f"{view.start_frame} and {view.size_px} px from ({view.y_px}, {view.x_px}); shard again"
        )
    return weights


def overlaps(count: int, size: int, other_count: int, other_size: int, *, offset: int) -> npt.NDArray[np.int64]:
    """The lengths that two rows of intervals have in common ``[count other_count]``.

    Args:
        count: intervals of the first row.
        size: the length of each.
        other_count: intervals of the second row, which begins at 0.
        other_size: the length of each.
        offset: where the first row begins.
    """
    start = offset + np.arange(count)[:, None] * size
    other_start = np.arange(other_count) * other_size
    ends = np.minimum(start + size, other_start + other_size)
    lengths: npt.NDArray[np.int64] = np.maximum(ends - np.maximum(start, other_start), 0)
    return lengths
