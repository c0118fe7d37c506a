"""One axis over the flattened token grid."""

from typing import Literal

from models.grid import Grid
from models.positions import PositionsConfig, sinusoids
from models.shapes import Float, Tensor


class Config(PositionsConfig):
    """Sinusoids of the token's number. Rows and columns must be read off its fast waves, which takes width and training.

    Source: VideoMAE, arXiv 2203.12602.
    """

    name: Literal["flattened"] = "flattened"
    """The name in a recipe."""

    def vectors(self, grid: Grid, dim: int) -> Float[Tensor, "N dim"]:
        """Sinusoids of 0 ... N-1."""
        return sinusoids(grid.num_tokens, dim)
