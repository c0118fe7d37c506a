"""The discriminator: sizes, its form against the published one, and derivatives of derivatives."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from models.discriminator import Block, Config, Discriminator, halve

TINY = Config(base_channels=2, channel_multipliers=(2, 3, 3, 3, 3))


def tiny_discriminator():
    torch.manual_seed(0)
    return TINY.build()


@pytest.mark.parametrize("shape", [(16, 32, 32), (16, 64, 64), (6, 33, 20), (1, 1, 1)])
def test_the_same_weights_give_windows_of_every_size_one_logit(shape):
    logits = tiny_discriminator()(torch.rand(2, 3, *shape))
    assert logits.shape == (2,)
    assert logits.isfinite().all()


def test_published_size_takes_full_windows_to_one_slot_of_seven_by_seven():
    with torch.device("meta"):
        network = Discriminator(Config())
        clip = torch.zeros(2, 3, 16, 224, 224)
        assert network.blocks(network.stem(clip)).shape == (2, 256, 1, 7, 7)
        assert network(clip).shape == (2,)


def test_halving_averages_blocks_and_keeps_the_last_slice_of_an_odd_side():
    features = torch.rand(1, 2, 1, 5, 4)
    expected = functional.avg_pool3d(features, (1, 2, 2), ceil_mode=True)
    assert torch.allclose(halve(features), expected)


def test_a_block_follows_the_published_form():
    torch.manual_seed(0)
    block, features = Block(2, 3, slope=0.2), torch.randn(1, 2, 4, 6, 6)
    body = functional.leaky_relu(functional.conv3d(features, block.fine.weight, block.fine.bias, padding=1), 0.2)
    body = functional.conv3d(functional.avg_pool3d(body, 2), block.coarse.weight, block.coarse.bias, padding=1)
    shortcut = functional.conv3d(functional.avg_pool3d(features, 2), block.shortcut.weight)
    expected = (functional.leaky_relu(body, 0.2) + shortcut) / 2**0.5
    assert torch.allclose(block(features), expected, atol=1e-6)


def test_a_clip_is_judged_by_itself():
    network = tiny_discriminator()
    clips = torch.rand(3, 3, 4, 16, 16)
    alone = torch.cat([network(clip[None]) for clip in clips])
    assert torch.allclose(network(clips), alone, atol=1e-6)


def test_first_and_second_derivatives_are_those_of_finite_differences():
    network = Config(base_channels=1, channel_multipliers=(2,)).build().double()
    clip = torch.rand(1, 3, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight = network.stem[0].weight
    assert torch.autograd.gradcheck(network, clip)

    def squared_gradient(weight):
        logits = torch.func.functional_call(network, {"stem.0.weight": weight}, clip)
        return torch.autograd.grad(logits.sum(), clip, create_graph=True)[0].square().sum()

    assert torch.autograd.gradcheck(squared_gradient, weight)


def test_an_untrained_network_has_no_opinion_about_grey():
    logits = tiny_discriminator()(torch.stack([torch.full((3, 8, 32, 32), 0.5), torch.rand(3, 8, 32, 32)]))
    assert logits[0] == 0
    assert 0 < logits[1].abs() < 5


@pytest.mark.parametrize("change", [{"base_channels": 0}, {"channel_multipliers": ()}, {"slope": 1}])
def test_impossible_sizes_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        Config(**change)
