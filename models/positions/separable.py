"""Time, row and column in features of their own."""

from typing import Literal

import torch
from einops import repeat
from pydantic import Field

from models.grid import Grid
from models.positions import PositionsConfig, sinusoids
from models.shapes import Float, Tensor


class Config(PositionsConfig):
    """Sinusoids of slot, row and column side by side, so that narrow networks tell the axes apart from the first step.

    Source: sinusoids as in VideoMAE, arXiv 2203.12602, the separation of axes as in MAE-ST, arXiv 2205.09113, which
    learns them; together they are our choice. ``docs/synthetic.md`` says what it changed.
    """

    name: Literal["separable"] = "separable"
    """The name in a recipe."""

    shortest: float = Field(default=4.0, gt=0)
    """Shortest wavelength in places. Our choice: neighbours are a quarter turn apart."""

    spread: float = Field(default=64.0, gt=1)
    """Longest over shortest wavelength. Our choice: a turn of 256 places covers clips of 512 frames without repeating."""

    def vectors(self, grid: Grid, dim: int) -> Float[Tensor, "N dim"]:
        """A third of the features each for slot, row and column; time takes what is left over."""
        side = dim // 6 * 2
        sizes = ((grid.t, dim - 2 * side), (grid.h, side), (grid.w, side))
        slots, rows, columns = (sinusoids(*size, shortest=self.shortest, spread=self.spread) for size in sizes)
        return torch.cat(
            [
                repeat(slots, "t d -> (t h w) d", h=grid.h, w=grid.w),
                repeat(rows, "h d -> (t h w) d", t=grid.t, w=grid.w),
                repeat(columns, "w d -> (t h w) d", t=grid.t, h=grid.h),
            ],
            dim=1,
        )
