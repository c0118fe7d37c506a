"""V-JEPA 2's encoder against transformers' own, with the same weights."""

import math
from typing import NamedTuple

import pytest
import torch

from models.grid import Grid, Patching, patchify
from models.vit import PIXEL_MEAN, PIXEL_STD
from models.vjepa2 import Rotation, build_encoder, config_of, from_vjepa2, turned

transformers = pytest.importorskip("transformers")


class Case(NamedTuple):
    width: int
    num_heads: int
    patch_px: int
    tubelet_frames: int
    mlp_ratio: float
    num_frames: int
    size_px: int

    @property
    def patching(self):
        return Patching(tubelet_frames=self.tubelet_frames, patch_px=self.patch_px)

    def peer_config(self):
        return transformers.VJEPA2Config(
            patch_size=self.patch_px,
            crop_size=self.size_px,
            frames_per_clip=self.num_frames,
            tubelet_size=self.tubelet_frames,
            hidden_size=self.width,
            num_attention_heads=self.num_heads,
            num_hidden_layers=3,
            mlp_ratio=self.mlp_ratio,
            pred_hidden_size=24,
            pred_num_attention_heads=2,
            pred_num_hidden_layers=1,
            pred_num_mask_tokens=1,
            num_pooler_layers=1,
            num_labels=3,
        )


CASES = {
    "thirds that fill a head": Case(48, 2, 8, 2, 4.0, num_frames=8, size_px=32),
    "a rest that stays": Case(44, 2, 4, 3, 48 / 11, num_frames=12, size_px=20),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def peer(case):
    return randomised(transformers.VJEPA2Model(case.peer_config()))


@pytest.fixture
def ours(case, peer):
    return built(case, peer.state_dict())


def randomised(module):
    """Every tensor is random, so that none can stand where another belongs; tokens stay of the order of one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            scale = 0.2 if ".query." in name or ".key." in name else 0.05  # so that the rotation shows
            parameter += (0.01 if parameter.ndim == 5 else scale) * torch.randn_like(parameter)
    return module.eval()


def built(case, tensors, **changed):
    sizes = {"num_frames": case.num_frames, "size_px": case.size_px, **changed}
    return build_encoder(tensors, config_of(tensors, num_heads=case.num_heads), **sizes)


def clip_of(case, seed, num_frames=None):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, num_frames or case.num_frames, case.size_px, case.size_px, generator=generator)


def normalised(clip):
    """As the peer's processor gives it."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((clip - mean) / deviation).transpose(1, 2)


def tokens_of(encoder, case, clip, layer=None):
    patches = patchify(clip, case.patching)
    return encoder.features(patches, torch.arange(patches.shape[1]).expand(len(clip), -1), layer=layer)


@pytest.mark.parametrize("seed", [0, 1])
def test_with_the_peers_weights_tokens_are_the_peers(case, peer, ours, seed):
    clip = clip_of(case, seed)
    with torch.no_grad():
        theirs = peer(normalised(clip), skip_predictor=True).last_hidden_state
    assert theirs.std() > 0.1, "numbers near zero would agree anyway"
    torch.testing.assert_close(tokens_of(ours, case, clip), theirs, rtol=0, atol=1e-5)


def test_tokens_after_each_block_are_the_peers(case, peer, ours):
    clip = clip_of(case, seed=2)
    with torch.no_grad():
        hidden = peer.encoder.embeddings(normalised(clip))
        for number, layer in enumerate(peer.encoder.layer, start=1):
            hidden = layer(hidden, None)[0]
            torch.testing.assert_close(tokens_of(ours, case, clip, layer=number), hidden, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"layer 4 is not one of the encoder's 1 \.\.\. 3"):
        tokens_of(ours, case, clip, layer=4)


def test_shorter_clips_give_the_peers_tokens(case, peer, ours):
    clip = clip_of(case, seed=3, num_frames=case.tubelet_frames)
    with torch.no_grad():
        theirs = peer(normalised(clip), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(tokens_of(ours, case, clip), theirs, rtol=0, atol=1e-5)


def test_longer_clips_and_larger_frames_give_the_tokens_of_a_peer_made_for_them(case, peer):
    larger = case._replace(num_frames=2 * case.num_frames, size_px=2 * case.size_px)
    wanted = transformers.VJEPA2Model(larger.peer_config()).eval()
    wanted.load_state_dict(peer.state_dict())
    clip = clip_of(larger, seed=4)[:1]
    with torch.no_grad():
        theirs = wanted(normalised(clip), skip_predictor=True).last_hidden_state
    torch.testing.assert_close(tokens_of(built(larger, peer.state_dict()), larger, clip), theirs, rtol=0, atol=1e-5)


def test_the_order_in_which_patches_are_given_says_nothing_their_positions_do(case, ours):
    patches = patchify(clip_of(case, seed=5), case.patching)
    order = torch.randperm(patches.shape[1], generator=torch.Generator().manual_seed(0))
    in_place = torch.arange(len(order)).expand(2, -1)
    tokens = ours(patches, in_place)
    torch.testing.assert_close(ours(patches[:, order], in_place[:, order]), tokens[:, order], rtol=0, atol=1e-5)
    assert not torch.allclose(ours(patches[:, order], in_place), tokens[:, order], atol=1e-2)


def test_each_third_turns_by_its_own_axis():
    rotation = Rotation.of(Grid(2, 3, 4), head_width=8)
    token = (1 * 3 + 2) * 4 + 3  # slot 1, row 2, column 3
    features = torch.tensor([1.0, 0.0] * 4).view(1, 1, 1, 8)
    found = turned(features, *(part[token].view(1, 1, 8) for part in rotation)).flatten()
    wanted = [function(angle) for angle in (1, 2, 3, 0) for function in (math.cos, math.sin)]
    torch.testing.assert_close(found, torch.tensor(wanted))


def test_the_encoder_is_the_same_with_a_classifier_and_without_a_predictor(case, peer):
    whole = peer.state_dict()
    alone = {name: value for name, value in whole.items() if not name.startswith("predictor.")}
    classifier = transformers.VJEPA2ForVideoClassification(case.peer_config())
    classifier.vjepa2.load_state_dict(whole)
    states = [from_vjepa2(tensors) for tensors in (whole, alone, classifier.state_dict())]
    assert len(alone) < len(whole) < len(classifier.state_dict())
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[name], states[0][name]) for state in states for name in state)


