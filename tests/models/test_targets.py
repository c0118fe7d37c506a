"""What every target of the folder promises, found there and not listed here, and what each promises beyond that."""

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from models.extension import load, names
from models.grid import Patching
from models.mae import masked_mean
from models.quantizers import fsq, lfq
from models.targets import Target, code_vectors, levels, pixels, projected

SMALL = Patching(tubelet_frames=2, patch_px=4)
QUANTIZER = fsq.Config(levels=(8, 5, 5))
QUANTIZERS = [QUANTIZER, lfq.Config(bits=7)]
CODES = torch.randint(0, 128, (2, 7), generator=torch.Generator().manual_seed(4))
WEIGHT = torch.tensor([[1.0, 1, 0, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1, 1]])

VARIANTS: Mapping[str, list[dict[str, Any]]] = {"projected": [{"dim": 16}, {"dim": 2}]}
"""Values for fields without a default; any other file of the folder is tried as it is."""

CONFIGS = [
    load("models.targets", {"name": name} | fields) for name in names("models.targets") for fields in VARIANTS.get(name, [{}])
]
every_target = pytest.mark.parametrize("config", CONFIGS, ids=str)
every_quantizer = pytest.mark.parametrize("quantizer", QUANTIZERS, ids=lambda config: config.name)


def wanted(target):
    patches = torch.rand(*CODES.shape, SMALL.patch_dim, generator=torch.Generator().manual_seed(2))
    return target(patches, {"codes": CODES})


def predicted(target, seed=3):
    return torch.randn(*CODES.shape, target.dim, generator=torch.Generator().manual_seed(seed))


@every_target
@every_quantizer
def test_every_target_learns_nothing_and_is_the_same_whenever_it_is_built(config, quantizer):
    first, second = (config.build(SMALL, quantizer) for _ in range(2))
    assert isinstance(first, Target)
    assert set(config.needs) <= {"codes"}
    assert not list(first.parameters())
    assert not first.state_dict()
    assert torch.equal(wanted(first), wanted(second))


@every_target
@every_quantizer
def test_every_target_says_how_wrong_each_token_is(config, quantizer):
    target = config.build(SMALL, quantizer)
    answers = wanted(target)
    assert answers.shape[:2] == CODES.shape
    assert answers.isfinite().all()
    for dtype in (torch.float32, torch.bfloat16):
        error = target.error(predicted(target).to(dtype), answers)
        assert error.shape == CODES.shape
        assert error.dtype == torch.float32
        assert error.isfinite().all()
        assert (error > 0).all()


@every_target
@every_quantizer
def test_the_error_of_a_token_is_about_that_token(config, quantizer):
    target = config.build(SMALL, quantizer)
    predictions = predicted(target).requires_grad_()
    target.error(predictions, wanted(target))[1, 4].backward()
    moved = predictions.grad.abs().sum(dim=-1) > 0
    assert moved.nonzero().tolist() == [[1, 4]]


@every_target
@every_quantizer
def test_no_other_constant_has_a_smaller_error_than_the_best(config, quantizer):
    target = config.build(SMALL, quantizer)
    answers = wanted(target)

    def loss(constant):
        return masked_mean(target.error(constant.expand(*CODES.shape, -1), answers), WEIGHT)

    best = target.best_constant(answers, WEIGHT).requires_grad_()
    assert best.shape == (target.dim,)
    loss(best).backward()
    assert best.grad.abs().max() < 1e-5  # the errors are convex, so a flat place is the lowest
    for seed in range(10):
        assert loss(best + 0.3 * predicted(target, seed)[0, 0]) > loss(best)


@every_target
@every_quantizer
def test_tokens_without_weight_are_nothing_to_the_best_constant(config, quantizer):
    target = config.build(SMALL, quantizer)
    answers = wanted(target)
    changed = torch.where(WEIGHT[..., None] == 1, answers, torch.zeros_like(answers))
    assert not torch.equal(changed, answers)
    assert torch.equal(target.best_constant(changed, WEIGHT), target.best_constant(answers, WEIGHT))
    nothing = target.best_constant(answers, torch.zeros_like(WEIGHT))
    assert target.error(nothing.expand(*CODES.shape, -1), answers).isfinite().all()


def test_codes_become_the_vectors_of_the_tokenizers_quantizer():
    quantizer = lfq.Config(bits=5)
    target = code_vectors.Config().build(SMALL, quantizer)
    codes = torch.tensor([[0, 31, 5]])
    assert target.dim == 5
    assert target(torch.zeros(1, 3, SMALL.patch_dim), {"codes": codes})[0, 2].tolist() == [1, -1, 1, -1, -1]


def test_codes_become_their_grid_vectors():
    target = code_vectors.Config().build(SMALL, QUANTIZER)
    codes = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    vectors = target(torch.zeros(2, 7, SMALL.patch_dim), {"codes": codes})
    assert target.dim == 3
    assert torch.equal(QUANTIZER.build().codes(vectors), codes)


