"""The plain transformer: published sizes, published positions, and what it does with patches it is given."""

import pytest
import torch
from pydantic import ValidationError

from models.grid import Patching
from models.positions import sinusoids
from models.vit import PIXEL_MEAN, PIXEL_STD, SIZES, Attention, Encoder, EncoderConfig

TINY = EncoderConfig(width=16, depth=2, num_heads=2)
SMALL = Patching(tubelet_frames=2, patch_px=2)


def tiny_encoder(num_tokens=12):
    torch.manual_seed(0)
    return Encoder(TINY, SMALL, sinusoids(num_tokens, TINY.width)).eval()


@pytest.mark.parametrize(
    ("name", "width", "depth"), [("ViT-S", 384, 12), ("ViT-B", 768, 12), ("ViT-L", 1024, 24), ("ViT-H", 1280, 32)]
)
def test_sizes_have_the_parameters_of_their_published_width_and_depth(name, width, depth):
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig.model_validate(name), Patching(), sinusoids(1568, width))
    attention = 4 * width**2 + 3 * width  # no bias on the keys
    mlp = 8 * width**2 + 5 * width
    expected = (1536 + 1) * width + depth * (attention + mlp + 4 * width) + 2 * width
    assert sum(parameter.numel() for parameter in encoder.parameters()) == expected


def test_a_published_size_is_its_numbers():
    assert EncoderConfig.model_validate("ViT-B") == EncoderConfig(width=768, depth=12, num_heads=12)


def test_an_unknown_size_lists_the_known_ones():
    with pytest.raises(ValidationError, match=", ".join(SIZES)):
        EncoderConfig.model_validate("ViT-X")


def test_heads_must_share_the_width():
    with pytest.raises(ValidationError, match="width 10 does not divide into num_heads 3"):
        EncoderConfig(width=10, depth=1, num_heads=3)


def test_attention_agrees_with_the_textbook():
    torch.manual_seed(0)
    attention = Attention(8, num_heads=2)
    attention.q_bias.data.normal_()
    attention.v_bias.data.normal_()
    tokens = torch.randn(1, 5, 8)
    query, key, value = (tokens @ attention.qkv.weight.T).split(8, dim=-1)
    query, value = query + attention.q_bias, value + attention.v_bias
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        scores = query[..., head] @ key[..., head].transpose(1, 2) / 2
        heads.append(scores.softmax(dim=-1) @ value[..., head])
    assert torch.allclose(attention(tokens), attention.out(torch.cat(heads, dim=-1)), atol=1e-6)


def test_biases_are_on_queries_and_values_alone():
    names = {name for name, _ in Attention(8, num_heads=2).named_parameters()}
    assert names == {"qkv.weight", "q_bias", "v_bias", "out.weight", "out.bias"}


def test_tokens_follow_their_patches_and_positions_into_any_order():
    encoder = tiny_encoder()
    patches, positions = torch.rand(2, 6, SMALL.patch_dim), torch.stack([torch.randperm(12)[:6] for _ in range(2)])
    order = torch.randperm(6)
    tokens = encoder(patches, positions)
    assert tokens.shape == (2, 6, 16)
    assert torch.allclose(encoder(patches[:, order], positions[:, order]), tokens[:, order], atol=1e-5)


def test_the_same_patch_elsewhere_is_another_token():
    encoder, patches = tiny_encoder(), torch.rand(1, 1, SMALL.patch_dim)
    here, there = (encoder(patches, torch.tensor([[position]])) for position in (0, 7))
    assert not torch.allclose(here, there)


def test_pixels_are_normalised_inside_per_channel():
    encoder = tiny_encoder()
    mean = torch.tensor(PIXEL_MEAN).repeat(SMALL.patch_dim // 3)
    deviation = torch.zeros(SMALL.patch_dim)
    deviation[4] = PIXEL_STD[1]  # one standard deviation of green in the second pixel
    position = torch.zeros(1, 1, dtype=torch.long)
    at_mean = encoder.embed_patches(mean[None, None], position) - encoder.position_vectors[0]
    shifted = encoder.embed_patches((mean + deviation)[None, None], position) - encoder.position_vectors[0]
    assert torch.allclose(at_mean, encoder.embed.bias.expand_as(at_mean), atol=1e-6)
    assert torch.allclose((shifted - at_mean).flatten(), encoder.embed.weight[:, 4], atol=1e-5)


def test_features_of_a_layer_lead_to_the_output():
    encoder = tiny_encoder()
    patches, positions = torch.rand(1, 4, SMALL.patch_dim), torch.arange(4)[None]
    first = encoder.features(patches, positions, layer=1)
    assert torch.allclose(first, encoder.blocks[0](encoder.embed_patches(patches, positions)))
    last = encoder.features(patches, positions, layer=2)
    assert torch.allclose(encoder.norm(last), encoder(patches, positions))


@pytest.mark.parametrize("layer", [0, 3, -1])
def test_a_layer_the_encoder_lacks_is_refused(layer):
    with pytest.raises(ValueError, match=f"layer {layer} .* 1 ... 2"):
        tiny_encoder().features(torch.rand(1, 1, SMALL.patch_dim), torch.zeros(1, 1, dtype=torch.long), layer=layer)


def test_weights_of_a_short_clip_load_into_an_encoder_for_a_long_one():
    short, long = tiny_encoder(12), tiny_encoder(48)
    long.load_state_dict(short.state_dict())
    patches, positions = torch.rand(1, 5, SMALL.patch_dim), torch.arange(5)[None]
    assert torch.allclose(short(patches, positions), long(patches, positions))
