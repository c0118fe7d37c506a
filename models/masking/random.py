"""A uniformly random set of tokens, drawn over space and time at once."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from models.grid import Grid
from models.masking import MaskingConfig, first_real, share_of, shuffled, to_multiple
from models.shapes import Bool, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Takes a share of all tokens, each set of that size as likely as any other."""

    name: Literal["random"] = "random"
    """The name in a recipe."""

    share: float = Field(gt=0, le=1)
    """Tokens taken over tokens of the clip, rounded down. Source: arXiv 2411.13683 compares at 0.15."""

    multiple_of: int = Field(default=1, ge=1)
    """The count is rounded to the nearest multiple of this, see :func:`models.masking.to_multiple`."""

    def count(self, grid: Grid) -> int:
        """The share of the grid, rounded."""
        return to_multiple(share_of(self.share, grid.num_tokens), self.multiple_of, grid.num_tokens)

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Random positions."""
        return first_real(shuffled(grid.num_tokens, generator), real, self.count(grid))
