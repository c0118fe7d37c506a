"""Rules that choose tokens: what the encoder sees, what the decoder predicts. One file per rule, named as in a recipe.

A rule answers with positions, never with a mask. It runs once per clip, on the processor that loads data, and its draw
depends on nothing but its arguments, so that any number of workers chooses the same tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from models.config import Config
from models.grid import Grid
from models.shapes import Bool, Int, Shaped, Tensor


class MaskingConfig(Config, ABC):
    """What every rule offers; a file in this folder holds one subclass named ``Config``."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the precomputed products the rule reads, such as ``priority``; by itself a rule reads none."""
        return ()

    @abstractmethod
    def count(self, grid: Grid) -> int:
        """How many tokens the rule takes from a clip of this grid; the same for every clip."""

    @abstractmethod
    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """The chosen positions, ascending and without repeats, exactly ``count(grid)`` of them.

        Args:
            grid: the token grid of the clip.
            products: for every name in ``needs`` one value per token, or several.
            real: true for tokens of recorded frames. Padding is chosen only when nothing else is left.
            generator: the only source of chance.
        """


def share_of(share: float, total: int) -> int:
    """A share of a count, rounded down; a product such as 0.29 * 100, just below a whole number, counts as whole."""
    return math.floor(share * total + 1e-9)


def first_real(order: Int[Tensor, " N"], real: Bool[Tensor, " all"], count: int) -> Int[Tensor, " M"]:
    """The first ``count`` positions of ``order``, passing over padding until nothing else is left; ascending."""
    recorded = real[order]
    return torch.cat([order[recorded], order[~recorded]])[:count].sort().values


def shuffled(count: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
    """The numbers 0 ... count-1 in a random order."""
    return torch.randperm(count, generator=generator, device=generator.device)
