"""The quantizers against their definitions, against published code, and what every file of the folder must do."""

import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from models.extension import load, names
from models.quantizers import fsq, lfq
from models.quantizers.fsq import FSQ
from models.quantizers.lfq import LFQ

LEVELS = [(8,) * 6, (8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (3, 4)]
SMALL = {"fsq": {"levels": (8, 5, 3)}, "lfq": {"bits": 7}}
"""A codebook of every quantizer that can be gone through code by code; by default those of a new file must be small."""


@pytest.fixture
def latents():
    drawn = 3 * torch.randn(4, 50, 6, generator=torch.Generator().manual_seed(0))
    extremes = torch.tensor([0.0, -0.0, 1e-8, -1e-8, 30.0, -30.0, 1e6, -1e6])[:, None].expand(-1, 6)
    return torch.cat([drawn, extremes.expand(4, -1, -1)], dim=1)


@pytest.fixture(params=names("models.quantizers"))
def config(request):
    return load("models.quantizers", {"name": request.param} | SMALL.get(request.param, {}))


# What every quantizer does.


def test_there_are_as_many_codes_as_combinations_of_levels(config):
    quantizer = config.build()
    assert quantizer.codebook_size == math.prod(config.channel_levels)
    assert quantizer.dim == len(config.channel_levels)


def test_every_code_survives_the_way_to_its_vector_and_back(config):
    quantizer = config.build()
    codes = torch.arange(quantizer.codebook_size)
    vectors = quantizer.vectors(codes)
    assert vectors.dtype == torch.float32
    assert vectors.abs().max() == 1
    assert torch.equal(quantizer.codes(vectors), codes)
    assert torch.equal(quantizer.nearest(vectors), codes)


def test_the_first_channel_is_the_least_significant_digit_of_a_code(config):
    quantizer = config.build()
    vectors = quantizer.vectors(torch.arange(quantizer.codebook_size))
    stride = 1
    for channel, levels in enumerate(config.channel_levels):
        digits = torch.arange(quantizer.codebook_size) // stride % levels
        steps = vectors[:, channel].unique()  # ascending
        assert torch.equal(vectors[:, channel], steps[digits])
        stride *= levels


def test_quantized_latents_are_vectors_of_the_codebook(config, latents):
    quantizer = config.build()
    vectors = quantizer(latents.repeat(1, 1, 2)[..., : quantizer.dim])
    codes = quantizer.codes(vectors)
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size
    assert torch.equal(quantizer.vectors(codes), vectors.detach())


def test_every_code_is_reached_by_some_latent(config):
    quantizer = config.build()
    line = torch.linspace(-4, 4, 41)
    one_channel = [quantizer(line[:, None].expand(-1, quantizer.dim))[:, channel].unique() for channel in range(quantizer.dim)]
    assert [len(steps) for steps in one_channel] == list(config.channel_levels)


def test_a_token_zeroed_before_quantization_gets_the_zero_code(config):
    quantizer = config.build()
    zeroed = torch.randn(2, 3, 5, quantizer.dim) * torch.zeros(2, 3, 5, 1)  # negative zeros among them
    assert (quantizer.codes(quantizer(zeroed)) == quantizer.zero_code).all()


def test_a_gradient_reaches_every_latent(config, latents):
    quantizer = config.build()
    moderate = latents[:, :50].repeat(1, 1, 2)[..., : quantizer.dim].clamp(-2, 2).requires_grad_()
    (quantizer(moderate) * torch.arange(1.0, quantizer.dim + 1)).sum().backward()
    assert moderate.grad.isfinite().all()
    assert (moderate.grad > 0).all(), "a larger latent must never look like a smaller vector"


def test_the_nearest_code_is_that_of_the_closest_vector_inside_the_grid_and_beyond_it(config):
    quantizer = config.build()
    every = quantizer.vectors(torch.arange(quantizer.codebook_size))
    source = torch.Generator().manual_seed(0)
    points = torch.cat([torch.rand(600, quantizer.dim, generator=source) * span - span / 2 for span in (2, 4, 100)])
    distances = torch.cdist(points.double(), every.double())
    found = quantizer.nearest(points)
    chosen = distances.gather(1, found[:, None])[:, 0]
    torch.testing.assert_close(chosen, distances.min(dim=1).values)
    assert quantizer.nearest(points.view(30, 60, -1)).shape == (30, 60)


def test_low_precision_latents_are_rounded_in_full_precision(config, latents):
    quantizer = config.build()
    low = latents.repeat(1, 1, 2)[..., : quantizer.dim].bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = quantizer(low)
    assert vectors.dtype == torch.float32
    assert torch.equal(vectors, quantizer(low.float()))


def test_the_penalty_is_one_finite_number_that_can_be_followed(config, latents):
    quantizer = config.build()
    moving = latents.repeat(1, 1, 2)[..., : quantizer.dim].clamp(-5, 5).requires_grad_()
    penalty = quantizer.penalty(moving)
    assert penalty.shape == ()
    assert penalty.isfinite()
    assert penalty.dtype == torch.float32
    (penalty + 0 * moving.sum()).backward()
    assert moving.grad.isfinite().all()


def test_no_quantizer_has_anything_to_learn_or_to_store(config):
    quantizer = config.build()
    assert not list(quantizer.parameters())
    assert not quantizer.state_dict()


def test_every_quantizer_survives_json(config):
    assert type(config).model_validate_json(config.model_dump_json()) == config


def test_by_default_there_are_the_papers_eighteen_bits():
    for name in ("fsq", "lfq"):
        assert load("models.quantizers", name).build().codebook_size == 2**18


# Finite scalar quantization.


def quantize_one(latent: float, levels: int) -> float:
    """The definition for one number, in plain arithmetic."""
    half_range = (levels - 1) * 1.001 / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    squashed = math.tanh(latent + math.atanh(offset / half_range)) * half_range - offset
    return round(squashed) / (levels // 2)


@pytest.mark.parametrize("levels", LEVELS)
def test_scalar_levels_follow_the_definition(levels, latents):
    latents = latents[0, :, : len(levels)]
    expected = [[quantize_one(float(x), level) for x, level in zip(row, levels, strict=True)] for row in latents]
    assert torch.allclose(FSQ(levels)(latents), torch.tensor(expected), atol=1e-6)


@pytest.mark.parametrize("levels", LEVELS)
def test_scalar_levels_agree_with_the_published_port_in_vectors_codes_and_gradient(levels, latents):
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
def test_every_large_grid_counts_through_all_its_codes(levels):
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
def test_a_zeroed_token_lies_at_the_centre_of_the_grid(levels):
    quantizer = FSQ(levels)
    vectors = quantizer(torch.zeros(2, len(levels)))
    assert torch.equal(vectors, torch.zeros_like(vectors))
    assert quantizer.codes(vectors).tolist() == [quantizer.zero_code] * 2


def test_gradient_of_scalar_levels_is_that_of_the_squashing():
    quantizer = FSQ((5,))
    latents = torch.tensor([[0.3], [-1.2]], requires_grad=True)
    quantizer(latents).sum().backward()
    slope = (1 - torch.tanh(latents.detach()) ** 2) * 2 * 1.001 / 2
    assert torch.allclose(latents.grad, slope)


def test_scalar_levels_need_no_penalty(latents):
    assert FSQ((8,) * 6).penalty(latents) == 0


@pytest.mark.parametrize("levels", [(2, 8), ()])
def test_too_few_levels_are_refused(levels):
    with pytest.raises(ValueError, match="at least 3 levels"):
        FSQ(levels)
    with pytest.raises(ValidationError, match="levels"):
        fsq.Config(levels=levels)


def test_more_codes_than_can_be_stored_are_refused():
    assert fsq.Config(levels=(2**8,) * 3 + (2**7,)).build().codebook_size == 2**31
    with pytest.raises(ValidationError, match=r"levels \[255, 255, 255, 255\] make 4.23e\+09 codes"):
        fsq.Config(levels=(255,) * 4)


# Lookup-free quantization.


def tokens(bits: int, count: int = 40) -> torch.Tensor:
    return torch.randn(count, bits, generator=torch.Generator().manual_seed(4)) * 0.5


def weighted(bits: int, **weights: float) -> LFQ:
    return lfq.Config(bits=bits, **{"entropy_weight": 0.0, "commitment_weight": 0.0, **weights}).build()


def all_probabilities(latents: torch.Tensor, temperature: float) -> torch.Tensor:
    """Of every code for every token, ``[n 2**bits]``: a softmax over squared distances to all vectors."""
    vectors = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=latents.shape[1])))
    distances = (latents[:, None] - vectors).square().sum(dim=-1)
    return torch.softmax(-distances / temperature, dim=1)


