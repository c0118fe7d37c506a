"""Trivial features see what they should and nothing else."""

import numpy as np
import pytest
import torch

from stages.pixels import FRAMES, PIXELS, pixel_features, pool_time
from tests.stages.toy import moving_square


def test_time_is_pooled_into_parts_in_order() -> None:
    slots = torch.arange(8.0).view(8, 1).repeat(1, 2) + torch.tensor([0.0, 100.0])
    assert pool_time(slots, 4).tolist() == [0.5, 100.5, 2.5, 102.5, 4.5, 104.5, 6.5, 106.5]
    assert pool_time(slots, 1).tolist() == [3.5, 103.5]


def test_a_clip_with_fewer_slots_than_parts_repeats_slots() -> None:
    assert pool_time(torch.tensor([[1.0], [2.0]]), 4).tolist() == [1, 1, 2, 2]


def test_features_of_single_frames_do_not_know_the_order() -> None:
    frames = moving_square(0, 32)
    shuffled = frames[np.random.default_rng(0).permutation(32)]
    one, other = (pixel_features(clip, bins=4, cells=4) for clip in (frames, shuffled))
    np.testing.assert_allclose(one[FRAMES], other[FRAMES], atol=1e-6)
    assert np.abs(one[PIXELS] - other[PIXELS]).max() > 0.05


def test_features_over_time_know_which_way_a_clip_is_played() -> None:
    frames = moving_square(0, 32)
    one, other = (pixel_features(clip, bins=4, cells=4)[PIXELS] for clip in (frames, frames[::-1].copy()))
    assert np.abs(one - other).max() > 0.05


def test_every_statistic_is_what_it_is_called() -> None:
    frames = np.zeros((4, 2, 2, 3), dtype=np.uint8)
    frames[1, 0, 0] = frames[3, 0, 0] = 255  # one pixel blinks
    found = pixel_features(frames, bins=1, cells=1)
    blink = np.array([0, 0.25, 0, 0.25])
    assert found[PIXELS] == pytest.approx([blink.mean(), blink.std(), 0.25], abs=1e-4)
    assert found[FRAMES] == pytest.approx([0.125] * 3 + [np.sqrt(0.25 - 0.25**2) / 2], abs=1e-4)
