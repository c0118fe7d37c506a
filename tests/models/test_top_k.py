"""Positions of the largest scores, whatever the ties."""

import pytest
import torch

from models.top_k import top_k_positions


def test_positions_are_those_of_the_largest_scores_largest_first():
    assert top_k_positions(torch.tensor([0.1, 0.9, 0.5, 0.7]), 3).tolist() == [1, 3, 2]


def test_among_equal_scores_the_lowest_position_wins():
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_k_positions(scores, 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("k", [-1, 4])
def test_an_impossible_count_is_refused(k):
    with pytest.raises(ValueError, match=f"top {k} of 3"):
        top_k_positions(torch.zeros(3), k)


def test_all_and_none_can_be_taken():
    scores = torch.tensor([2.0, 3.0, 1.0])
    assert top_k_positions(scores, 3).tolist() == [1, 0, 2]
    assert top_k_positions(scores, 0).tolist() == []
