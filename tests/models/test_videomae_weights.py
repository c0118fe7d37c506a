"""Weights of transformers' VideoMAE and ours, both ways; with the same weights, the peer's own numbers."""

from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from models.grid import gather_tokens, patchify
from models.mae import Config, MaskedAutoencoder, hidden_weight, masked_mse
from models.masking.tube import Config as Tube
from models.targets.pixels import StandardisedPixels
from models.videomae_weights import encoder_from_videomae, encoder_to_videomae, from_videomae, to_videomae
from models.vit import PIXEL_MEAN, PIXEL_STD

transformers = pytest.importorskip("transformers")

QUERY_BIAS = "videomae.encoder.layer.1.attention.attention.query.bias"


class Case(NamedTuple):
    model: Config
    num_frames: int
    size_px: int

    @property
    def grid(self):
        return self.model.patching.grid(self.num_frames, self.size_px)

    def peer_config(self):
        encoder, decoder, patching = self.model.encoder, self.model.decoder, self.model.patching
        return transformers.VideoMAEConfig(
            image_size=self.size_px,
            patch_size=patching.patch_px,
            num_frames=self.num_frames,
            tubelet_size=patching.tubelet_frames,
            hidden_size=encoder.width,
            num_hidden_layers=encoder.depth,
            num_attention_heads=encoder.num_heads,
            intermediate_size=int(encoder.width * encoder.mlp_ratio),
            decoder_hidden_size=decoder.width,
            decoder_num_hidden_layers=decoder.depth,
            decoder_num_attention_heads=decoder.num_heads,
            decoder_intermediate_size=int(decoder.width * decoder.mlp_ratio),
            use_mean_pooling=False,
            norm_pix_loss=True,
        )


