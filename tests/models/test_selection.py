"""Exactly k tokens by every file of the folder, a gradient that reaches the scores, and what is particular to each form."""

import pytest
import torch
from pydantic import ValidationError

from models.extension import load, names
from models.grid import Patching
from models.selection import gumbel, hard_top_k, perturbed, standardised, straight_through
from models.tokenizers.adaptive import Config as Adaptive
from models.top_k import top_k_positions

NUM = 20
KINDS = ("random", "ties", "constant", "large", "small", "one stands out")
COUNTS = (1, NUM // 2, NUM)


@pytest.fixture(params=names("models.selection"))
def form(request):
    return load("models.selection", request.param)


@pytest.fixture(params=KINDS)
def scores(request):
    random = torch.randn(3, NUM, generator=torch.Generator().manual_seed(1))
    kinds = {
        "random": random,
        "ties": random.round(),
        "constant": torch.full((3, NUM), 0.7),
        "large": random * 1e6,
        "small": random.abs() * 1e-6,
        "one stands out": torch.eye(3, NUM) * 1e4,
    }
    return kinds[request.param]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# What every form does.


@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("chance", [False, True])
def test_exactly_k_tokens_are_kept(form, scores, k, chance):
    keep = form.keep(scores, k, seeded() if chance else None)
    assert keep.dtype == scores.dtype
    assert ((keep == 0) | (keep == 1)).all()
    assert keep.sum(dim=1).tolist() == [k] * 3


@pytest.mark.parametrize("k", COUNTS)
def test_without_a_generator_the_largest_scores_are_kept_the_first_among_equals(form, scores, k):
    keep = form.keep(scores, k, None)
    assert torch.equal(keep.nonzero()[:, 1].reshape(3, k), top_k_positions(scores, k).sort().values)


@pytest.mark.parametrize("k", [1, NUM // 2, NUM - 1])
def test_with_chance_a_gradient_reaches_the_scores(form, k):
    scores = torch.randn(3, NUM, generator=seeded(1), requires_grad=True)
    keep = form.keep(scores, k, seeded())
    (keep * torch.randn(3, NUM, generator=seeded(2))).sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum() > 0


@pytest.mark.parametrize("k", COUNTS)
def test_a_gradient_is_finite_whatever_the_scores(form, scores, k):
    moving = scores.clone().requires_grad_()
    keep = form.keep(moving, k, seeded())
    (keep * torch.arange(float(NUM))).sum().backward()
    assert moving.grad.isfinite().all()


def test_keeping_a_useful_token_is_rewarded_with_a_higher_score(form):
    scores = torch.randn(1, NUM, generator=seeded(3)).requires_grad_()
    edge = int(top_k_positions(scores[0].detach(), 5)[4])
    form.keep(scores, 5, seeded())[0, edge].backward()
    assert scores.grad[0, edge] > 0
    assert scores.grad[0, edge] == scores.grad.abs().max()


def test_the_same_seed_gives_the_same_choice_and_gradient_and_touches_no_other_chance(form):
    before = torch.random.get_rng_state()
    found = []
    for seed in (5, 5, 6):
        scores = torch.randn(2, NUM, generator=seeded(4), requires_grad=True)
        keep = form.keep(scores, 7, seeded(seed))
        (keep * torch.arange(float(NUM))).sum().backward()
        found.append((keep.detach(), scores.grad))
    assert all(torch.equal(*pair) for pair in zip(found[0], found[1], strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)
    if not isinstance(form, straight_through.Config):
        assert not all(torch.equal(*pair) for pair in zip(found[0], found[2], strict=True)), "another seed, another draw"


def test_clips_are_chosen_from_by_themselves(form):
    scores = torch.randn(3, NUM, generator=seeded(1))
    together = form.keep(scores, 4, None)
    assert torch.equal(together, torch.cat([form.keep(clip[None], 4, None) for clip in scores]))


def test_low_precision_scores_are_ranked_as_they_are(form):
    scores = torch.randn(2, NUM, generator=seeded(1)).bfloat16()
    keep = form.keep(scores, 6, None)
    assert keep.dtype == torch.bfloat16
    assert torch.equal(keep.float(), hard_top_k(scores.float(), 6))


@pytest.mark.parametrize("k", [-1, 0, NUM + 1])
@pytest.mark.parametrize("chance", [False, True])
def test_an_impossible_count_is_refused(form, k, chance):
    with pytest.raises(ValueError, match="at least one" if k < 1 else f"top {k} of {NUM}"):
        form.keep(torch.zeros(1, NUM), k, seeded() if chance else None)


def test_the_scorer_of_a_tokenizer_learns_through_every_form(form):
    torch.manual_seed(0)
    tokenizer = Adaptive(
        window_frames=6,
        patching=Patching(tubelet_frames=2, patch_px=8),
        quantizer={"name": "fsq", "levels": (8, 5, 5)},
        top_k=0.6,
        selection=form,
        base_channels=8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        stem_patch_px=4,
        scorer_channels=6,
    ).build()
    clip = torch.rand(2, 3, 6, 32, 24, generator=seeded(1))
    rebuilt = tokenizer(clip, seeded())
    assert rebuilt.keep.sum(dim=(1, 2, 3)).tolist() == [21, 21]
    (rebuilt.clip - clip).square().mean().backward()
    for name, parameter in tokenizer.scorer.named_parameters():
        if name != "second.bias":  # it cancels in the difference of two slots
            assert parameter.grad.abs().max() > 1e-7, name


def test_every_form_survives_json(form):
    assert type(form).model_validate_json(form.model_dump_json()) == form


# What the forms share.


def test_standardised_scores_have_mean_zero_and_variance_one_per_clip():
    scores = torch.randn(3, 200, generator=seeded()) * torch.tensor([[0.1], [1.0], [50.0]]) + 7
    found = standardised(scores)
    assert found.mean(dim=1).abs().max() < 1e-4
    assert torch.allclose(found.square().mean(dim=1), torch.ones(3), atol=1e-3)


@pytest.mark.parametrize("name", ["straight_through", "gumbel"])
def test_the_sigmoid_ignores_the_scale_of_the_scores(name):
    scores = torch.randn(2, 30, generator=seeded(2), dtype=torch.float64)
    gradients = []
    for scale in (1.0, 100.0):
        scaled = (scores * scale).requires_grad_()
        (load("models.selection", name).keep(scaled, 10, seeded()) * torch.arange(30.0)).sum().backward()
        gradients.append(scaled.grad * scale)
    assert torch.allclose(*gradients, rtol=1e-3)


def test_a_narrow_sigmoid_teaches_the_tokens_at_the_edge_alone():
    scores = torch.linspace(0, 1, NUM)[None].requires_grad_()
    plain = standardised(scores)
    plain.retain_grad()
    narrow = straight_through.Config(temperature=0.02)
    (narrow.keep(plain, 5, None) * 1.0).sum().backward()
    assert plain.grad[0].argmax() == NUM - 5
    assert plain.grad[0, NUM - 5] > 10 * plain.grad[0, : NUM - 7].abs().max()


# Gumbel.


def test_gumbel_draws_in_proportion_to_the_exponential_of_the_score():
    form = gumbel.Config(noise=0.8)
    scores = torch.tensor([[0.0, 0.5, 1.0, 2.0]])
    drawn = form.keep(scores.expand(40_000, -1), 1, seeded())
    expected = torch.softmax(standardised(scores)[0] / form.noise, dim=0)
    assert torch.allclose(drawn.mean(dim=0), expected, atol=0.01)


def test_gumbel_draws_larger_scores_more_often_and_the_smallest_now_and_then():
    scores = torch.linspace(0, 1, 8)[None].expand(20_000, -1)
    often = gumbel.Config(noise=1.0).keep(scores, 3, seeded()).mean(dim=0)
    assert (often.diff() > 0).all()
    assert often[0] > 0.01
    assert often[-1] < 0.99


def test_gumbel_with_little_noise_takes_the_largest():
    scores = torch.linspace(0, 1, 8)[None].expand(500, -1)
    assert torch.equal(gumbel.Config(noise=1e-4).keep(scores, 3, seeded()), hard_top_k(scores, 3))


# Perturbed.


def test_the_perturbed_gradient_is_that_of_the_mean_top_k_under_noise():
    form = perturbed.Config(num_samples=60_000, noise=0.5)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 0.0])
    scores = torch.tensor([[0.1, 0.9, 0.4, 0.6, 0.2, 0.7]])
    moving = scores.clone().requires_grad_()
    (form.keep(moving, 2, seeded(1)) * weights).sum().backward()

    noise = form.noise * torch.randn(400_000, 6, generator=seeded(2))

    def mean_gain(values: torch.Tensor) -> float:
        return float((hard_top_k(standardised(values) + noise, 2) * weights).sum(dim=1).mean())

    step = 0.02 * torch.eye(6)
    expected = torch.tensor([(mean_gain(scores + one) - mean_gain(scores - one)) / 0.04 for one in step])
    assert expected.abs().max() > 1
    assert torch.allclose(moving.grad[0], expected, atol=0.12 * float(expected.abs().max()))
    assert torch.nn.functional.cosine_similarity(moving.grad[0], expected, dim=0) > 0.99


def test_what_is_the_same_for_every_token_moves_no_score():
    scores = torch.randn(2, NUM, generator=seeded(1), requires_grad=True)
    perturbed.Config().keep(scores, 6, seeded()).sum().backward()
    assert scores.grad.abs().max() < 1e-5


def test_keeping_all_leaves_nothing_to_learn():
    scores = torch.randn(2, NUM, generator=seeded(1), requires_grad=True)
    (perturbed.Config().keep(scores, NUM, seeded()) * torch.arange(float(NUM))).sum().backward()
    assert scores.grad.abs().max() < 1e-5


def test_chance_has_a_part_in_the_perturbed_gradient_alone():
    scores = torch.randn(4, NUM, generator=seeded(1))
    assert torch.equal(perturbed.Config().keep(scores, 6, seeded()), hard_top_k(scores, 6))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gumbel", {"noise": 0}),
        ("gumbel", {"temperature": 0}),
        ("straight_through", {"temperature": -1}),
        ("perturbed", {"num_samples": 1}),
        ("perturbed", {"noise": 0}),
    ],
)
def test_impossible_settings_are_refused(name, change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        load("models.selection", {"name": name, **change})
