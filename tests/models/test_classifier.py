"""The classifier: which tokens it sees, which branches it loses, and how it pools."""

import copy
import math

import pytest
import torch

from models.classifier import HEAD_STD, Classifier, drop_path, kept_tokens, seen_slots
from models.extension import load, names
from models.grid import Grid, Patching
from models.pooling.class_attention import ClassAttention
from models.pooling.mean import Mean
from models.positions import sinusoids
from models.vit import Encoder, EncoderConfig

TINY = EncoderConfig(width=16, depth=3, num_heads=2)
SMALL = Patching(tubelet_frames=2, patch_px=2)
GRID = Grid(4, 2, 2)


def classifier(pooling="mean", num_classes=(3,)):
    torch.manual_seed(0)
    encoder = Encoder(TINY, SMALL, sinusoids(GRID.num_tokens, TINY.width))
    return Classifier(encoder, load("models.pooling", pooling), num_classes)


def some_patches(clips=2, tokens=GRID.num_tokens):
    torch.manual_seed(1)
    return torch.rand(clips, tokens, SMALL.patch_dim), torch.arange(tokens).expand(clips, -1)


# Tokens.


@pytest.mark.parametrize(("drop", "kept"), [(0.0, 196), (0.2, 157), (0.25, 147), (0.9, 20)])
def test_the_count_of_kept_tokens_is_exact(drop, kept):
    grid = Grid(64, 14, 14)
    assert len(kept_tokens(grid, drop, torch.Generator())) == 64 * kept


def test_dropped_tokens_are_tubes_that_differ_from_draw_to_draw():
    grid, seen = Grid(5, 4, 4), set()
    for seed in range(5):
        positions = kept_tokens(grid, 0.2, torch.Generator().manual_seed(seed))
        slots = positions.reshape(5, 13) - torch.arange(5)[:, None] * grid.slot_tokens
        assert (slots == slots[0]).all()
        assert len(slots[0].unique()) == 13
        seen.add(tuple(slots[0].tolist()))
    assert len(seen) > 1


def test_slots_that_count_are_the_first_ones():
    positions = torch.tensor([[0, 3, 4, 8, 15]] * 2)
    seen = seen_slots(positions, GRID.slot_tokens, torch.tensor([2, 4]))
    assert seen.tolist() == [[True, True, True, False, False], [True] * 5]


