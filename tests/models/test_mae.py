"""The masked autoencoder: who sees what, what counts, and that it is one graph."""

import jaxtyping
import pytest
import torch
from pydantic import ValidationError

from models.grid import Grid, Patching, gather_tokens, patchify
from models.mae import Config, DecoderConfig, MaskedAutoencoder, hidden_weight, masked_mse

TINY = Config.model_validate(
    {
        "encoder": {"width": 16, "depth": 1, "num_heads": 2},
        "decoder": {"width": 8, "depth": 1, "num_heads": 2},
        "patching": {"tubelet_frames": 2, "patch_px": 2},
    }
)
GRID = Grid(2, 2, 3)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return MaskedAutoencoder(TINY, GRID, target_dim=5)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    patches = patchify(torch.rand(2, 3, 4, 4, 6), TINY.patching)
    visible = torch.tensor([[0, 3, 8], [1, 2, 11]])
    predict = torch.tensor([[1, 5, 7, 9], [0, 4, 6, 10]])
    return gather_tokens(patches, visible), visible, predict


def test_one_prediction_per_asked_position(model, batch):
    assert model(*batch).shape == (2, 4, 5)


def test_every_parameter_receives_a_gradient(model, batch):
    model(*batch).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_predictions_follow_the_order_of_the_asked_positions(model, batch):
    patches, visible, predict = batch
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(model(patches, visible, predict[:, order]), model(*batch)[:, order], atol=1e-5)


def test_predictions_do_not_depend_on_the_order_of_the_visible_tokens(model, batch):
    patches, visible, predict = batch
    order = torch.tensor([2, 0, 1])
    assert torch.allclose(model(patches[:, order], visible[:, order], predict), model(*batch), atol=1e-5)


def test_predictions_depend_on_the_visible_pixels(model, batch):
    patches, visible, predict = batch
    assert not torch.allclose(model(1 - patches, visible, predict), model(*batch))


def test_asked_positions_see_each_other(model, batch):
    patches, visible, predict = batch
    other = predict.clone()
    other[:, -1] = 3
    assert not torch.allclose(model(patches, visible, other)[:, 0], model(*batch)[:, 0], atol=1e-7)


@pytest.fixture
def no_shape_checks():
    """The checks of the test run are Python that no graph can hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("no_shape_checks")
def test_the_forward_pass_is_one_graph_that_exports(model, batch):
    exported = torch.export.export(model.eval(), batch, strict=True).module()
    assert torch.allclose(exported(*batch), model(*batch), atol=1e-6)


def test_full_size_clips_decode_fifteen_per_cent():
    config = Config.model_validate({"encoder": "ViT-B", "decoder": "ViT-B"})
    grid = Patching().grid(128, 224)
    with torch.device("meta"):
        model = MaskedAutoencoder(config, grid, target_dim=6)
        visible, predict = torch.zeros(1, 1280, dtype=torch.long), torch.zeros(1, 1881, dtype=torch.long)
        assert model(torch.zeros(1, 1280, 1536), visible, predict).shape == (1, 1881, 6)


@pytest.mark.parametrize(
    ("size", "width", "num_heads"), [("ViT-S", 192, 3), ("ViT-B", 384, 6), ("ViT-L", 512, 8), ("ViT-H", 512, 8)]
)
def test_decoders_have_their_published_sizes(size, width, num_heads):
    assert DecoderConfig.model_validate(size) == DecoderConfig(width=width, depth=4, num_heads=num_heads)


def test_an_unknown_decoder_size_lists_the_known_ones():
    with pytest.raises(ValidationError, match="ViT-S, ViT-B, ViT-L, ViT-H"):
        DecoderConfig.model_validate("ViT-G")


def test_only_hidden_tokens_of_recorded_frames_count():
    visible, predict = torch.tensor([[0, 3], [1, 2]]), torch.tensor([[0, 1, 4], [1, 3, 5]])
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    assert hidden_weight(visible, predict, real).tolist() == [[0, 1, 1], [0, 1, 0]]


def test_the_loss_is_the_mean_over_counted_tokens():
    predictions, targets = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]]), torch.zeros(1, 2, 2)
    assert masked_mse(predictions, targets, torch.tensor([[1.0, 0.0]])) == 5
    assert masked_mse(predictions, targets, torch.tensor([[1.0, 1.0]])) == (5 + 81) / 2


def test_the_loss_of_no_token_is_zero_with_a_zero_gradient():
    predictions = torch.ones(1, 2, 3, requires_grad=True)
    loss = masked_mse(predictions, torch.zeros(1, 2, 3), torch.zeros(1, 2))
    loss.backward()
    assert loss == 0
    assert torch.equal(predictions.grad, torch.zeros_like(predictions))


def test_tokens_that_do_not_count_have_no_gradient(model, batch):
    predictions = model(*batch)
    predictions.retain_grad()
    weight = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 2)
    masked_mse(predictions, torch.zeros_like(predictions), weight).backward()
    assert (predictions.grad[:, 1::2] == 0).all()
    assert (predictions.grad[:, ::2] != 0).any()
