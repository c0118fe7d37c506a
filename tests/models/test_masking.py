"""What every rule of the folder promises, found there and not listed here, and what each promises beyond that."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from models.extension import load, names
from models.grid import Grid, Patching
from models.mae import hidden_weight
from models.masking import (
    everest,
    first_real,
    hidden_only,
    none,
    per_slot,
    priority,
    random,
    running_cell,
    share_of,
    to_multiple,
    tube,
    uniform_frames,
)

LONG = Patching().grid(128, 224)
LARGE = Patching().grid(128, 256)
SMALL = Grid(4, 3, 5)
GRIDS = [Grid(1, 3, 5), Grid(2, 3, 4), Grid(5, 7, 3), LONG]
EXAMPLES = settings(max_examples=30, deadline=None, database=None, derandomize=True)
"""The same examples in every run, and nothing kept of them."""

VARIANTS: Mapping[str, list[dict[str, Any]]] = {
    "everest": [{"part": "visible"}, {"part": "predict"}],
    "hidden_only": [{"rule": "priority"}, {"rule": {"name": "tube", "ratio": 0.8}}],
    "per_slot": [{}, {"by": "flow", "end": "lowest", "share": 0.3}],
    "priority": [{}, {"by": "flow", "random": 0.2}],
    "random": [{"share": 0.2}],
    "running_cell": [{}, {"share": 0.15, "cell_side": 3}],
    "uniform_frames": [{}, {"step": 2, "random_phase": False}],
}
"""Values for fields without a default, and options that are worth it; any other file of the folder is tried as it is."""

RULES = [
    load("models.masking", {"name": name} | fields) for name in names("models.masking") for fields in VARIANTS.get(name, [{}])
]
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)

grids = st.builds(Grid, st.integers(1, 6), st.integers(1, 7), st.integers(1, 7))


def some_products(rule, grid):
    draw = torch.Generator().manual_seed(9)
    return {name: torch.rand(grid.num_tokens, generator=draw) for name in rule.needs}


def select(config, grid, *, real=None, products=None, seed=0):
    if real is None:
        real = torch.ones(grid.num_tokens, dtype=torch.bool)
    return config.select(grid, products=products or {}, real=real, generator=torch.Generator().manual_seed(seed))


def beside(config, grid, visible, *, real=None, products=None, seed=1):
    if real is None:
        real = torch.ones(grid.num_tokens, dtype=torch.bool)
    draw = torch.Generator().manual_seed(seed)
    return config.select_beside(grid, visible=visible, products=products or {}, real=real, generator=draw)


def recorded(grid, slots):
    return torch.arange(grid.num_tokens) < slots * grid.slot_tokens


def some_of(count, share, seed):
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)) < share


def assert_is_a_choice(chosen, rule, grid):
    assert chosen.dtype == torch.int64
    assert chosen.shape == (rule.count(grid),)
    assert chosen.numel() <= grid.num_tokens
    assert (chosen.diff() > 0).all()
    assert ((chosen >= 0) & (chosen < grid.num_tokens)).all()


@every_rule
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_rule_answers_with_its_count_of_recorded_positions_and_repeats_itself(rule, grid):
    products, before = some_products(rule, grid), torch.random.get_rng_state()
    assert rule.count(grid) > 0
    for slots in {0, 1, grid.t - 1, grid.t}:
        real = recorded(grid, slots)
        chosen = select(rule, grid, real=real, products=products, seed=3)
        assert_is_a_choice(chosen, rule, grid)
        assert real[chosen].sum() == min(rule.count(grid), int(real.sum())), "padding while recorded tokens are left"
        assert torch.equal(select(rule, grid, real=real, products=products, seed=3), chosen)
    assert torch.equal(torch.random.get_rng_state(), before), "the global generator was used"


@every_rule
@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)  # of one slot, shares are no tokens and there is one slot to draw
def test_every_rule_that_draws_chooses_otherwise_for_another_generator(rule, grid):
    products, real = some_products(rule, grid), recorded(grid, grid.t)
    draws = [torch.Generator().manual_seed(seed) for seed in range(8)]
    before = draws[0].get_state()
    choices = [rule.select(grid, products=products, real=real, generator=draw) for draw in draws]
    different = len({tuple(choice.tolist()) for choice in choices})
    if torch.equal(draws[0].get_state(), before) or rule.count(grid) == grid.num_tokens:
        assert different == 1
    else:
        assert different > 1


@every_rule
@EXAMPLES
@given(grid=grids, density=st.sampled_from([0.0, 0.1, 0.5, 0.9]), seed=st.integers(0, 99))
def test_every_rule_prefers_any_tokens_that_are_called_recorded(rule, grid, density, seed):
    real = some_of(grid.num_tokens, density, seed)
    chosen = select(rule, grid, real=real, products=some_products(rule, grid), seed=seed)
    assert_is_a_choice(chosen, rule, grid)
    assert real[chosen].sum() == min(rule.count(grid), int(real.sum()))


@every_rule
@EXAMPLES
@given(grid=grids, share=st.sampled_from([0.0, 0.1, 0.9]), seed=st.integers(0, 99))
def test_every_rule_keeps_its_count_beside_any_encoder(rule, grid, share, seed):
    visible = some_of(grid.num_tokens, share, seed).nonzero()[:, 0]
    assert_is_a_choice(beside(rule, grid, visible, products=some_products(rule, grid)), rule, grid)


@every_rule
def test_every_rule_can_be_kept_away_from_what_the_encoder_sees(rule):
    visible = select(tube.Config(ratio=0.8), SMALL)
    kept_away = hidden_only.Config(rule=rule)
    chosen = beside(kept_away, SMALL, visible, products=some_products(rule, SMALL))
    assert_is_a_choice(chosen, rule, SMALL)
    overlap = set(chosen.tolist()) & set(visible.tolist())
    assert len(overlap) == max(0, rule.count(SMALL) - (SMALL.num_tokens - len(visible)))


def test_shares_round_down_but_not_below_a_whole_number():
    assert share_of(0.9, 196) == 176
    assert share_of(0.29, 100) == 29
    assert share_of(0.10, 12_544) == 1254
    assert share_of(0.05, 12_544) == 627


@pytest.mark.parametrize(
    ("count", "multiple_of", "rounded"),
    [(5, 1, 5), (0, 1, 1), (5, 4, 4), (6, 4, 8), (7, 4, 8), (1, 4, 4), (23, 4, 20), (22, 6, 18)],
)
def test_counts_round_to_the_nearest_multiple_that_the_clip_holds(count, multiple_of, rounded):
    assert to_multiple(count, multiple_of, 23) == rounded


def test_a_multiple_larger_than_the_clip_is_refused():
    with pytest.raises(ValueError, match="multiple_of 128 is more than the 60 tokens of the clip"):
        random.Config(share=0.5, multiple_of=128).count(SMALL)


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


def test_the_decoder_parts_at_full_size_are_the_published_ones():
    assert priority.Config().top_count(LONG) == 1254
    assert priority.Config().count(LONG) - priority.Config().top_count(LONG) == 627


def test_counts_of_128_frames_at_256_px_fill_whole_tiles():
    assert LARGE.num_tokens == 16_384
    assert tube.Config().count(LARGE) == tube.Config(multiple_of=128).count(LARGE) == 1664
    assert random.Config(share=0.1).count(LARGE) == 1638
    assert random.Config(share=0.1, multiple_of=128).count(LARGE) == 1664
    assert priority.Config().count(LARGE) == 2457
    assert priority.Config(multiple_of=128).count(LARGE) == 2432


@pytest.mark.parametrize(
    ("size_px", "tubelet_frames", "visible", "predicted"),
    [
        (128, 2, 384, 640),
        (160, 2, 640, 960),
        (192, 2, 896, 1408),
        (224, 2, 1280, 1856),
        (256, 2, 1664, 2432),
        (256, 4, 832, 1216),
    ],
)
def test_tenths_and_three_twentieths_round_to_the_sizes_that_were_measured(size_px, tubelet_frames, visible, predicted):
    grid = Patching(tubelet_frames=tubelet_frames).grid(128, size_px)
    assert random.Config(share=0.1, multiple_of=64).count(grid) == visible
    assert priority.Config(multiple_of=64).count(grid) == predicted


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


def test_tubes_stay_whole_where_the_slots_divide_the_multiple():
    chosen = select(tube.Config(ratio=0.5, multiple_of=12), SMALL)  # 8 of 15 patches in 4 slots, rounded from 32 to 36
    patches = chosen.reshape(4, 9) % SMALL.slot_tokens
    assert (patches == patches[0]).all()


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


@pytest.mark.parametrize(("top", "rest", "num_top"), [(0.1, 0.05, 6), (0.1, 0.0, 8), (0.2, 0.01, 12)])
def test_the_random_part_takes_up_what_rounding_changes(top, rest, num_top):
    config = priority.Config(top=top, random=rest, multiple_of=4)
    scores = torch.rand(SMALL.num_tokens, generator=torch.Generator().manual_seed(5))
    first, second = (set(select(config, SMALL, products={"priority": scores}, seed=seed).tolist()) for seed in (1, 2))
    assert len(first) == config.count(SMALL)
    assert config.top_count(SMALL) == num_top
    assert set(scores.topk(num_top).indices.tolist()) <= first & second


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


@pytest.mark.parametrize("random_phase", [True, False])
def test_uniform_frames_are_whole_slots_at_a_fixed_step(random_phase):
    config = uniform_frames.Config(random_phase=random_phase)
    assert config.count(LONG) == 9 * 196
    seen = set()
    for seed in range(40):
        chosen = select(config, LONG, seed=seed)
        slots, sizes = (chosen // LONG.slot_tokens).unique(return_counts=True)
        assert (sizes == LONG.slot_tokens).all()
        assert (slots.diff() == 7).all()
        seen.add(int(slots[0]))
    assert seen == (set(range(8)) if random_phase else {0})


@pytest.mark.parametrize(("step", "num_recorded", "slots"), [(3, 9, [0, 2, 4, 6]), (3, 12, [0, 3, 6, 9]), (5, 2, [0, 1])])
def test_uniform_frames_of_a_short_clip_lie_closer_together(step, num_recorded, slots):
    grid, config = Grid(12, 2, 3), uniform_frames.Config(step=step, random_phase=False)
    chosen = select(config, grid, real=recorded(grid, num_recorded))
    assert (chosen // grid.slot_tokens).unique().tolist() == slots


def cells(grid, side):
    """The patches of every cell, row by row."""
    found = {}
    for row in range(grid.h):
        for column in range(grid.w):
            found.setdefault((row // side, column // side), []).append(row * grid.w + column)
    return list(found.values())


def spread(numbers):
    return max(numbers) - min(numbers)


@EXAMPLES
@given(grid=grids, side=st.integers(1, 4), share=st.floats(0.01, 1), seed=st.integers(0, 99))
def test_running_cells_cover_every_position_equally_often_at_any_budget(grid, side, share, seed):
    config = running_cell.Config(share=share, cell_side=side)
    taken = torch.zeros(grid.num_tokens, dtype=torch.int64).scatter(0, select(config, grid, seed=seed), 1)
    by_size = {}
    for patches in cells(grid, side):
        inside = taken.view(grid.t, grid.slot_tokens)[:, patches]  # [t, positions of the cell]
        by_size.setdefault(len(patches), []).extend(inside.sum(dim=1).tolist())
        for first in range(grid.t - len(patches) + 1):
            assert spread(inside[first : first + len(patches)].sum(dim=0).tolist()) <= 1, "positions are covered unequally"
    assert all(spread(tokens) <= 1 for tokens in by_size.values()), "cells of one size hold unequal numbers of tokens"


@pytest.mark.parametrize("share", [0.03, 0.15, 0.25, 0.333, 0.5, 0.777, 1.0])
def test_running_cells_that_fill_the_grid_share_the_budget_over_slots_and_over_the_clip(share):
    taken = torch.zeros(LONG.num_tokens, dtype=torch.int64)
    taken[select(running_cell.Config(share=share), LONG)] = 1
    assert taken.sum() == share_of(share, LONG.num_tokens)
    in_slots = taken.view(LONG.t, LONG.slot_tokens)
    assert spread(in_slots.sum(dim=1).tolist()) <= 1
    assert spread([int(in_slots[:, patches].sum()) for patches in cells(LONG, 2)]) <= 1


def test_the_running_cell_of_half_a_budget_is_the_published_one():
    grid, outcomes = Grid(6, 4, 4), set()
    for seed in range(30):
        taken = torch.zeros(grid.num_tokens, dtype=torch.bool)
        taken[select(running_cell.Config(), grid, seed=seed)] = True
        in_slots = taken.view(grid.t, grid.slot_tokens)
        # The same two neighbours of four in each cell, both one further in the next slot.
        patterns = [in_slots[:, patches].long() for patches in cells(grid, 2)]
        assert all(torch.equal(pattern, patterns[0]) for pattern in patterns)
        start = next(shift for shift in range(4) if torch.equal(patterns[0][0], torch.tensor([1, 1, 0, 0]).roll(shift)))
        for slot in range(grid.t):
            assert torch.equal(patterns[0][slot], torch.tensor([1, 1, 0, 0]).roll(start + slot))
        outcomes.add(start)
    assert outcomes == {0, 1, 2, 3}


def test_running_cells_of_a_short_clip_are_denser():
    chosen = select(running_cell.Config(share=0.25), Grid(8, 4, 4), real=recorded(Grid(8, 4, 4), 4))
    assert torch.bincount(chosen // 16).tolist() == [8, 8, 8, 8]


@pytest.mark.parametrize(("end", "sign"), [("highest", 1), ("lowest", -1)])
def test_per_slot_takes_the_same_number_from_every_slot_by_score(end, sign):
    scores = torch.rand(LONG.num_tokens, generator=torch.Generator().manual_seed(5))
    config = per_slot.Config(by="flow", end=end)
    chosen = select(config, LONG, products={"flow": scores})
    assert config.count(LONG) == tube.Config().count(LONG) == 1280
    for slot in range(LONG.t):
        inside = scores.view(LONG.t, -1)[slot]
        wanted = (inside * sign).topk(20).indices + slot * LONG.slot_tokens
        assert set(wanted.tolist()) == set(chosen.view(LONG.t, 20)[slot].tolist())


@pytest.mark.parametrize("end", ["highest", "lowest"])
def test_per_slot_takes_the_lowest_positions_of_equal_scores(end):
    chosen = select(per_slot.Config(share=0.2, end=end), SMALL, products={"priority": torch.zeros(60)})
    assert chosen.tolist() == [0, 1, 2, 15, 16, 17, 30, 31, 32, 45, 46, 47]


def test_per_slot_takes_more_of_each_recorded_slot_of_a_short_clip():
    scores = torch.rand(SMALL.num_tokens, generator=torch.Generator().manual_seed(5))
    chosen = select(per_slot.Config(share=0.2), SMALL, real=recorded(SMALL, 3), products={"priority": scores})
    assert torch.bincount(chosen // 15).tolist() == [4, 4, 4]
    assert set(chosen[:4].tolist()) == set(scores[:15].topk(4).indices.tolist())


@EXAMPLES
@given(grid=grids, slots=st.integers(0, 6), seed=st.integers(0, 99), constant=st.booleans())
def test_everest_splits_the_tokens_that_change_most(grid, slots, seed, constant):
    real = recorded(grid, slots)
    distances = torch.zeros(grid.num_tokens) if constant else some_products(everest.Config(part="visible"), grid)["everest"]
    parts = {part: everest.Config(part=part, ratio=0.4, visible=0.15) for part in ("visible", "predict")}
    products = {"everest": distances}
    visible = select(parts["visible"], grid, real=real, products=products, seed=seed)
    predict = beside(parts["predict"], grid, visible, real=real, products=products, seed=seed + 1)
    by_distance = sorted(range(grid.num_tokens), key=lambda at: (not real[at], -float(distances[at]), at))
    assert not set(visible.tolist()) & set(predict.tolist())
    assert {*visible.tolist(), *predict.tolist()} == set(by_distance[: share_of(0.4, grid.num_tokens)])


def test_everest_takes_the_published_shares():
    counts = [everest.Config(part=part).count(Grid(8, 14, 14)) for part in ("visible", "predict")]
    assert counts == [156, 470 - 156]


def test_everest_beside_another_encoder_predicts_what_is_hidden_and_moves():
    distances = torch.arange(60.0)
    config = everest.Config(part="predict", ratio=0.2, visible=0.1)  # 6 of the 12 last positions
    few_left = beside(config, SMALL, torch.arange(50, 60), products={"everest": distances})
    assert few_left.tolist() == [44, 45, 46, 47, 48, 49]
    enough = beside(config, SMALL, torch.tensor([0, 59]), products={"everest": distances})
    assert set(enough.tolist()) < set(range(48, 59))


def test_everest_beside_another_encoder_draws_recorded_tokens_before_padding():
    config = everest.Config(part="predict", ratio=0.4, visible=0.15)  # 15 of 24, of which 15 are recorded and 5 visible
    for seed in range(5):
        products = {"everest": torch.arange(60.0)}
        chosen = beside(config, SMALL, torch.arange(5), real=recorded(SMALL, 1), products=products, seed=seed)
        assert set(range(5, 15)) < set(chosen.tolist())


def test_everest_must_leave_something_to_predict():
    with pytest.raises(ValidationError, match=r"visible 0.3 must be below ratio 0.3"):
        everest.Config(part="visible", ratio=0.3, visible=0.3)


def test_hidden_only_refills_by_the_order_of_its_rule():
    scores = torch.arange(60.0)
    config = hidden_only.Config(rule={"name": "priority", "top": 0.1, "random": 0})
    visible = torch.tensor([3, 57, 59])
    assert select(config, SMALL, products={"priority": scores}).tolist() == [54, 55, 56, 57, 58, 59]
    assert beside(config, SMALL, visible, products={"priority": scores}).tolist() == [52, 53, 54, 55, 56, 58]


def test_hidden_only_takes_padding_before_what_the_encoder_sees():
    config = hidden_only.Config(rule={"name": "random", "share": 0.5})
    visible = torch.arange(10)
    chosen = beside(config, SMALL, visible, real=recorded(SMALL, 1))
    assert chosen[:5].tolist() == [10, 11, 12, 13, 14]
    assert chosen[5] > 14


@pytest.mark.parametrize("frames", [16, 128])
def test_hidden_only_lets_every_predicted_token_count(frames):
    grid = Patching().grid(frames, 224)
    rule, real = priority.Config(), torch.ones(grid.num_tokens, dtype=torch.bool)
    products = some_products(rule, grid)
    visible = select(tube.Config(), grid)
    weights = {
        name: hidden_weight(visible[None], beside(config, grid, visible, products=products)[None], real[None])
        for name, config in {"as it is": rule, "kept away": hidden_only.Config(rule=rule)}.items()
    }
    assert weights["kept away"].sum() == rule.count(grid)
    assert weights["as it is"].sum() < rule.count(grid)


def test_hidden_only_around_the_tubes_that_are_left_predicts_all_that_is_hidden():
    visible = select(tube.Config(), LONG)
    chosen = beside(hidden_only.Config(rule={"name": "tube", "ratio": 0.103}), LONG, visible)  # hides 20 of 196
    assert {*visible.tolist(), *chosen.tolist()} == set(range(LONG.num_tokens))
    assert len(visible) + len(chosen) == LONG.num_tokens
