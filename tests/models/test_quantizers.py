"""The quantizer against its definition and against the published port of the authors' code."""

import itertools
import math

import pytest
import torch

from models.fsq import FSQ

LEVELS = [(8,) * 6, (8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (3, 4)]


@pytest.fixture
def latents():
    return 3 * torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0))


def quantize_one(latent: float, levels: int) -> float:
    """The definition for one number, in plain arithmetic."""
    half_range = (levels - 1) * 1.001 / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    squashed = math.tanh(latent + math.atanh(offset / half_range)) * half_range - offset
    return round(squashed) / (levels // 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_vectors_follow_the_definition(levels, latents):
    latents = latents[0, :, : len(levels)]
    expected = [[quantize_one(float(x), level) for x, level in zip(row, levels, strict=True)] for row in latents]
    assert torch.allclose(FSQ(levels)(latents), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_vectors_codes_and_gradient_agree_with_the_published_port(levels, latents):
    published = pytest.importorskip("vector_quantize_pytorch").FSQ(list(levels))
    ours = FSQ(levels)
    first = latents[..., : len(levels)].clone().requires_grad_()
    second = first.detach().clone().requires_grad_()
    vectors, (their_vectors, their_codes) = ours(first), published(second)
    assert torch.allclose(vectors, their_vectors, atol=1e-6)
    assert torch.equal(ours.codes(vectors), their_codes.long())
    assert torch.equal(ours.vectors(their_codes), published.indices_to_codes(their_codes))
    (vectors**2).sum().backward()
    (their_vectors**2).sum().backward()
    assert torch.allclose(first.grad, second.grad, atol=1e-5)


@pytest.mark.parametrize("levels", LEVELS)
def test_every_code_survives_the_way_to_its_vector_and_back(levels):
    quantizer = FSQ(levels)
    codes = torch.arange(quantizer.codebook_size)
    vectors = quantizer.vectors(codes)
    assert torch.equal(quantizer.codes(vectors), codes)
    assert vectors.min() == -1
    assert vectors.max() <= 1


def test_every_grid_point_is_reached_by_some_latent():
    quantizer = FSQ((4, 5))
    line = torch.linspace(-9, 9, 400)
    latents = torch.tensor(list(itertools.product(line[::4], line[::4])))
    assert quantizer.codes(quantizer(latents)).unique().numel() == quantizer.codebook_size == 20


@pytest.mark.parametrize("levels", LEVELS)
def test_a_zeroed_token_becomes_the_centre_code(levels):
    quantizer = FSQ(levels)
    vectors = quantizer(torch.zeros(2, len(levels)))
    assert torch.equal(vectors, torch.zeros_like(vectors))
    assert quantizer.codes(vectors).tolist() == [quantizer.centre_code] * 2


def test_eighteen_bits():
    quantizer = FSQ((8,) * 6)
    assert quantizer.codebook_size == 2**18
    assert quantizer.dim == 6


def test_gradient_is_that_of_the_squashing():
    quantizer = FSQ((5,))
    latents = torch.tensor([[0.3], [-1.2]], requires_grad=True)
    quantizer(latents).sum().backward()
    slope = (1 - torch.tanh(latents.detach()) ** 2) * 2 * 1.001 / 2
    assert torch.allclose(latents.grad, slope)


def test_low_precision_latents_are_rounded_in_full_precision(latents):
    quantizer = FSQ((8,) * 6)
    low = latents.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = quantizer(low)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, quantizer(low.float()))


def test_the_quantizer_has_nothing_to_learn_or_to_store():
    quantizer = FSQ((8,) * 6)
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


@pytest.mark.parametrize("levels", [(2, 8), ()])
def test_too_few_levels_are_refused(levels):
    with pytest.raises(ValueError, match="at least 3 levels"):
        FSQ(levels)
