"""The adaptive tokenizer: grids, selection, windows, and the one-to-one match of codes and patches."""

import pytest
import torch
from pydantic import ValidationError

from models.grid import Grid, Patching, patchify
from models.tokenizer import AdaptiveTokenizer, Config

TINY = Config(
    window_frames=6,
    patching=Patching(tubelet_frames=2, patch_px=8),
    levels=(8, 5, 5),
    top_k=0.6,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    stem_patch_px=4,
    scorer_channels=6,
)
GRID = Grid(3, 4, 3)
PLACES = [(0, 0, 0), (0, 3, 1), (1, 1, 2), (2, 2, 0)]


def tiny_tokenizer(**changes):
    torch.manual_seed(0)
    return AdaptiveTokenizer(TINY.model_copy(update=changes)).eval()


def random_clip(frames=6, batch=2):
    return torch.rand(batch, 3, frames, 32, 24, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stem", [(1, (1, 2, 2, 4, 4)), (4, (1, 2, 4))])
def test_full_size_clips_give_the_published_grids(stem):
    stem_patch_px, multipliers = stem
    config = Config(stem_patch_px=stem_patch_px, channel_multipliers=multipliers, num_res_blocks=1)
    with torch.device("meta"):
        tokenizer = AdaptiveTokenizer(config)
        reconstruction = tokenizer(torch.zeros(1, 3, 16, 224, 224))
        codes, priority = tokenizer.tokenize(torch.zeros(1, 3, 128, 224, 224))
    assert reconstruction.clip.shape == (1, 3, 16, 224, 224)
    assert reconstruction.codes.shape == reconstruction.priority.shape == reconstruction.keep.shape == (1, 8, 14, 14)
    assert codes.shape == priority.shape == (1, 64, 14, 14)


def test_defaults_are_the_published_counts():
    config = Config()
    assert config.num_kept(8 * 14 * 14) == 768
    stages = config.stages()
    assert [stage.shrink_t for stage in stages[:-1]] == [2, 1, 1, 1]
    assert [stage.shrink_px for stage in stages[:-1]] == [2] * 4


def test_a_reconstruction_is_a_clip_in_the_unit_range():
    clip = random_clip()
    reconstruction = tiny_tokenizer()(clip)
    assert reconstruction.clip.shape == clip.shape
    assert reconstruction.clip.min() >= 0
    assert reconstruction.clip.max() <= 1
    assert not reconstruction.codes.is_floating_point()


def test_training_keeps_exactly_top_k_tokens_the_whole_first_slot_among_them():
    keep = tiny_tokenizer(top_k=17)(random_clip()).keep
    assert keep.sum(dim=(1, 2, 3)).tolist() == [17, 17]
    assert (keep[:, 0] == 1).all()


def test_the_first_slot_can_compete_like_any_other():
    tokenizer = tiny_tokenizer(top_k=6, keep_first_slot=False)
    reconstruction = tokenizer(random_clip())
    assert reconstruction.keep.sum(dim=(1, 2, 3)).tolist() == [6, 6]
    kept = reconstruction.keep.bool()
    for clip in range(2):
        assert reconstruction.priority[clip][kept[clip]].min() >= reconstruction.priority[clip][~kept[clip]].max()


def test_a_token_that_is_not_kept_becomes_the_centre_code():
    tokenizer = tiny_tokenizer()
    reconstruction = tokenizer(random_clip())
    dropped = reconstruction.keep == 0
    assert dropped.any()
    assert (reconstruction.codes[dropped] == tokenizer.quantizer.centre_code).all()
    assert (reconstruction.codes[~dropped] != tokenizer.quantizer.centre_code).any()


def test_the_scorer_learns_from_the_reconstruction_alone():
    tokenizer, clip = tiny_tokenizer(), random_clip()
    (tokenizer(clip).clip - clip).square().mean().backward()
    for name, parameter in tokenizer.named_parameters():
        assert parameter.grad is not None, name
        # The last bias of the scorer cancels in the difference of two slots.
        if name != "scorer.second.bias":
            assert parameter.grad.abs().sum() > 0, name


def test_a_few_steps_of_training_lower_the_reconstruction_error():
    tokenizer, clip = tiny_tokenizer(), random_clip()
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    errors = []
    for _ in range(12):
        error = (tokenizer(clip).clip - clip).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.95 * errors[0]


def test_only_what_changes_between_slots_has_priority():
    tokenizer = tiny_tokenizer()
    clip = torch.rand(1, 3, 1, 32, 24).expand(-1, -1, 6, -1, -1).clone()
    assert tokenizer.priority(clip).abs().max() < 1e-5
    clip[:, :, 4:, 0:8, 8:16] = 1 - clip[:, :, 4:, 0:8, 8:16]
    moved = tokenizer.priority(clip)[0] > 1e-5
    assert moved[2, 0, 1]
    assert not moved[:2].any()
    assert not moved[2, 2:].any()


def test_the_first_slot_of_every_window_repeats_the_second():
    priority = tiny_tokenizer().tokenize(random_clip(frames=12))[1]
    assert not torch.equal(priority[:, 1], priority[:, 2])
    for first in (0, 3):
        assert torch.equal(priority[:, first], priority[:, first + 1])


def test_a_long_clip_is_tokenized_window_by_window():
    tokenizer, clip = tiny_tokenizer(), random_clip(frames=12)
    codes, priority = tokenizer.tokenize(clip)
    for window in range(2):
        frames, slots = slice(6 * window, 6 * window + 6), slice(3 * window, 3 * window + 3)
        alone = tokenizer.tokenize(clip[:, :, frames])
        assert torch.equal(codes[:, slots], alone[0])
        assert torch.allclose(priority[:, slots], alone[1])


def test_tokenizing_zeroes_no_token():
    tokenizer, clip = tiny_tokenizer(), random_clip()
    codes, _ = tokenizer.tokenize(clip)
    assert torch.equal(codes, tokenizer.quantizer.codes(tokenizer.quantizer(tokenizer.latents(clip))))


def test_codes_decode_to_what_was_reconstructed():
    tokenizer, clip = tiny_tokenizer(), random_clip()
    reconstruction = tokenizer(clip)
    assert torch.allclose(tokenizer.decode(reconstruction.codes), reconstruction.clip, atol=1e-6)


def test_decoding_works_window_by_window():
    tokenizer = tiny_tokenizer()
    codes, _ = tokenizer.tokenize(random_clip(frames=12))
    assert torch.allclose(tokenizer.decode(codes)[:, :, 6:], tokenizer.decode(codes[:, 3:]), atol=1e-6)


def cells_apart(tokenizer):
    """The tokenizer with nothing passing between cells of a grid, so that what a token covers shows exactly."""
    for module in tokenizer.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size == (3, 3, 3):
            centre = module.weight.data[..., 1:2, 1:2, 1:2]
            module.weight.data = torch.nn.functional.pad(centre, (1, 1, 1, 1, 1, 1))
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    return tokenizer


@pytest.mark.parametrize("place", PLACES)
def test_a_token_covers_the_pixels_of_the_patch_at_the_same_position(place):
    tokenizer, (t, h, w) = cells_apart(tiny_tokenizer()), place
    position = (t * GRID.h + h) * GRID.w + w
    clip = random_clip(batch=1)
    touched = clip.clone()
    touched[:, :, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8] *= 0.5
    rows = (patchify(touched, TINY.patching) != patchify(clip, TINY.patching)).any(dim=2)
    assert rows[0].nonzero().flatten().tolist() == [position]
    changed = (tokenizer.latents(touched) != tokenizer.latents(clip)).any(dim=-1)
    assert changed.flatten().nonzero().flatten().tolist() == [position]


@pytest.mark.parametrize("place", PLACES)
def test_a_code_rebuilds_the_pixels_of_the_patch_at_the_same_position(place):
    tokenizer = cells_apart(tiny_tokenizer())
    codes = torch.full((1, *GRID), tokenizer.quantizer.centre_code)
    other = codes.clone()
    other[0][place] = 0
    rows = patchify(tokenizer.decode(other) != tokenizer.decode(codes), TINY.patching).any(dim=2)
    assert rows[0].nonzero().flatten().tolist() == [(place[0] * GRID.h + place[1]) * GRID.w + place[2]]


def test_tokenizing_leaves_no_graph_behind():
    codes, priority = tiny_tokenizer().tokenize(random_clip())
    assert not codes.requires_grad
    assert not priority.requires_grad


def test_a_clip_of_another_length_is_refused():
    with pytest.raises(ValueError, match="6 frames, the clip 12"):
        tiny_tokenizer()(random_clip(frames=12))


@pytest.mark.parametrize("top_k", [12, 37])
def test_a_count_that_does_not_fit_the_window_is_refused(top_k):
    with pytest.raises(ValueError, match=rf"keeps {top_k} tokens; a window has 36.*keeps 12"):
        tiny_tokenizer(top_k=top_k)(random_clip())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channel_multipliers": (1, 2, 4)}, "channel_multipliers has 3"),
        ({"stem_patch_px": 3, "channel_multipliers": (1, 2)}, "stem_patch_px 3"),
        ({"window_frames": 5}, "window_frames 5"),
        ({"window_frames": 2}, "window_frames 2"),
        ({"patching": {"tubelet_frames": 6, "patch_px": 8}}, "window_frames 6"),
        ({"window_frames": 12, "patching": {"tubelet_frames": 3, "patch_px": 8}}, "tubelet_frames 3"),
        ({"levels": (2, 8)}, "levels"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_by_name(changes, named):
    with pytest.raises(ValidationError, match=named):
        Config.model_validate(TINY.model_dump() | changes)


def test_the_configuration_survives_json():
    for config in (TINY, Config()):
        again = Config.model_validate_json(config.model_dump_json())
        assert again == config
        assert type(again.top_k) is type(config.top_k)
