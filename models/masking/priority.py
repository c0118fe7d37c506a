"""The tokens of the clip that score highest, by learned priority or by another product, and a few random others."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator

from models.grid import Grid
from models.masking import MaskingConfig, all_but, first_real, share_of, shuffled, to_multiple, token_scores
from models.shapes import Bool, Float, Int, Shaped, Tensor
from models.top_k import top_k_positions


class Config(MaskingConfig):
    """Takes the top tokens over the whole clip, then random ones from the rest.

    Source: arXiv 2411.13683, section 3: 10 % by priority and 5 % at random. That the two do not overlap is our reading.
    """

    name: Literal["priority"] = "priority"
    """The name in a recipe."""

    by: str = Field(default="priority", min_length=1)
    """The product that is the score: ``priority`` is the tokenizer's, the others are those that ``precompute`` stores. Of a
    product with several values per token, such as a motion vector, the score is the vector's length."""

    top: float = Field(default=0.10, ge=0, le=1)
    """Tokens taken for their score over tokens of the clip, rounded down."""

    random: float = Field(default=0.05, ge=0, le=1)
    """Tokens drawn from the rest over tokens of the clip, rounded down."""

    multiple_of: int = Field(default=1, ge=1)
    """Both parts together are rounded to the nearest multiple of this, see :func:`models.masking.to_multiple`. The random part
    takes up the difference, the top part where there is none."""

    @model_validator(mode="after")
    def _parts_fit_the_clip(self) -> "Config":
        if not 0 < self.top + self.random <= 1:
            raise ValueError(f"top {self.top} and random {self.random} must add up to a share above 0 and at most 1")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The product that is the score."""
        return (self.by,)

    def count(self, grid: Grid) -> int:
        """Top and random tokens together, each rounded down, and their sum to the nearest multiple."""
        both = share_of(self.top, grid.num_tokens) + share_of(self.random, grid.num_tokens)
        return to_multiple(both, self.multiple_of, grid.num_tokens)

    def top_count(self, grid: Grid) -> int:
        """How many of them are taken for their score."""
        total = self.count(grid)
        return min(share_of(self.top, grid.num_tokens), total) if self.random else total

    def scores(self, products: Mapping[str, Shaped[Tensor, "N ..."]]) -> Float[Tensor, " N"]:
        """The score of every token, see :func:`models.masking.token_scores`."""
        return token_scores(products[self.by])

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of the highest scores and of random others; among equal scores the lowest position wins."""
        by_score = top_k_positions(self.scores(products), grid.num_tokens)
        top = first_real(by_score, real, self.top_count(grid))
        left_over = all_but(top, real)
        order = shuffled(grid.num_tokens, generator)
        drawn = first_real(order[left_over[order]], real, self.count(grid) - len(top))
        return torch.cat([top, drawn]).sort().values
