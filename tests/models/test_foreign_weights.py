"""Published encoders of VideoMAE and VideoMAE V2, under each of their names; with the same weights, the peer's own numbers."""

import re
from typing import NamedTuple

import pytest
import torch
from torch import nn

from models.grid import patchify
from models.published import mlp_ratio
from models.videomae_names import PUBLISHED_HEADS, build_encoder, read_published
from models.vit import PIXEL_MEAN, PIXEL_STD

transformers = pytest.importorskip("transformers")

ORIGINAL = (
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"encoder\.layer\.(\d+)\.attention\.attention\.(q|v)_bias", r"blocks.\1.attn.\2_bias"),
    (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attn.proj."),
    (r"encoder\.layer\.(\d+)\.layernorm_before\.", r"blocks.\1.norm1."),
    (r"encoder\.layer\.(\d+)\.layernorm_after\.", r"blocks.\1.norm2."),
    (r"encoder\.layer\.(\d+)\.intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
    (r"encoder\.layer\.(\d+)\.output\.dense\.", r"blocks.\1.mlp.fc2."),
    (r"layernorm\.", "norm."),
    (r"fc_norm\.", "fc_norm."),
    (r"classifier\.", "head."),
)
"""transformers' names and those of the original repositories, but for the fused projection of queries, keys and values."""


class Case(NamedTuple):
    width: int
    num_heads: int
    hidden: int
    patch_px: int
    num_frames: int
    size_px: int

    def peer_config(self, **changed):
        sizes = {"num_frames": self.num_frames, "image_size": self.size_px, **changed}
        return transformers.VideoMAEConfig(
            patch_size=self.patch_px,
            hidden_size=self.width,
            num_hidden_layers=2,
            num_attention_heads=self.num_heads,
            intermediate_size=self.hidden,
            decoder_hidden_size=16,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=32,
            num_labels=3,
            **sizes,
        )


CASES = {
    "patches of 16": Case(32, 4, 128, 16, num_frames=4, size_px=48),
    "ViT-g's patches of 14 and MLP of 48/11": Case(44, 2, 192, 14, num_frames=6, size_px=28),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def randomised(module):
    """Every tensor is random, so that none can stand where another belongs; tokens stay of the order of one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += (0.01 if parameter.ndim == 5 else 0.1) * torch.randn_like(parameter)
    return module.eval()


def published_names(module):
    """The tensors as published files name them: q_bias where modules have query.bias."""
    parts = {"query.bias": "q_bias", "value.bias": "v_bias"}
    return {
        re.sub(r"(query|value)\.bias$", lambda found: parts[found.group()], name): value
        for name, value in module.state_dict().items()
    }


def original(tensors, prefix=""):
    """The names of transformers as those of the original repositories, query, key and value joined."""
    renamed = {}
    for name, value in tensors.items():
        plain = name.removeprefix("videomae.")
        if plain.startswith("decoder."):
            renamed[plain] = tensors[name]
            continue
        if re.search(r"attention\.(key|value)\.weight$", plain):
            continue
        if plain.endswith("attention.query.weight"):
            parts = [tensors[name.replace("query", part)] for part in ("query", "key", "value")]
            number = re.search(r"\d+", plain).group()
            renamed[f"{prefix}blocks.{number}.attn.qkv.weight"] = torch.cat(parts)
            continue
        known = [re.sub(f"^{theirs}", ours, plain) for theirs, ours in ORIGINAL if re.match(theirs, plain)]
        renamed[prefix + known[0] if known else plain] = value
    return renamed


def clip_of(case, seed=0):
    return torch.rand(2, 3, case.num_frames, case.size_px, case.size_px, generator=torch.Generator().manual_seed(seed))


def normalised(clip):
    mean, deviation = (torch.tensor(values).view(3, 1, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
    return ((clip - mean) / deviation).transpose(1, 2)


def built(case, tensors, **changed):
    sizes = {"num_heads": case.num_heads, "num_frames": case.num_frames, "size_px": case.size_px, **changed}
    published = read_published(tensors)
    return published, build_encoder(published, **sizes)


def tokens_of(encoder, published, clip, layer=None):
    patches = patchify(clip, published.patching)
    return encoder.features(patches, torch.arange(patches.shape[1]).expand(len(clip), -1), layer=layer)


def agree(found, expected):
    assert expected.std() > 0.1, "numbers near zero would agree anyway"
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def last_hidden_state(backbone, clip):
    with torch.no_grad():
        return backbone(normalised(clip)).last_hidden_state


@pytest.mark.parametrize("use_mean_pooling", [False, True])
def test_a_videomae_model_gives_its_tokens_with_and_without_a_last_norm(case, use_mean_pooling):
    peer = randomised(transformers.VideoMAEModel(case.peer_config(use_mean_pooling=use_mean_pooling)))
    published, encoder = built(case, peer.state_dict())
    assert published.final_norm == (None if use_mean_pooling else "norm")
    agree(tokens_of(encoder, published, clip_of(case)), last_hidden_state(peer, clip_of(case)))


def test_of_a_network_for_pretraining_the_encoder_is_taken(case):
    peer = randomised(transformers.VideoMAEForPreTraining(case.peer_config(use_mean_pooling=False)))
    for tensors in (peer.state_dict(), published_names(peer)):
        published, encoder = built(case, tensors)
        agree(tokens_of(encoder, published, clip_of(case)), last_hidden_state(peer.videomae, clip_of(case)))


def test_a_fine_tuned_network_gives_tokens_under_its_norm_and_its_logits_follow(case):
    peer = randomised(transformers.VideoMAEForVideoClassification(case.peer_config(use_mean_pooling=True)))
    published, encoder = built(case, peer.state_dict())
    assert published.final_norm == "fc_norm"
    clip = clip_of(case)
    unnormed, normed = (tokens_of(encoder, published, clip, layer=layer) for layer in (2, None))
    with torch.no_grad():
        theirs = last_hidden_state(peer.videomae, clip)
        agree(unnormed, theirs)
        agree(normed, peer.fc_norm(theirs))
        logits = peer.classifier(encoder.norm(unnormed.mean(1)))
        torch.testing.assert_close(logits, peer(normalised(clip)).logits, rtol=0, atol=1e-5)


def test_a_fine_tuned_network_that_reads_one_token_keeps_its_last_norm(case):
    peer = randomised(transformers.VideoMAEForVideoClassification(case.peer_config(use_mean_pooling=False)))
    published, encoder = built(case, peer.state_dict())
    assert published.final_norm == "norm"
    agree(tokens_of(encoder, published, clip_of(case)), last_hidden_state(peer.videomae, clip_of(case)))


def test_original_names_of_pretraining_give_the_same_tokens(case):
    peer = randomised(transformers.VideoMAEForPreTraining(case.peer_config(use_mean_pooling=False, layer_norm_eps=1e-6)))
    tensors = original(published_names(peer), prefix="encoder.")
    assert {"encoder.blocks.0.attn.qkv.weight", "encoder.norm.weight", "decoder.head.weight", "mask_token"} < set(tensors)
    published, encoder = built(case, tensors)
    assert published.naming == "original"
    agree(tokens_of(encoder, published, clip_of(case)), last_hidden_state(peer.videomae, clip_of(case)))


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_original_names_of_fine_tuning_give_the_same_tokens(case, prefix):
    peer = randomised(transformers.VideoMAEForVideoClassification(case.peer_config(layer_norm_eps=1e-6)))
    peer.fc_norm.eps = 1e-6
    tensors = original(published_names(peer), prefix=prefix)
    assert {f"{prefix}blocks.1.attn.v_bias", f"{prefix}fc_norm.weight", f"{prefix}head.bias"} < set(tensors)
    published, encoder = built(case, tensors)
    theirs = last_hidden_state(peer.videomae, clip_of(case))
    with torch.no_grad():
        agree(tokens_of(encoder, published, clip_of(case)), peer.fc_norm(theirs))


def test_longer_clips_and_larger_frames_have_the_positions_of_a_peer_made_for_them(case):
    peer = randomised(transformers.VideoMAEModel(case.peer_config(use_mean_pooling=False)))
    larger = case._replace(num_frames=2 * case.num_frames, size_px=2 * case.size_px)
    wanted = transformers.VideoMAEModel(larger.peer_config(use_mean_pooling=False)).eval()
    wanted.load_state_dict(peer.state_dict())
    published, encoder = built(larger, peer.state_dict())
    agree(tokens_of(encoder, published, clip_of(larger)), last_hidden_state(wanted, clip_of(larger)))


def test_half_precision_is_read_as_what_it_says(case):
    peer = randomised(transformers.VideoMAEModel(case.peer_config(use_mean_pooling=False)))
    half = {name: value.half() for name, value in peer.state_dict().items()}
    _, encoder = built(case, half)
    assert {value.dtype for value in encoder.state_dict().values()} == {torch.float32}
    assert torch.equal(encoder.norm.weight, half["layernorm.weight"].float())


def test_the_size_is_read_from_the_tensors(case):
    published = read_published(transformers.VideoMAEModel(case.peer_config(use_mean_pooling=False)).state_dict())
    config = published.encoder_config(case.num_heads)
    assert (config.width, config.depth, int(config.width * config.mlp_ratio)) == (case.width, 2, case.hidden)
    assert (published.patching.tubelet_frames, published.patching.patch_px) == (2, case.patch_px)
    with pytest.raises(ValueError, match="does not divide into num_heads 3"):
        published.encoder_config(3)


def test_a_ratio_gives_back_every_hidden_width():
    assert all(int(width * mlp_ratio(width, hidden)) == hidden for width in range(1, 90) for hidden in range(1, 400))
    assert int(1408 * mlp_ratio(1408, 6144)) == 6144


def test_heads_of_published_widths():
    assert dict(PUBLISHED_HEADS) == {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}


def test_building_draws_no_random_number_and_shares_no_memory(case):
    tensors = transformers.VideoMAEModel(case.peer_config(use_mean_pooling=False)).state_dict()
    before = torch.get_rng_state()
    _, encoder = built(case, tensors)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(tensor.is_meta for tensor in [*encoder.parameters(), *encoder.buffers()])
    places = {tensor.untyped_storage().data_ptr() for tensor in tensors.values()}
    assert not any(parameter.untyped_storage().data_ptr() in places for parameter in encoder.parameters())


@pytest.fixture
def tensors():
    return original(
        published_names(transformers.VideoMAEForPreTraining(CASES["patches of 16"].peer_config(use_mean_pooling=False))),
        "encoder.",
    )


def test_what_is_no_such_network_is_refused(tensors):
    with pytest.raises(ValueError, match=r"no name ends in .*\(original repositories\); found fc\.bias, fc\.weight"):
        read_published({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"more than one network: encoder\.patch_embed\.proj\.weight, patch_embed\.proj\.weight"
    ):
        read_published(tensors | {"patch_embed.proj.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["encoder.norm.weight", "encoder.blocks.1.attn.q_bias", "encoder.patch_embed.proj.bias"])
def test_a_tensor_that_is_missing_is_named(tensors, name):
    del tensors[name]
    with pytest.raises(ValueError, match=rf"missing {re.escape(name)}; unexpected nothing"):
        read_published(tensors)


@pytest.mark.parametrize("name", ["encoder.blocks.0.gamma_1", "encoder.pos_embed", "encoder.blocks.0.attn.qkv.bias", "extra"])
def test_a_tensor_that_would_be_ignored_is_named(tensors, name):
    with pytest.raises(ValueError, match=rf"missing nothing; unexpected {re.escape(name)}$"):
        read_published(tensors | {name: torch.zeros(4)})


def test_a_network_without_blocks_is_told_what_a_block_has(tensors):
    with pytest.raises(ValueError, match=r"missing encoder\.blocks\.0\.attn\.proj\.bias, "):
        read_published({name: value for name, value in tensors.items() if ".blocks." not in name})


def test_patches_that_are_not_square_or_not_rgb_are_refused(tensors):
    for shape in ((32, 1, 2, 16, 16), (32, 3, 2, 16, 8), (32, 768)):
        with pytest.raises(ValueError, match=rf"has the shape \[{', '.join(map(str, shape))}\]; square RGB patches"):
            read_published(tensors | {"encoder.patch_embed.proj.weight": torch.zeros(shape)})


def test_a_shape_that_differs_is_refused(tensors):
    tensors["encoder.blocks.1.mlp.fc2.weight"] = torch.zeros(32, 64)
    with pytest.raises(ValueError, match=r"size mismatch for blocks\.1\.mlp\.2\.weight"):
        built(CASES["patches of 16"], tensors)


def test_every_epsilon_is_as_given():
    case = CASES["patches of 16"]
    for use_mean_pooling, last in ((False, 1e-3), (True, 1e-5)):
        peer = transformers.VideoMAEForVideoClassification(case.peer_config(use_mean_pooling=use_mean_pooling))
        _, encoder = built(case, peer.state_dict(), norm_epsilon=1e-3)
        norms = [module.eps for module in encoder.modules() if isinstance(module, nn.LayerNorm)]
        assert sorted(norms) == sorted([1e-3] * 4 + [last])
        assert encoder.norm.eps == last
