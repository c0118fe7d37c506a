"""Rules that choose tokens: what the encoder sees, what the decoder predicts. One file per rule, named as in a recipe.

A rule answers with positions, never with a mask. It runs once per clip, on the processor that loads data, and its draw
depends on nothing but its arguments, so that any number of workers chooses the same tokens.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from einops import rearrange

from models.config import Config
from models.grid import Grid
from models.shapes import Bool, Float, Int, Shaped, Tensor


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

    def select_beside(
        self,
        grid: Grid,
        *,
        visible: Int[Tensor, " V"],
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """The choice of a decoder whose encoder sees the tokens ``visible``; all else as in ``select``.

        By itself a rule does not look at what the encoder sees: the two sets may overlap, and the loss leaves the overlap
        out. ``hidden_only`` makes any rule look, and a rule whose two sets belong together defines this.
        """
        return self.select(grid, products=products, real=real, generator=generator)


def share_of(share: float, total: int) -> int:
    """A share of a count, rounded down; a product such as 0.29 * 100, just below a whole number, counts as whole."""
    return math.floor(share * total + 1e-9)


def to_multiple(count: int, multiple_of: int, total: int) -> int:
    """The multiple nearest to a count, half a step up; at least one multiple, and no more than ``total`` holds.

    Nearest, because no single direction gives sets that fit a processor's tiles and stay close to their shares: of the
    16,384 tokens of 128 frames at 256 px, 10 % are 1638 and become 1664 (up), 15 % are 2457 and become 2432 (down), both
    multiples of 128 that add up to 4096.

    Raises:
        ValueError: ``total`` does not hold one multiple.
    """
    if multiple_of > total:
        raise ValueError(f"multiple_of {multiple_of} is more than the {total} tokens of the clip; choose a smaller one")
    steps = (2 * count + multiple_of) // (2 * multiple_of)
    return min(max(steps, 1), total // multiple_of) * multiple_of


def real_first(order: Int[Tensor, " M"], real: Bool[Tensor, " N"]) -> Int[Tensor, " M"]:
    """The positions of ``order`` with those of padding moved behind the others; both keep their order."""
    recorded = real[order]
    return torch.cat([order[recorded], order[~recorded]])


def all_but(positions: Int[Tensor, " M"], like: Bool[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """True at every position but some, for as many tokens as ``like`` has."""
    return torch.ones_like(like).scatter(0, positions, False)


def first_real(order: Int[Tensor, " N"], real: Bool[Tensor, " all"], count: int) -> Int[Tensor, " M"]:
    """The first ``count`` positions of ``order``, passing over padding until nothing else is left; ascending."""
    return real_first(order, real)[:count].sort().values


def recorded_slots(grid: Grid, real: Bool[Tensor, " N"]) -> int:
    """How many temporal slots hold a recorded token."""
    return int(rearrange(real, "(t patches) -> t patches", t=grid.t).any(dim=1).sum())


def token_scores(values: Shaped[Tensor, "N ..."]) -> Float[Tensor, " N"]:
    """One number per token of a product: the value itself, or the length of several values, such as a motion vector.

    In single precision: lengths of half-precision vectors would overflow or become equal.
    """
    single = values.float()
    return single if single.ndim == 1 else torch.linalg.vector_norm(single, dim=-1)


def shuffled(count: int, generator: torch.Generator) -> Int[Tensor, " {count}"]:
    """The numbers 0 ... count-1 in a random order."""
    return torch.randperm(count, generator=generator, device=generator.device)
