"""No choice at all: every token of the clip. As decoder rule this is the full reconstruction of VideoMAE."""

from collections.abc import Mapping
from typing import Literal

import torch

from models.grid import Grid
from models.masking import MaskingConfig
from models.shapes import Bool, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Takes every token, padding included."""

    name: Literal["none"] = "none"
    """The name in a recipe."""

    def count(self, grid: Grid) -> int:
        """All tokens of the grid."""
        return grid.num_tokens

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Every position, in order."""
        return torch.arange(grid.num_tokens)