def test_names_that_are_wrong_are_listed(peer):
    tensors = peer.state_dict()
    tensors["encoder.layer.1.norm3.weight"] = tensors.pop("encoder.layer.1.norm2.weight")
    with pytest.raises(
        ValueError, match=r"missing encoder\.layer\.1\.norm2\.weight; unexpected encoder\.layer\.1\.norm3\.weight$"
    ):
        from_vjepa2(tensors)
    with pytest.raises(ValueError, match=r"no name ends in embeddings\.patch_embeddings\.proj\.weight; found weight"):
        from_vjepa2({"weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"missing .*encoder\.layer\.0\.attention\.key\.weight, "):
        from_vjepa2({name: value for name, value in tensors.items() if ".layer." not in name})


def test_heads_that_do_not_fit_are_refused(case, peer):
    with pytest.raises(ValueError, match="does not divide into num_heads 7"):
        config_of(peer.state_dict(), num_heads=7)
    with pytest.raises(ValueError, match="odd number of features"):
        config_of(peer.state_dict(), num_heads=case.width)


def test_building_draws_no_random_number_and_trains_nothing(case, peer):
    tensors, before = peer.state_dict(), torch.get_rng_state()
    encoder = built(case, tensors)
    assert torch.equal(torch.get_rng_state(), before)
    assert not encoder.training
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in encoder.parameters())
    assert not any(buffer.is_meta for buffer in encoder.buffers())
