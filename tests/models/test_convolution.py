"""The parts of the convolutional autoencoder."""

import pytest
import torch

from models.convolution import Enlarge, ResidualBlock, Scorer, Shrink, Stage, convolution, down, initialise, normalisation, up

STAGES = [Stage(4, shrink_t=2, shrink_px=2), Stage(8, shrink_t=1, shrink_px=2), Stage(8, shrink_t=1, shrink_px=2)]


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (64, 32), (16, 8), (8, 4), (1, 1)])
def test_groups_are_magvits_where_channels_allow(channels, groups):
    assert normalisation(channels).num_groups == groups


def test_a_residual_block_can_change_the_number_of_channels():
    assert ResidualBlock(4, 6)(torch.zeros(1, 4, 2, 3, 3)).shape == (1, 6, 2, 3, 3)


def test_shrinking_averages_blocks():
    features = torch.arange(16.0).reshape(1, 1, 2, 2, 4)
    expected = torch.nn.functional.avg_pool3d(features, (2, 2, 2))
    assert torch.allclose(Shrink(STAGES[0])(features), expected)


def test_enlarging_repeats_cells_before_it_smooths():
    enlarge = Enlarge(STAGES[0], channels=1)
    enlarge.smooth.load_state_dict({"weight": torch.zeros(1, 1, 3, 3, 3), "bias": torch.zeros(1)})
    enlarge.smooth.weight.data[..., 1, 1, 1] = 1
    features = torch.randn(1, 1, 2, 3, 3)
    expected = torch.nn.functional.interpolate(features, scale_factor=2, mode="nearest")
    assert torch.equal(enlarge(features), expected)


def test_the_decoder_grid_is_the_encoder_grid_backwards():
    latents = down(3, 5, stages=STAGES, blocks_per_stage=1)(torch.zeros(1, 3, 4, 8, 12))
    assert latents.shape == (1, 5, 2, 2, 3)
    assert up(5, 3, stages=STAGES, blocks_per_stage=1)(latents).shape == (1, 3, 4, 8, 12)


@pytest.mark.parametrize("strides", [(4, 4), (2, 1), (1, 1), (8, 4)])
def test_scorer_features_lie_on_the_token_grid(strides):
    side = strides[0] * strides[1]
    features = Scorer(5, stride_t=2, strides_px=strides)(torch.zeros(1, 3, 4, 3 * side, 2 * side))
    assert features.shape == (1, 5, 2, 3, 2)


def test_scorer_features_of_a_slot_depend_on_its_frames_alone():
    scorer = Scorer(5, stride_t=2, strides_px=(2, 2))
    clip = torch.rand(1, 3, 6, 8, 8)
    changed = clip.clone()
    changed[:, :, 2:4] = 0
    difference = (scorer(clip) - scorer(changed)).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] == difference[2] == 0
    assert difference[1] > 0


def test_starting_weights_keep_the_size_of_a_signal():
    torch.manual_seed(0)
    layer = convolution(32, 64).apply(initialise)
    assert layer(torch.randn(1, 32, 4, 8, 8))[..., 1:-1, 1:-1, 1:-1].std().item() == pytest.approx(1, rel=0.1)
