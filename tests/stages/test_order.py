"""The order of an epoch is a permutation, found at any position alone, and as random as one that was shuffled."""

import time

import numpy as np
import pytest
from scipy import stats

from stages.order import ordered


def order(count: int, *, seed: int = 0, epoch: int = 0) -> list[int]:
    return [ordered(position, count=count, seed=seed, epoch=epoch) for position in range(count)]


def test_every_number_comes_once() -> None:
    for count in [*range(1, 130), 255, 256, 257, 511, 600]:
        assert sorted(order(count)) == list(range(count)), count


def test_epochs_and_seeds_have_their_own_order() -> None:
    found = {tuple(order(40, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(20)}
    assert len(found) == 60
    assert order(40, seed=2, epoch=5) == order(40, seed=2, epoch=5)


@pytest.mark.parametrize("count", [2, 3, 7, 12])
def test_every_number_is_equally_likely_at_every_position(count: int) -> None:
    num_orders = 1200
    seen = np.zeros((count, count))
    for epoch in range(num_orders):
        seen[range(count), order(count, epoch=epoch)] += 1
    expected = num_orders / count
    chi_square = ((seen - expected) ** 2 / expected).sum() * (count - 1) / count  # every row and column has one hit per order
    assert stats.chi2.sf(chi_square, (count - 1) ** 2) > 0.001, "such a table is rarer than one in a thousand"


def test_every_order_of_a_few_is_equally_likely() -> None:
    found = [tuple(order(4, epoch=epoch)) for epoch in range(4800)]
    counts = [found.count(one) for one in set(found)]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 0.001


def test_neighbours_do_not_stay_together() -> None:
    steps = np.diff(order(500))
    assert abs(np.corrcoef(order(500), range(500))[0, 1]) < 0.15
    assert len(np.unique(steps)) > 250


def test_ten_million_clips_need_no_list() -> None:
    began = time.process_time()
    found = {ordered(position, count=10_000_000, seed=1, epoch=7) for position in range(5_000_000, 5_000_500)}
    assert len(found) == 500
    assert min(found) < 500_000 < 9_500_000 < max(found)
    assert time.process_time() - began < 1


def test_a_position_beyond_the_epoch_is_refused() -> None:
    with pytest.raises(IndexError, match="position 5 of an order of 5"):
        ordered(5, count=5, seed=0, epoch=0)
