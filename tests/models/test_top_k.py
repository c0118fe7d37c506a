"""Exactly k, whatever the ties, and a gradient that reaches every score near the edge."""

import pytest
import torch

from models.top_k import straight_through_top_k, top_k_positions


def test_positions_are_those_of_the_largest_scores_largest_first():
    assert top_k_positions(torch.tensor([0.1, 0.9, 0.5, 0.7]), 3).tolist() == [1, 3, 2]


def test_among_equal_scores_the_lowest_position_wins():
    scores = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert top_k_positions(scores, 2).tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize("k", [-1, 4])
def test_an_impossible_count_is_refused(k):
    with pytest.raises(ValueError, match=f"top {k} of 3"):
        top_k_positions(torch.zeros(3), k)


@pytest.mark.parametrize("k", [1, 7, 20])
@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
def test_selection_is_exactly_k_ones_and_zeros(k, kind):
    random = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    scores = {"random": random, "ties": random.round(), "constant": torch.zeros(3, 20)}[kind]
    keep = straight_through_top_k(scores, k, temperature=0.5)
    assert ((keep == 0) | (keep == 1)).all()
    assert keep.sum(dim=1).tolist() == [k] * 3
    assert torch.equal(keep.nonzero()[:, 1].reshape(3, k), top_k_positions(scores, k).sort().values)


def test_selection_ignores_the_scale_of_the_scores():
    scores = torch.randn(2, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = []
    for scale in (1.0, 100.0):
        scaled = (scores * scale).requires_grad_()
        (straight_through_top_k(scaled, 10, temperature=1.0) * torch.arange(30.0)).sum().backward()
        gradients.append(scaled.grad * scale)
    assert torch.allclose(*gradients, rtol=1e-3)


def test_keeping_a_useful_token_is_rewarded_with_a_higher_score():
    scores = torch.randn(1, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    straight_through_top_k(scores, 4, temperature=1.0)[0, 5].backward()
    assert scores.grad[0, 5] > 0
    assert scores.grad[0, 5] == scores.grad.abs().max()


def test_constant_scores_give_a_finite_gradient():
    scores = torch.zeros(1, 8, requires_grad=True)
    (straight_through_top_k(scores, 4, temperature=1.0) * torch.arange(8.0)).sum().backward()
    assert scores.grad.isfinite().all()


def test_a_layer_that_keeps_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        straight_through_top_k(torch.zeros(1, 8), 0, temperature=1.0)
