"""Whole temporal slots at a fixed step: everything of some frames and nothing of the others."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field

from models.grid import Grid
from models.masking import MaskingConfig, first_real, recorded_slots
from models.shapes import Bool, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Takes every patch of each ``step``-th slot: one in ``step`` of the tokens, in whole slots.

    Source: "Uniform" of arXiv 2411.13683, table 1, at step 7, about 15 %. That slots are meant, and not frames, and that the
    first of them is drawn, is our reading.
    """

    name: Literal["uniform_frames"] = "uniform_frames"
    """The name in a recipe."""

    step: int = Field(default=7, ge=1)
    """Slots from one taken slot to the next; the slots of the clip over this, rounded down and at least one, are taken."""

    random_phase: bool = True
    """Whether the first slot is drawn for every clip, such that the last one still lies in the clip; otherwise it is slot 0."""

    def count(self, grid: Grid) -> int:
        """All patches of the slots that are taken: 9 of 64 at step 7, whatever the first one is."""
        return self._num_taken(grid) * grid.slot_tokens

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of whole slots.

        A clip with padding has as many slots taken from its recorded part, closer together where it is short.
        """
        taken, recorded = self._num_taken(grid), recorded_slots(grid, real)
        step = max(1, min(self.step, recorded // taken))
        num_phases = max(1, recorded - step * (taken - 1))
        phase = torch.randint(num_phases, (), generator=generator) if self.random_phase else torch.tensor(0)
        behind = (torch.arange(grid.t) - phase) % grid.t  # slots since the first one
        slots = (behind % step * grid.t + behind).argsort()
        positions = slots[:, None] * grid.slot_tokens + torch.arange(grid.slot_tokens)
        return first_real(positions.flatten(), real, self.count(grid))

    def _num_taken(self, grid: Grid) -> int:
        return max(1, grid.t // self.step)