CASES = {
    "16 px": Case(
        Config.model_validate(
            {
                "encoder": {"width": 32, "depth": 2, "num_heads": 4},
                "decoder": {"width": 16, "depth": 2, "num_heads": 2},
            }
        ),
        num_frames=4,
        size_px=48,
    ),
    "8 px": Case(
        Config.model_validate(
            {
                "encoder": {"width": 24, "depth": 3, "num_heads": 3, "mlp_ratio": 2},
                "decoder": {"width": 40, "depth": 1, "num_heads": 5},
                "patching": {"tubelet_frames": 3, "patch_px": 8},
            }
        ),
        num_frames=12,
        size_px=32,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def peer(case):
    """Every tensor is random, so that none can stand where another belongs."""
    torch.manual_seed(0)
    module = transformers.VideoMAEForPreTraining(case.peer_config()).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.fixture
def ours(case, peer):
    module = MaskedAutoencoder(case.model, case.grid, case.model.patching.patch_dim).eval()
    module.load_state_dict(from_videomae(peer.state_dict()))
    return module


class Batch(NamedTuple):
    """What both sides are given: a clip as ours and as the peer's processor makes it, and who sees what."""

    patches: torch.Tensor
    pixel_values: torch.Tensor
    visible: torch.Tensor
    hidden: torch.Tensor
    predict: torch.Tensor


def batch(case, seed):
    """Two clips, each under a tube mask of its own."""
    generator = torch.Generator().manual_seed(seed)
    clip = torch.rand(2, 3, case.num_frames, case.size_px, case.size_px, generator=generator)
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    real = torch.ones(case.grid.num_tokens, dtype=torch.bool)
    tube = Tube(ratio=0.7)
    visible = torch.stack([tube.select(case.grid, products={}, real=real, generator=generator) for _ in clip])
    hidden = real.repeat(2, 1).scatter(1, visible, False)
    predict = hidden.nonzero()[:, 1].view(2, -1)
    return Batch(patchify(clip, case.model.patching), ((clip - mean) / deviation).transpose(1, 2), visible, hidden, predict)


def loss_of(case, predictions, given):
    wanted = StandardisedPixels(case.model.patching)(gather_tokens(given.patches, given.predict), {})
    weight = hidden_weight(given.visible, given.predict, torch.ones_like(given.hidden))
    return masked_mse(predictions, wanted, weight)


def same(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def both(case, peer, ours, given):
    """Logits and loss of the peer and of ours, for the same clips and the same hidden tokens."""
    with torch.no_grad():
        theirs = peer(given.pixel_values, bool_masked_pos=given.hidden)
        predictions = ours(gather_tokens(given.patches, given.visible), given.visible, given.predict)
        return (theirs.logits, theirs.loss), (predictions, loss_of(case, predictions, given))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_the_peers_weights_hidden_tokens_get_its_logits_and_its_loss(case, peer, ours, seed):
    for norm in (module for module in peer.modules() if isinstance(module, nn.LayerNorm)):
        norm.eps = ours.norm.eps
    theirs, own = both(case, peer, ours, batch(case, seed))
    assert own[0].std() > 0.1, "numbers near zero would agree anyway"
    torch.testing.assert_close(own, theirs, rtol=0, atol=2e-6)


def test_the_peers_own_epsilons_change_its_logits_by_a_hundred_thousandth(case, peer, ours):
    (logits, loss), (predictions, own_loss) = both(case, peer, ours, batch(case, seed=0))
    torch.testing.assert_close(predictions, logits, rtol=0, atol=2e-5 * logits.abs().max().item())
    torch.testing.assert_close(own_loss, loss, rtol=0, atol=1e-5)


def test_gradients_are_the_peers(case, peer, ours):
    given = batch(case, seed=3)
    peer(given.pixel_values, bool_masked_pos=given.hidden).loss.backward()
    predictions = ours(gather_tokens(given.patches, given.visible), given.visible, given.predict)
    loss_of(case, predictions, given).backward()
    expected = from_videomae({name: parameter.grad for name, parameter in peer.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-5)


def test_the_encoder_alone_gives_the_peers_tokens(case, peer, ours):
    given = batch(case, seed=4)
    ours.encoder.load_state_dict(encoder_from_videomae(peer.videomae.state_dict()))
    with torch.no_grad():
        theirs = peer.videomae(given.pixel_values, bool_masked_pos=given.hidden).last_hidden_state
        tokens = ours.encoder(gather_tokens(given.patches, given.visible), given.visible)
    torch.testing.assert_close(tokens, theirs, rtol=0, atol=1e-5)


def test_ours_to_the_peers_and_back_is_the_same_to_the_bit(case, ours):
    state = ours.state_dict()
    assert same(from_videomae(to_videomae(state, case.model.patching)), state)
    encoder = ours.encoder.state_dict()
    assert same(encoder_from_videomae(encoder_to_videomae(encoder, case.model.patching)), encoder)


def test_a_checkpoint_to_ours_and_back_is_the_same_to_the_bit(case, peer, tmp_path):
    peer.save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    assert QUERY_BIAS.replace("query.bias", "q_bias") in published, "files and modules name the biases differently"
    assert same(to_videomae(from_videomae(published), case.model.patching), published)
    peer.videomae.save_pretrained(tmp_path)
    backbone = load_file(tmp_path / "model.safetensors")
    assert same(encoder_to_videomae(encoder_from_videomae(backbone), case.model.patching), backbone)


def test_the_peer_loads_ours_as_it_loads_a_published_checkpoint(case, peer, ours):
    written = to_videomae(ours.state_dict(), case.model.patching)
    loaded, report = transformers.VideoMAEForPreTraining.from_pretrained(
        None, config=case.peer_config(), state_dict=written, output_loading_info=True
    )
    assert not any(report.values())
    assert same(loaded.state_dict(), peer.state_dict())


def test_the_encoder_of_a_whole_checkpoint_is_taken_without_the_rest(peer):
    assert same(encoder_from_videomae(peer.state_dict()), encoder_from_videomae(peer.videomae.state_dict()))


def test_names_that_are_wrong_are_listed(peer):
    tensors = peer.state_dict()
    tensors["classifier.weight"] = tensors.pop(QUERY_BIAS)
    with pytest.raises(ValueError, match=rf"missing {QUERY_BIAS}; unexpected classifier\.weight$"):
        from_videomae(tensors)


def test_a_whole_block_that_is_missing_is_listed(peer):
    tensors = {name: value for name, value in peer.state_dict().items() if ".layer.0." not in name}
    with pytest.raises(ValueError, match=r"missing videomae\.encoder\.layer\.0\.attention\.attention\.key\.weight, "):
        from_videomae(tensors)


def test_an_encoder_without_its_last_norm_is_refused(peer):
    tensors = {name: value for name, value in peer.videomae.state_dict().items() if not name.startswith("layernorm.")}
    with pytest.raises(ValueError, match=r"missing layernorm\.bias, layernorm\.weight; unexpected nothing"):
        encoder_from_videomae(tensors)


def test_of_ours_too_wrong_names_are_listed(case, ours):
    state = ours.state_dict()
    state["decoder.0.attention.k_bias"] = state.pop("head.bias")
    with pytest.raises(ValueError, match=r"missing head\.bias; unexpected decoder\.0\.attention\.k_bias"):
        to_videomae(state, case.model.patching)
    with pytest.raises(ValueError, match=r"an Encoder: .*unexpected .*mask_token"):
        encoder_to_videomae(ours.state_dict(), case.model.patching)
