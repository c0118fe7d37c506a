"""The tokens of every temporal slot that score highest by a product, or lowest: the same number in each slot."""

from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field

from models.grid import Grid
from models.masking import MaskingConfig, first_real, share_of, token_scores
from models.shapes import Bool, Int, Shaped, Tensor
from models.top_k import top_k_positions


class Config(MaskingConfig):
    """Takes the top or bottom share of each slot.

    Source: MGMAE (Huang et al., ICCV 2023) lets the encoder see the top tenth of every slot by a map that is warped along
    the optical flow. A stored product takes the place of that map, so this is its rule and not its method.
    """

    name: Literal["per_slot"] = "per_slot"
    """The name in a recipe."""

    by: str = Field(default="priority", min_length=1)
    """The product that is the score, see :func:`models.masking.token_scores`."""

    share: float = Field(default=0.10, gt=0, le=1)
    """Tokens taken over tokens of a slot, rounded up: 0.1 of 196 takes 20, as a tube does that hides 0.9."""

    end: Literal["highest", "lowest"] = "highest"
    """Which scores are taken."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The product that is the score."""
        return (self.by,)

    def count(self, grid: Grid) -> int:
        """The share of a slot, in all slots."""
        return grid.t * (grid.slot_tokens - share_of(1 - self.share, grid.slot_tokens))

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of the wanted scores; among equal ones the lowest position wins.

        Of a clip with padding, more tokens of each recorded slot, the same number to within one.
        """
        scores = rearrange(token_scores(products[self.by]), "(t patches) -> t patches", t=grid.t)
        ranked = top_k_positions(scores if self.end == "highest" else -scores, grid.slot_tokens)
        positions = ranked + torch.arange(grid.t)[:, None] * grid.slot_tokens
        return first_real(rearrange(positions, "t rank -> (rank t)"), real, self.count(grid))