def entropy(probabilities: torch.Tensor) -> torch.Tensor:
    return -(probabilities * probabilities.log()).sum(dim=-1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("bits", [1, 3, 6])
def test_the_entropy_of_one_token_is_that_over_all_codes(bits, temperature):
    # The entropy over all tokens is the same number when there is one token, so one far from any doubt is added to tell.
    latents = tokens(bits, 1)
    both = torch.cat([latents, -latents])  # bits that are even, all together
    over_all = weighted(bits, entropy_weight=1.0, temperature=temperature).penalty(both)
    expected = entropy(all_probabilities(both, temperature)).mean() - bits * math.log(2)
    torch.testing.assert_close(over_all, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_the_entropy_of_all_tokens_is_an_upper_bound_of_that_over_all_codes(bits):
    latents = tokens(bits)
    probabilities = all_probabilities(latents, 1.0)
    exact = entropy(probabilities.mean(dim=0))
    per_token = entropy(probabilities).mean()
    together = per_token - weighted(bits, entropy_weight=1.0).penalty(latents)
    assert together >= exact - 1e-5
    assert together <= bits * math.log(2) + 1e-5
    if bits == 1:
        torch.testing.assert_close(together, exact)


def test_the_bound_is_reached_by_tokens_whose_bits_have_nothing_to_do_with_each_other():
    latents = torch.tensor(list(itertools.product((-0.3, 0.7), repeat=4)))
    probabilities = all_probabilities(latents, 1.0)
    exact = entropy(probabilities).mean() - entropy(probabilities.mean(dim=0))
    torch.testing.assert_close(weighted(4, entropy_weight=1.0).penalty(latents), exact)


def test_commitment_is_the_mean_squared_distance_to_the_signs():
    latents = torch.tensor([[0.25, -3.0], [0.0, 1.0]])
    penalty = weighted(2, commitment_weight=2.0).penalty(latents)
    assert penalty.item() == pytest.approx(2.0 * (0.75**2 + 2.0**2 + 1.0**2 + 0.0) / 4)


def test_the_penalty_makes_tokens_sure_and_different():
    quantizer = weighted(3, entropy_weight=1.0)
    sure = torch.tensor(list(itertools.product((-5.0, 5.0), repeat=3)))
    assert quantizer.penalty(sure).item() == pytest.approx(-3 * math.log(2), abs=1e-4)
    assert quantizer.penalty(sure * 0.05) > quantizer.penalty(sure) + 1
    assert quantizer.penalty(sure[:1].expand(8, -1)).item() == pytest.approx(0, abs=1e-3)


def test_signs_and_their_entropy_agree_with_the_published_port(latents):
    """Codes have the same bits in the opposite order: the port's first channel is its most significant bit, ours the least."""
    published = pytest.importorskip("vector_quantize_pytorch").LFQ(codebook_size=2**6, dim=6).train()
    ours = LFQ(lfq.Config(bits=6, entropy_weight=1.0, commitment_weight=0.0))
    (vectors, codes, _), breakdown = published(latents, inv_temperature=1.0, return_loss_breakdown=True)
    assert torch.equal(ours(latents), vectors)
    reversed_bits = sum((codes.long() >> place & 1) << (5 - place) for place in range(6))
    assert torch.equal(ours.codes(ours(latents)), reversed_bits)
    every = all_probabilities(latents.flatten(0, 1).clamp(-9, 9), 1.0).clamp_min(1e-30)
    torch.testing.assert_close(breakdown.per_sample_entropy, entropy(every).mean(), atol=1e-4, rtol=1e-4)
    assert ours.penalty(latents) <= breakdown.per_sample_entropy - breakdown.batch_entropy + 1e-4


def test_gradient_of_signs_passes_unchanged():
    latents = tokens(4).requires_grad_()
    (weighted(4)(latents) * torch.arange(4.0)).sum().backward()
    assert torch.equal(latents.grad, torch.arange(4.0).expand(40, -1))


@pytest.mark.parametrize("change", [{"bits": 0}, {"bits": 32}, {"entropy_weight": -1}, {"temperature": 0}])
def test_impossible_bits_and_weights_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        lfq.Config(**change)
