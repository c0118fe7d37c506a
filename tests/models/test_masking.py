"""What each masking promises beyond what all of them promise (see test_extensions)."""

import pytest
import torch
from pydantic import ValidationError

from models.grid import Grid, Patching
from models.masking import first_real, none, priority, random, share_of, tube

LONG = Patching().grid(128, 224)
SMALL = Grid(4, 3, 5)


def select(config, grid, *, real=None, products=None, seed=0):
    if real is None:
        real = torch.ones(grid.num_tokens, dtype=torch.bool)
    return config.select(grid, products=products or {}, real=real, generator=torch.Generator().manual_seed(seed))


def recorded(grid, slots):
    return torch.arange(grid.num_tokens) < slots * grid.slot_tokens


def test_shares_round_down_but_not_below_a_whole_number():
    assert share_of(0.9, 196) == 176
    assert share_of(0.29, 100) == 29
    assert share_of(0.10, 12_544) == 1254
    assert share_of(0.05, 12_544) == 627


def test_padding_comes_last_in_any_order():
    order, real = torch.tensor([4, 1, 3, 0, 2]), torch.tensor([True, False, True, False, True])
    assert first_real(order, real, 2).tolist() == [0, 4]
    assert first_real(order, real, 4).tolist() == [0, 1, 2, 4]


@pytest.mark.parametrize(
    ("frames", "visible", "predicted"),
    [(16, 160, 234), (32, 320, 469), (64, 640, 940), (96, 960, 1410), (128, 1280, 1881)],
)
def test_counts_at_full_size_are_the_published_ones(frames, visible, predicted):
    grid = Patching().grid(frames, 224)
    assert tube.Config().count(grid) == visible
    assert priority.Config().count(grid) == predicted


def test_tube_takes_the_same_patches_in_every_slot():
    chosen = select(tube.Config(), LONG).reshape(64, 20)
    patches = chosen % LONG.slot_tokens
    assert (patches == patches[0]).all()
    assert (chosen // LONG.slot_tokens == torch.arange(64)[:, None]).all()


def test_tube_takes_other_patches_for_another_clip():
    assert not torch.equal(select(tube.Config(), LONG, seed=0), select(tube.Config(), LONG, seed=1))


def test_tube_takes_more_tubes_through_the_recorded_part_of_a_short_clip():
    chosen = select(tube.Config(ratio=0.8), SMALL, real=recorded(SMALL, 2))  # 3 of 15 patches in 4 slots
    patches = chosen.reshape(2, 6) % SMALL.slot_tokens
    assert torch.equal(patches[0], patches[1])


def test_random_takes_its_share_over_space_and_time():
    chosen = select(random.Config(share=0.15), LONG)
    assert chosen.numel() == 1881
    per_slot = torch.bincount(chosen // LONG.slot_tokens, minlength=64)
    assert per_slot.unique().numel() > 1
    assert per_slot.min() > 0


def test_none_takes_everything():
    assert torch.equal(select(none.Config(), SMALL), torch.arange(SMALL.num_tokens))


def test_priority_takes_the_top_and_draws_the_rest_outside_it():
    scores = torch.rand(LONG.num_tokens, generator=torch.Generator().manual_seed(5))
    chosen = select(priority.Config(), LONG, products={"priority": scores})
    top = set(scores.topk(1254).indices.tolist())
    assert top < set(chosen.tolist())
    assert len(set(chosen.tolist()) - top) == 627


def test_priority_keeps_the_top_and_redraws_the_rest_for_another_seed():
    products = {"priority": torch.rand(LONG.num_tokens, generator=torch.Generator().manual_seed(5))}
    first, second = (set(select(priority.Config(), LONG, products=products, seed=s).tolist()) for s in (1, 2))
    top = set(products["priority"].topk(1254).indices.tolist())
    assert top <= first & second
    assert first != second


def test_equal_priorities_go_to_the_lowest_positions():
    config = priority.Config(top=0.1, random=0)
    chosen = select(config, SMALL, products={"priority": torch.zeros(SMALL.num_tokens, dtype=torch.float16)})
    assert chosen.tolist() == list(range(6))


def test_a_masking_needs_the_product_that_it_ranks_by():
    assert priority.Config().needs == ("priority",)
    assert priority.Config(by="flow").needs == ("flow",)
    assert tube.Config().needs == none.Config().needs == ()


def test_the_score_is_the_product_that_is_named():
    draw = torch.Generator().manual_seed(5)
    products = {name: torch.rand(SMALL.num_tokens, generator=draw).half() for name in ("priority", "flow")}
    for name, scores in products.items():
        chosen = select(priority.Config(by=name, random=0), SMALL, products=products)
        assert set(chosen.tolist()) == set(scores.topk(6).indices.tolist())


def test_the_score_of_vectors_is_their_length():
    vectors = torch.zeros(SMALL.num_tokens, 2, dtype=torch.float16)
    vectors[7], vectors[20], vectors[33], vectors[41] = (torch.tensor(pair) for pair in ([-3, 4], [0, -4.5], [3, 3], [4, 0]))
    assert select(priority.Config(by="motion", top=0.05, random=0), SMALL, products={"motion": vectors}).tolist() == [7, 20, 33]


def test_lengths_are_compared_in_single_precision():
    vectors = torch.zeros(SMALL.num_tokens, 2, dtype=torch.float16)
    vectors[1] = torch.tensor([2048, 1])  # as long as [2048, 0] to half precision
    vectors[2] = torch.tensor([2048, 0])
    vectors[3] = torch.tensor([2048, 2])
    vectors[4] = torch.tensor([60_000, 60_000])  # longer than half precision can tell
    vectors[5] = torch.tensor([65_504, 0])
    config = priority.Config(by="motion", top=0.05, random=0)
    assert select(config, SMALL, products={"motion": vectors}).tolist() == [3, 4, 5]
    assert select(config, SMALL, products={"motion": vectors.where(vectors < 3000, 0)}).tolist() == [1, 2, 3]
    by_one = priority.Config(by="motion", top=0.02, random=0)
    assert select(by_one, SMALL, products={"motion": vectors[:3].repeat(20, 1)}).tolist() == [1]


@pytest.mark.parametrize("shape", [(SMALL.num_tokens,), (SMALL.num_tokens, 2), (SMALL.num_tokens, 1)])
@pytest.mark.parametrize("slots", [0, 2, 4])
def test_equal_scores_of_any_product_fill_the_count_from_the_lowest_position(shape, slots):
    config = priority.Config(by="flow", top=0.6, random=0)
    chosen = select(config, SMALL, real=recorded(SMALL, slots), products={"flow": torch.zeros(shape, dtype=torch.float16)})
    assert chosen.tolist() == list(range(36))


def test_padding_has_no_priority_however_high_its_score():
    scores = torch.arange(float(SMALL.num_tokens))
    chosen = select(priority.Config(top=0.1, random=0), SMALL, real=recorded(SMALL, 2), products={"priority": scores})
    assert chosen.tolist() == list(range(24, 30))


@pytest.mark.parametrize(("top", "rest"), [(0.8, 0.3), (0.0, 0.0)])
def test_priority_shares_must_fit_the_clip(top, rest):
    with pytest.raises(ValidationError, match=f"top {top} and random {rest}"):
        priority.Config(top=top, random=rest)
