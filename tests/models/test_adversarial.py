"""The losses of tokenizer and discriminator against each other, by hand."""

import math

import pytest
import torch
from torch import nn

from models.adversarial import LeCam, discriminator_loss, generator_loss, r1_penalty
from models.discriminator import Config

REAL, FAKE = torch.tensor([1.5, -0.5]), torch.tensor([0.25, -2.0])


class Linear(nn.Module):
    """A logit that is a weighted sum of pixels, so that its gradient is the weights."""

    def __init__(self, pixels):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(pixels, generator=torch.Generator().manual_seed(0)))

    def forward(self, clip):
        return clip.flatten(1) @ self.weight


def surprise(logit: float) -> float:
    return -math.log(1 / (1 + math.exp(-logit)))


def test_losses_are_mean_surprises():
    real, fake = REAL.tolist(), FAKE.tolist()
    assert generator_loss(FAKE).item() == pytest.approx(sum(map(surprise, fake)) / 2)
    expected = sum(map(surprise, real)) / 2 + sum(surprise(-logit) for logit in fake) / 2
    assert discriminator_loss(REAL, FAKE).item() == pytest.approx(expected)


def test_a_discriminator_that_knows_nothing_costs_two_bits():
    assert discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))


def test_losses_stay_finite_and_keep_a_gradient_for_a_generator_that_is_surely_found_out():
    logits = torch.tensor([-1e4], requires_grad=True)
    loss = generator_loss(logits)
    loss.backward()
    assert loss.item() == pytest.approx(1e4)
    assert logits.grad.item() == pytest.approx(-1)


def test_low_precision_logits_are_compared_in_full_precision():
    assert discriminator_loss(REAL.bfloat16(), FAKE.bfloat16()).dtype == torch.float32


def test_the_gradient_penalty_of_a_linear_discriminator_is_the_square_of_its_weights():
    clip = torch.rand(4, 3, 2, 5, 5)
    discriminator = Linear(clip[0].numel())
    penalty = r1_penalty(discriminator, clip)
    assert penalty.item() == pytest.approx(discriminator.weight.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(discriminator.weight.grad, 2 * discriminator.weight)


def test_the_gradient_penalty_is_a_mean_over_clips():
    clips = torch.tensor([1.0, 3.0])[:, None, None, None, None].expand(2, 3, 1, 2, 2)
    # d(sum x^2)/dx = 2x: per clip 12 pixels of (2x)^2.
    assert r1_penalty(lambda clip: clip.square().flatten(1).sum(1), clips).item() == pytest.approx(12 * (4 + 36) / 2)


def test_the_gradient_penalty_reaches_the_weights_of_a_discriminator_and_not_the_clip():
    torch.manual_seed(0)
    discriminator = Config(base_channels=2, channel_multipliers=(2, 2)).build()
    clip = torch.rand(2, 3, 4, 8, 8, requires_grad=True)
    r1_penalty(discriminator, clip).backward()
    assert clip.grad is None
    weights = {name: value for name, value in discriminator.named_parameters() if name.endswith("weight")}
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in weights.values())


def test_the_gradient_penalty_is_the_same_amid_low_precision():
    torch.manual_seed(0)
    discriminator = Config(base_channels=2, channel_multipliers=(2, 2)).build()
    clip = torch.rand(2, 3, 4, 8, 8)
    exact = r1_penalty(discriminator, clip)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(r1_penalty(discriminator, clip), exact)


def test_lecam_follows_its_definition_over_three_updates():
    lecam, decay = LeCam(decay=0.75), 0.75
    real_average = fake_average = 0.0
    for step in range(3):
        real, fake = REAL + step, FAKE - step
        excess = sum(max(0.0, logit - fake_average) ** 2 for logit in real.tolist()) / 2
        shortfall = sum(max(0.0, real_average - logit) ** 2 for logit in fake.tolist()) / 2
        assert lecam(real, fake).item() == pytest.approx(excess + shortfall, rel=1e-5)
        real_average = decay * real_average + (1 - decay) * real.mean().item()
        fake_average = decay * fake_average + (1 - decay) * fake.mean().item()
        assert lecam.real_average.item() == pytest.approx(real_average, rel=1e-5)
        assert lecam.fake_average.item() == pytest.approx(fake_average, rel=1e-5)


def test_lecam_pulls_both_kinds_of_logits_and_never_its_averages():
    lecam = LeCam(decay=0.5)
    lecam(torch.tensor([1.0]), torch.tensor([-1.0]))
    real, fake = torch.tensor([2.0], requires_grad=True), torch.tensor([-2.0], requires_grad=True)
    lecam(real, fake).backward()
    assert real.grad.item() == pytest.approx(2 * (2 + 0.5))
    assert fake.grad.item() == pytest.approx(-2 * (0.5 + 2))
    assert not lecam.real_average.requires_grad
    assert not lecam.fake_average.requires_grad


def test_lecam_learns_nothing_from_an_evaluation():
    lecam = LeCam(decay=0.5)
    lecam(REAL, FAKE)
    before = {name: value.clone() for name, value in lecam.state_dict().items()}
    lecam.eval()(REAL + 5, FAKE - 5)
    assert all(torch.equal(value, before[name]) for name, value in lecam.state_dict().items())


def test_lecam_goes_on_from_its_state_dict():
    lecam, resumed = LeCam(), LeCam()
    lecam(REAL, FAKE)
    assert set(lecam.state_dict()) == {"real_average", "fake_average"}
    resumed.load_state_dict(lecam.state_dict())
    assert torch.equal(lecam(REAL, FAKE), resumed(REAL, FAKE))
    assert not list(lecam.parameters())
