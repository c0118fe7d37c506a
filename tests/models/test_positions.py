"""Every form of positions tells all places apart, and is what its docstring says."""

import math

import pytest
import torch

from models.extension import load, names
from models.grid import Grid
from models.positions import sinusoids
from models.positions.flattened import Config as Flattened
from models.positions.separable import Config as Separable


@pytest.mark.parametrize("name", names("models.positions"))
@pytest.mark.parametrize("grid", [Grid(64, 4, 4), Grid(64, 14, 14)])
@pytest.mark.parametrize("dim", [48, 64, 96])
def test_every_place_has_its_own_vector(name, grid, dim):
    vectors = load("models.positions", name).vectors(grid, dim)
    assert vectors.shape == (grid.num_tokens, dim)
    assert len(torch.unique(vectors, dim=0)) == grid.num_tokens


def test_flattened_positions_are_sines_and_cosines_of_the_token_number():
    table = Flattened().vectors(Grid(5, 1, 1), 8)
    for position in range(5):
        for pair in range(4):
            angle = position / 10000 ** (2 * pair / 8)
            assert table[position, 2 * pair].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_separable_positions_hold_slot_row_and_column_in_token_order():
    grid = Grid(8, 3, 5)
    vectors = Separable().vectors(grid, 32)
    slots, rows, columns = (sinusoids(places, dim, shortest=4.0, spread=64.0) for places, dim in ((8, 12), (3, 10), (5, 10)))
    for t, h, w in ((0, 0, 0), (7, 2, 4), (3, 1, 2)):
        expected = torch.cat([slots[t], rows[h], columns[w]])
        assert torch.equal(vectors[(t * 3 + h) * 5 + w], expected)


def test_positions_of_a_longer_clip_begin_with_those_of_the_shorter():
    for positions in (Flattened(), Separable()):
        short, long = positions.vectors(Grid(4, 3, 3), 24), positions.vectors(Grid(9, 3, 3), 24)
        assert torch.equal(long[: len(short)], short)
