"""EVEREST's score without a model: how far a token's pixels are from those of the slot before."""

import numpy as np
import pytest
import torch
from einops import rearrange

from models.grid import patchify
from stages.products.everest import Config, difference
from tests.stages.products.footage import footage, square_moving_right


def test_a_still_picture_scores_nothing() -> None:
    frames = np.repeat(square_moving_right(1, step_px=0), 8, axis=0)
    assert not Config().compute(footage(frames)).any()


def test_what_moves_scores_more_than_what_does_not() -> None:
    score = Config().compute(footage(square_moving_right(8, step_px=2)))
    assert (score[:, 2:6, 2:4] > 0.02).all()
    assert not score[:, [0, 1, 6, 7]].any()


def test_the_score_is_the_distance_of_patches_as_models_cut_them() -> None:
    view = footage(np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3)).astype(np.uint8))
    patches = patchify(rearrange(torch.from_numpy(view.pixels), "T H W C -> 1 C T H W"), view.patching)[0].double() / 255
    slots = rearrange(patches, "(t h w) D -> t h w D", t=4, h=3)
    expected = (slots[1:] - slots[:-1]).norm(dim=-1) / view.patching.patch_dim**0.5
    score = Config().compute(view)
    np.testing.assert_allclose(score[1:], expected.numpy(), rtol=1e-3)
    assert (score[0] == score[1]).all()


def test_an_orthogonal_embedding_measures_the_same() -> None:
    """Why pixels may stand in for the live embedding of the paper: distances through an orthogonal map are theirs."""
    view = footage(np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8))
    patches = patchify(rearrange(torch.from_numpy(view.pixels), "T H W C -> 1 C T H W"), view.patching)[0].double() / 255
    orthogonal = torch.linalg.qr(torch.randn(1536, 1536, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    embedded = patches @ orthogonal
    assert float((embedded[1] - embedded[0]).norm()) / 1536**0.5 == pytest.approx(
        float(Config().compute(view)[1, 0, 0]), rel=1e-3
    )


def test_the_largest_and_the_smallest_change_are_told() -> None:
    black, white = np.zeros((2, 16, 16, 3), np.uint8), np.full((2, 16, 16, 3), 255, np.uint8)
    assert difference(black, white, 16) == pytest.approx(1)
    nearly = black.copy()
    nearly[0, 3, 4, 1] = 1
    view = footage(np.concatenate([black, nearly]))
    assert (Config().compute(view) > 0).all()


def test_a_mirrored_view_has_the_mirrored_map() -> None:
    frames = square_moving_right(8, step_px=2)
    assert (Config().compute(footage(frames[:, :, ::-1], flip=True))[:, :, ::-1] == Config().compute(footage(frames))).all()
