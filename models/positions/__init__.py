"""How a token's place in the clip becomes the vector that is added to it. One file per form, named as in a recipe.

All forms are fixed and computed, so that the same weights load for longer clips and larger frames.
"""

import math
from abc import ABC, abstractmethod

import torch

from models.config import Config
from models.grid import Grid
from models.shapes import Float, Tensor


class PositionsConfig(Config, ABC):
    """What every form offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def vectors(self, grid: Grid, dim: int) -> Float[Tensor, "N dim"]:
        """The vector of every token of the grid, in token order."""


def sinusoids(
    num_places: int, dim: int, *, shortest: float = 2 * math.pi, spread: float = 10000.0
) -> Float[Tensor, "{num_places} {dim}"]:
    """Vectors of places along one axis: sines in even and cosines in odd features.

    Args:
        num_places: places on the axis.
        dim: features of a vector.
        shortest: the shortest wavelength, in places.
        spread: longest over shortest wavelength.

    Source: Vaswani et al., arXiv 1706.03762, whose wavelengths are the defaults.
    """
    feature = torch.arange(dim)
    rate = 2 * math.pi / shortest * spread ** (-2.0 * (feature // 2).double() / dim)
    angles = torch.arange(num_places).double()[:, None] * rate  # [num_places, dim]
    return torch.where(feature % 2 == 0, angles.sin(), angles.cos()).float()
