"""The adaptive tokenizer: grids, selection, windows, and the one-to-one match of codes and patches."""

import pytest
import torch
from pydantic import ValidationError

from models.grid import Grid, Patching, patchify
from models.tokenizer import AdaptiveTokenizer, Config

TINY = Config(
    window_frames=4,
    patching=Patching(tubelet_frames=2, patch_px=8),
    levels=(8, 5, 5),
    top_k=0.5,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    stem_patch_px=4,
    scorer_channels=6,
)


def tiny_tokenizer(**changes):
    torch.manual_seed(0)
    return AdaptiveTokenizer(TINY.model_copy(update=changes)).eval()


def random_clip(frames=4, batch=2):
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
    assert AdaptiveTokenizer.__init__ is not None
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
    keep = tiny_tokenizer(top_k=15)(random_clip()).keep
    assert keep.sum(dim=(1, 2, 3)).tolist() == [15, 15]
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


def test_a_still_clip_has_no_priority_and_a_moving_place_has_the_highest():
    tokenizer = tiny_tokenizer()
    clip = torch.rand(1, 3, 1, 32, 24).expand(-1, -1, 4, -1, -1).clone()
    assert tokenizer.priority(clip).abs().max() < 1e-5
    clip[:, :, 2:, 16:24, 8:16] = 1 - clip[:, :, 2:, 16:24, 8:16]
    priority = tokenizer.priority(clip)[0]
    assert priority[1].argmax() == 2 * 3 + 1


def test_the_first_slot_of_every_window_repeats_the_second():
    priority = tiny_tokenizer().tokenize(random_clip(frames=12))[1]
    for first in (0, 2, 4):
        assert torch.equal(priority[:, first], priority[:, first + 1])


def test_a_long_clip_is_tokenized_window_by_window():
    tokenizer, clip = tiny_tokenizer(), random_clip(frames=8)
    codes, priority = tokenizer.tokenize(clip)
    for window in range(2):
        part = tokenizer.tokenize(clip[:, :, 4 * window : 4 * window + 4])
        assert torch.equal(codes[:, 2 * window : 2 * window + 2], part[0])
        assert torch.allclose(priority[:, 2 * window : 2 * window + 2], part[1])


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
    codes, _ = tokenizer.tokenize(random_clip(frames=8))
    assert torch.allclose(tokenizer.decode(codes)[:, :, 4:], tokenizer.decode(codes[:, 2:]), atol=1e-6)


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 3, 1), (1, 1, 2), (1, 2, 0)])
def test_a_token_of_the_tokenizer_covers_the_pixels_of_the_same_patch(place):
    tokenizer, grid = tiny_tokenizer(), Grid(2, 4, 3)
    t, h, w = place
    position = (t * grid.h + h) * grid.w + w
    clip = torch.full((1, 3, 4, 32, 24), 0.5)
    touched = clip.clone()
    touched[:, :, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8] += 0.3
    rows = (patchify(touched, TINY.patching) != patchify(clip, TINY.patching)).any(dim=2)
    assert rows[0].nonzero().flatten().tolist() == [position]
    change = (tokenizer.latents(touched) - tokenizer.latents(clip)).norm(dim=-1)
    assert change.flatten().argmax() == position


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 3, 1), (1, 1, 2), (1, 2, 0)])
def test_a_code_rebuilds_the_pixels_of_the_same_patch(place):
    tokenizer, grid = tiny_tokenizer(), Grid(2, 4, 3)
    position = (place[0] * grid.h + place[1]) * grid.w + place[2]
    codes = torch.full((1, *grid), tokenizer.quantizer.centre_code)
    other = codes.clone()
    other[0][place] = 0
    change = (tokenizer.decode(other) - tokenizer.decode(codes)).abs()
    assert patchify(change, TINY.patching).sum(dim=2).argmax() == position


def test_tokenizing_leaves_no_graph_behind():
    codes, priority = tiny_tokenizer().tokenize(random_clip())
    assert not codes.requires_grad
    assert not priority.requires_grad


def test_a_clip_of_another_length_is_refused():
    with pytest.raises(ValueError, match="4 frames, the clip 8"):
        tiny_tokenizer()(random_clip(frames=8))


@pytest.mark.parametrize("top_k", [12, 25])
def test_a_count_that_does_not_fit_the_window_is_refused(top_k):
    with pytest.raises(ValueError, match=rf"keeps {top_k} tokens; a window has 24.*keeps 12"):
        tiny_tokenizer(top_k=top_k)(random_clip())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"channel_multipliers": (1, 2, 4)}, "channel_multipliers has 3"),
        ({"stem_patch_px": 3, "channel_multipliers": (1, 2)}, "stem_patch_px 3"),
        ({"window_frames": 5}, "window_frames 5"),
        ({"window_frames": 2}, "window_frames 2"),
        ({"patching": {"tubelet_frames": 4, "patch_px": 8}}, "window_frames 4"),
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
