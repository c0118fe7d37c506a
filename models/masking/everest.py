"""EVEREST's choice: the tokens that change most, split at random between what is seen and what is predicted."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator

from models.grid import Grid
from models.masking import MaskingConfig, all_but, first_real, real_first, share_of, shuffled, token_scores
from models.shapes import Bool, Int, Shaped, Tensor
from models.top_k import top_k_positions


class Config(MaskingConfig):
    """Takes one part of the motion-centric tokens, which are those with the largest distance from the slot before.

    Used for encoder and decoder alike, once with each part, the two sets are disjoint and together the motion-centric set:
    the encoder's part is drawn, and the decoder's is what the encoder does not see. Nothing has to be drawn twice.

    Source: EVEREST, arXiv 2211.10636, and its code: 30 % of the tokens, of which the encoder sees a third. The distance is the
    stored product ``everest``; the published one is taken between embeddings of the model in training.
    """

    name: Literal["everest"] = "everest"
    """The name in a recipe."""

    part: Literal["visible", "predict"]
    """Whose tokens these are: the encoder's or the decoder's."""

    ratio: float = Field(default=0.30, gt=0, le=1)
    """Motion-centric tokens over tokens of the clip, rounded down."""

    visible: float = Field(default=0.10, gt=0, le=1)
    """Motion-centric tokens that the encoder sees over tokens of the clip, rounded down; the decoder predicts the others."""

    @model_validator(mode="after")
    def _both_parts_hold_something(self) -> "Config":
        if self.visible >= self.ratio:
            raise ValueError(f"visible {self.visible} must be below ratio {self.ratio}, or nothing is left to predict")
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """The distances."""
        return ("everest",)

    def count(self, grid: Grid) -> int:
        """The tokens of the part."""
        visible = share_of(self.visible, grid.num_tokens)
        return visible if self.part == "visible" else share_of(self.ratio, grid.num_tokens) - visible

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions drawn from the motion-centric set; among equal distances the lowest position belongs to it."""
        return first_real(self._order(grid, products, real, generator), real, self.count(grid))

    def select_beside(
        self,
        grid: Grid,
        *,
        visible: Int[Tensor, " V"],
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of the motion-centric set that the encoder does not see.

        All of them, where the encoder's tokens are this rule's other part. Beside another encoder rule the count is kept: too
        many are drawn from, too few are filled up with the largest distances outside the set.
        """
        hidden = all_but(visible, real)
        order = real_first(self._order(grid, products, real, generator), real)
        return first_real(order, hidden, self.count(grid))

    def _order(
        self,
        grid: Grid,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " N"]:
        """The motion-centric set in random order, then all others by distance."""
        by_distance = real_first(top_k_positions(token_scores(products["everest"]), grid.num_tokens), real)
        size = share_of(self.ratio, grid.num_tokens)
        return torch.cat([by_distance[:size][shuffled(size, generator)], by_distance[size:]])