@pytest.mark.parametrize("pooling", names("models.pooling"))
def test_what_does_not_exist_leaves_no_trace(pooling):
    module = classifier(pooling)
    module.head.weight.data.normal_()
    patches, positions = some_patches()
    exists = positions < 12
    wild = torch.where(exists[..., None], patches, torch.tensor(1e3))
    found = module(wild, positions, exists=exists)[0]
    torch.testing.assert_close(found, module(patches[:, :12], positions[:, :12])[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, module(patches, positions)[0], atol=1e-3)


@pytest.mark.parametrize("pooling", names("models.pooling"))
def test_every_clip_is_judged_by_itself(pooling):
    module, (patches, positions) = classifier(pooling), some_patches()
    module.head.weight.data.normal_()
    exists = torch.arange(GRID.num_tokens) < torch.tensor([[16], [8]])
    both = module(patches, positions, exists=exists)[0]
    alone = module(patches[1:, :8], positions[1:, :8])[0]
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


# Branches.


def test_without_a_rate_nothing_is_left_out():
    assert drop_path(12, 0.0, 4, torch.Generator()) is None


def test_branches_are_left_out_at_a_rate_that_rises_linearly_and_keep_their_expectation():
    depth, rate = 5, 0.4
    scales = drop_path(depth, rate, 20_000, torch.Generator().manual_seed(0))
    assert scales.shape == (depth, 2, 20_000)
    for block in range(depth):
        share = rate * block / (depth - 1)
        values = scales[block].unique().tolist()
        assert values == pytest.approx([0.0, 1 / (1 - share)] if block else [1.0])
        assert (scales[block] == 0).float().mean().item() == pytest.approx(share, abs=0.01)
        assert scales[block].mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(scales[4, 0], scales[4, 1]), "attention and MLP are drawn apart"


def test_a_draw_of_branches_is_its_generators():
    draws = [drop_path(3, 0.5, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_scales_of_one_change_no_bit_and_scales_of_zero_leave_the_embedding():
    encoder, (patches, positions) = classifier().encoder, some_patches()
    plain = encoder(patches, positions)
    assert torch.equal(encoder(patches, positions, branch_scales=torch.ones(3, 2, 2)), plain)
    torch.testing.assert_close(encoder(patches, positions, exists=torch.ones(2, 16, dtype=torch.bool)), plain)
    embedded = encoder.norm(encoder.embed_patches(patches, positions))
    assert torch.equal(encoder(patches, positions, branch_scales=torch.zeros(3, 2, 2)), embedded)


def test_a_branch_is_scaled_for_its_own_clip_and_block():
    encoder, (patches, positions) = classifier().encoder, some_patches()
    scales = torch.ones(3, 2, 2)
    scales[1, 0, 1] = 0.5
    found = encoder(patches, positions, branch_scales=scales)
    assert torch.allclose(found[0], encoder(patches, positions)[0], atol=1e-6)
    tokens = encoder.blocks[0](encoder.embed_patches(patches, positions))[1:]
    block = encoder.blocks[1]
    tokens = tokens + 0.5 * block.attention(block.norm_attention(tokens))
    tokens = tokens + block.mlp(block.norm_mlp(tokens))
    torch.testing.assert_close(found[1:], encoder.norm(encoder.blocks[2](tokens)))


def test_computing_activations_again_changes_no_bit_of_scaled_and_masked_blocks():
    plain, (patches, positions) = classifier(), some_patches()
    again = copy.deepcopy(plain)
    again.encoder.blocks.is_recomputed = True
    given = {"exists": positions < 12, "branch_scales": drop_path(3, 0.5, 2, torch.Generator().manual_seed(3))}
    for module in (plain, again):
        module(patches, positions, **given)[0].square().sum().backward()
    for one, other in zip(plain.encoder.parameters(), again.encoder.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


# Heads and layers.


def test_the_first_scores_are_nearly_equal_and_split_by_question():
    module, (patches, positions) = classifier(num_classes=(3, 5)), some_patches()
    first, second = module(patches, positions)
    assert (first.shape, second.shape) == ((2, 3), (2, 5))
    assert max(first.abs().max(), second.abs().max()) < 1e-2
    assert module.head.weight.std().item() == pytest.approx(HEAD_STD, rel=0.3)


@pytest.mark.parametrize("pooling", names("models.pooling"))
def test_layers_count_from_the_embedding_to_the_head(pooling):
    layers = classifier(pooling).layers()
    assert set(layers) == {name for name, _ in classifier(pooling).named_parameters()}
    assert (layers["encoder.embed.weight"], layers["encoder.embed.bias"]) == (0, 0)
    assert (layers["encoder.blocks.0.attention.q_bias"], layers["encoder.blocks.2.mlp.0.weight"]) == (1, 3)
    last = {name for name, layer in layers.items() if layer == 4}
    assert {"encoder.norm.weight", "norm.weight", "head.bias"} <= last
    assert all(name.startswith(("encoder.norm.", "norm.", "head.", "pooling.")) for name in last)


# Pooling.


@pytest.mark.parametrize("name", names("models.pooling"))
def test_every_pooling_is_named_like_its_file(name):
    assert load("models.pooling", name).name == name


def test_the_mean_is_the_mean_of_what_exists():
    tokens = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]]])
    assert Mean()(tokens).tolist() == [[pytest.approx(104 / 3), 36.0]]
    assert Mean()(tokens, torch.tensor([[True, True, False]])).tolist() == [[2.0, 4.0]]


def test_class_attention_agrees_with_the_textbook():
    torch.manual_seed(0)
    pooling, tokens = ClassAttention(8, num_heads=2, mlp_ratio=2.0), torch.randn(1, 5, 8)
    for value in pooling.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    asking = pooling.class_token[None]  # [1, 8]
    seen = pooling.norm_attention(torch.cat([asking, tokens[0]]))  # [6, 8]
    query = seen[0] @ pooling.query.weight.T + pooling.query.bias
    keys, values = seen @ pooling.key.weight.T, seen @ pooling.value.weight.T + pooling.value.bias
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        weights = torch.exp(keys[:, head] @ query[head] / math.sqrt(4))
        heads.append((weights[:, None] * values[:, head]).sum(0) / weights.sum())
    asking = asking + (torch.cat(heads) @ pooling.out.weight.T + pooling.out.bias)
    expected = asking + pooling.mlp(pooling.norm_mlp(asking))
    torch.testing.assert_close(pooling(tokens), expected, rtol=1e-4, atol=1e-5)
