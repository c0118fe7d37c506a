"""A small pattern that runs: tiled over the slot, and one position further in every slot after."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from models.grid import Grid
from models.masking import MaskingConfig, first_real, recorded_slots, share_of, shuffled
from models.shapes import Bool, Float, Int, Shaped, Tensor


class Config(MaskingConfig):
    """Tiles the slots with square cells and takes as many neighbouring positions of each as the budget allows.

    In every slot the taken positions of a cell begin one position further, so that in as many slots as a cell has
    positions each of them is taken equally often. Where the budget does not come out even, some cells hold one token more
    than others of their size; that goes round the cells. At the right and lower edge a cell holds what is left of the slot,
    and runs over that.

    Source: VideoMAE V2, arXiv 2303.16727, with half of a 2 x 2 cell; that the position at which the cells begin is drawn for
    every clip follows its code. Other budgets than quarters, and grids that the cell does not divide, are our extension.
    """

    name: Literal["running_cell"] = "running_cell"
    """The name in a recipe."""

    share: float = Field(default=0.5, gt=0, le=1)
    """Tokens taken over tokens of the clip, rounded down, and at least one token. Source: 0.5 in arXiv 2303.16727."""

    cell_side: int = Field(default=2, ge=1)
    """Height and width of a cell, in patches."""

    def count(self, grid: Grid) -> int:
        """The share of the grid, rounded down."""
        return max(1, share_of(self.share, grid.num_tokens))

    def select(
        self,
        grid: Grid,
        *,
        products: Mapping[str, Shaped[Tensor, "N ..."]],
        real: Bool[Tensor, " N"],
        generator: torch.Generator,
    ) -> Int[Tensor, " M"]:
        """Positions of running cells; of a clip with padding, denser ones in the recorded slots."""
        tiling, count = _tiling(grid, self.cell_side), self.count(grid)
        start = int(torch.randint(self.cell_side**2, (), generator=generator))
        num_slots = max(1, recorded_slots(grid, real))
        taken_before = torch.empty(grid.t, grid.slot_tokens, dtype=torch.float64)
        # Cells of different sizes take turns only among their likes: each size has its own share of the budget.
        for size in sorted(set(tiling.size.tolist())):
            members = tiling.size == size
            per_slot, extra = divmod(count * int(members.sum()) // grid.slot_tokens, num_slots)
            before = torch.arange(grid.t) * per_slot + torch.arange(grid.t).clamp(max=extra)
            taken_before[:, members] = _dealt(tiling.cell[members], tiling.place[members], size, start, before, generator)
        return first_real(taken_before.flatten().argsort(stable=True), real, count)


class _Tiling(NamedTuple):
    """Where each patch of a slot lies in the cells that tile it, all in token order."""

    cell: Int[Tensor, " patches"]
    """The number of its cell."""
    place: Int[Tensor, " patches"]
    """Its number in the cell, row by row."""
    size: Int[Tensor, " patches"]
    """Patches of its cell."""


def _tiling(grid: Grid, side: int) -> _Tiling:
    rows, columns = torch.arange(grid.h)[:, None], torch.arange(grid.w)
    heights = (grid.h - rows // side * side).clamp(max=side)
    widths = (grid.w - columns // side * side).clamp(max=side)
    cell = rows // side * grid.w + columns // side
    place = rows % side * widths + columns % side
    return _Tiling(cell.flatten(), place.flatten(), (heights * widths).flatten())


def _dealt(
    cell: Int[Tensor, " patches"],
    place: Int[Tensor, " patches"],
    size: int,
    start: int,
    before: Int[Tensor, " slots"],
    generator: torch.Generator,
) -> Float[Tensor, "slots patches"]:
    """The order in which the tokens of cells of one size are taken, as the share of them that has been taken before.

    In a slot it goes round the cells, a token each, again and again; in the next slot it goes on with the cell at which the
    slot before stops.

    Args:
        cell: the cell of every patch.
        place: its number in the cell.
        size: patches of a cell.
        start: the place at which the cells begin in slot 0.
        before: tokens that are taken in all slots before a slot.
        generator: draws the order of the cells.
    """
    numbers = torch.unique(cell, return_inverse=True)[1]
    num_cells, num_slots = len(cell) // size, len(before)
    slot = torch.arange(num_slots)[:, None]
    lap = (place - start - slot) % size  # [slots, patches]
    turn = (shuffled(num_cells, generator)[numbers] - before[:, None]) % num_cells  # [slots, patches]
    # Every number from 0 to the count of patches occurs once in each slot.
    in_slot = lap * num_cells + turn
    return (in_slot * num_slots + slot).double() / (len(cell) * num_slots)