def test_pixels_have_zero_mean_and_unit_variance_in_every_channel():
    target = pixels.Config().build(SMALL, QUANTIZER)
    patches = torch.rand(2, 5, SMALL.patch_dim, generator=torch.Generator().manual_seed(0))
    standardised = target(patches, {}).reshape(2, 5, 32, 3)
    assert target.dim == SMALL.patch_dim
    assert standardised.mean(dim=2).abs().max() < 1e-5
    assert torch.allclose(standardised.var(dim=2, correction=1), torch.ones(2, 5, 3), atol=1e-4)


def test_pixels_forget_brightness_and_contrast_of_each_channel():
    target = pixels.Config().build(SMALL, QUANTIZER)
    patches = torch.rand(1, 4, 32, 3, generator=torch.Generator().manual_seed(0))
    changed = patches * torch.tensor([0.5, 0.9, 0.7]) + torch.tensor([0.1, 0.0, 0.3])
    assert torch.allclose(target(patches.flatten(2), {}), target(changed.flatten(2), {}), atol=1e-4)


def test_a_flat_tubelet_is_all_zeros():
    target = pixels.Config().build(SMALL, QUANTIZER)
    assert torch.equal(target(torch.full((1, 1, SMALL.patch_dim), 0.5), {}), torch.zeros(1, 1, SMALL.patch_dim))


def test_the_error_of_a_vector_is_its_mean_square():
    target = code_vectors.Config().build(SMALL, QUANTIZER)
    predictions, answers = torch.tensor([[[1.0, 3.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 0.0]]])
    assert target.error(predictions, answers).item() == pytest.approx(10 / 3)
    assert target.best_constant(torch.tensor([[[1.0, 2.0, 3.0], [3.0, 0.0, 3.0]]]), torch.ones(1, 2)).tolist() == [2, 1, 3]


@every_quantizer
@pytest.mark.parametrize("dim", [16, 64])
def test_a_wide_projection_keeps_all_distances_and_the_mean_square(quantizer, dim):
    vectors = wanted(code_vectors.Config().build(SMALL, quantizer)).flatten(0, 1)
    points = wanted(projected.Config(dim=dim).build(SMALL, quantizer)).flatten(0, 1)
    assert points.shape == (14, dim)
    scale = math.sqrt(dim / vectors.shape[1])
    assert torch.allclose(torch.cdist(points, points), scale * torch.cdist(vectors, vectors), atol=1e-4)
    assert points.square().mean().item() == pytest.approx(vectors.square().mean().item(), rel=1e-5)


def test_a_narrow_projection_has_orthonormal_rows():
    target = projected.Config(dim=2).build(SMALL, QUANTIZER)
    assert torch.allclose(target.projection @ target.projection.T, torch.eye(2), atol=1e-6)


def test_another_seed_is_another_projection():
    first, second = (projected.Config(dim=4, seed=seed).build(SMALL, QUANTIZER) for seed in (0, 1))
    assert not torch.allclose(first.projection, second.projection, atol=0.1)


def test_projected_targets_stay_exact_under_autocast():
    target = projected.Config(dim=8).build(SMALL, QUANTIZER)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = wanted(target)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, wanted(target))


@every_quantizer
def test_levels_are_the_steps_of_the_vectors(quantizer):
    codes = torch.arange(quantizer.build().codebook_size)[None]
    found = levels.Config().build(SMALL, quantizer)(torch.zeros(*codes.shape, SMALL.patch_dim), {"codes": codes})[0]
    vectors = quantizer.build().vectors(codes[0])
    for channel, num_levels in enumerate(quantizer.channel_levels):
        steps = vectors[:, channel].unique(sorted=True)
        assert len(steps) == num_levels
        assert torch.equal(steps[found[:, channel]], vectors[:, channel])


def test_levels_ask_for_one_logit_per_level():
    target = levels.Config().build(SMALL, QUANTIZER)
    assert target.dim == 8 + 5 + 5
    code = torch.tensor([[3 + 8 * (4 + 5 * 1)]])  # level 3 of 8, 4 of 5, 1 of 5
    answers = target(torch.zeros(1, 1, SMALL.patch_dim), {"codes": code})
    assert answers.tolist() == [[[3, 4, 1]]]
    sure = torch.zeros(1, 1, 18)
    sure[0, 0, [3, 8 + 4, 13 + 1]] = 100
    assert target.error(sure, answers).item() == pytest.approx(0, abs=1e-6)
    assert target.error(-sure, answers).item() > 50
    blind = (math.log(8) + 2 * math.log(5)) / 3
    assert target.error(torch.zeros(1, 1, 18), answers).item() == pytest.approx(blind)


def test_the_best_constant_of_levels_errs_by_their_entropy():
    target = levels.Config().build(SMALL, lfq.Config(bits=1))
    answers = torch.tensor([[[0], [1], [1], [1]]])
    constant = target.best_constant(answers, torch.ones(1, 4))
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert target.error(constant.expand(1, 4, 2), answers).mean().item() == pytest.approx(entropy)
