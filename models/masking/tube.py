"""The same random patches in every temporal slot: a hidden patch stays hidden, so motion cannot give it away."""

from collections.abc import Mapping
from typing import Literal

import torch
from einops import rearrange
from pydantic import Field

from models.grid import Grid
from models.masking import MaskingConfig, first_real, share_of, shuffled, to_multiple
from models.shapes import Bool, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Hides a share of the patches and takes the others, the same ones in every slot.

    Source: VideoMAE, arXiv 2203.12602; arXiv 2411.13683 uses it for the encoder at every length.
    """

    name: Literal["tube"] = "tube"
    """The name in a recipe."""

    ratio: float = Field(default=0.9, ge=0, lt=1)
    """Patches hidden over patches of a slot, rounded down: 0.9 of 196 hides 176 and takes 20."""

    multiple_of: int = Field(default=1, ge=1)
    """The count is rounded to the nearest multiple of this, see :func:`models.masking.to_multiple`. Tubes stay whole where the
    slots divide it: 64 slots and 128 do."""

    def count(self, grid: Grid) -> int:
        """The patches that are not hidden, in all slots, rounded."""
        tubes = grid.slot_tokens - share_of(self.ratio, grid.slot_tokens)
        return to_multiple(grid.t * tubes, self.multiple_of, grid.num_tokens)

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of whole tubes.

        A clip with padding gets more tubes instead of tubes through padding; the last of them may end early, because
        the count is fixed.
        """
        tubes = shuffled(grid.slot_tokens, generator)
        slots = torch.arange(grid.t, device=tubes.device) * grid.slot_tokens
        order = rearrange(tubes[:, None] + slots, "tubes slots -> (tubes slots)")
        return first_real(order, real, self.count(grid))
