"""Tokenizers: what every file of the folder must do, windows over long clips, the adaptive one, and the linear one."""

import math

import pytest
import torch
from pydantic import ValidationError

from models.extension import load, names
from models.grid import Grid, Patching, patchify, unpatchify
from models.quantizers import fsq, lfq
from models.tokenizers import Tokenizer, WindowConfig, slot_distance
from models.tokenizers.adaptive import VARIANTS, AdaptiveTokenizer, Config
from models.tokenizers.linear import Config as Linear
from models.tokenizers.linear import lowest_frequencies

TINY = Config(
    window_frames=6,
    patching=Patching(tubelet_frames=2, patch_px=8),
    quantizer=fsq.Config(levels=(8, 5, 5)),
    top_k=0.6,
    base_channels=8,
    channel_multipliers=(1, 2),
    num_res_blocks=1,
    stem_patch_px=4,
    scorer_channels=6,
)
SHARED = {"window_frames": 6, "patching": TINY.patching, "quantizer": TINY.quantizer}
SMALL = {"adaptive": TINY.model_dump(exclude={"name"}), "linear": SHARED}
"""A tokenizer of every file for windows of 6 frames and tokens of 2 x 8 x 8; a new file needs no entry if these three do."""
GRID = Grid(3, 4, 3)
PLACES = [(0, 0, 0), (0, 3, 1), (1, 1, 2), (2, 2, 0)]


@pytest.fixture(params=names("models.tokenizers"))
def config(request):
    return load("models.tokenizers", {"name": request.param} | SMALL.get(request.param, SHARED))


@pytest.fixture
def tokenizer(config):
    torch.manual_seed(0)
    return config.build().eval()


def tiny_tokenizer(**changes):
    torch.manual_seed(0)
    return AdaptiveTokenizer(TINY.model_copy(update=changes)).eval()


def random_clip(frames=6, batch=2):
    return torch.rand(batch, 3, frames, 32, 24, generator=torch.Generator().manual_seed(1))


# What every tokenizer does.


def test_every_tokenizer_makes_one_code_and_one_priority_per_token(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    codes, priority = tokenizer.tokenize(random_clip(frames=12))
    assert codes.shape == priority.shape == (2, 6, 4, 3)
    assert codes.dtype == torch.int64
    assert codes.min() >= 0
    assert codes.max() < tokenizer.quantizer.codebook_size
    assert codes.unique().numel() > 1
    assert priority.dtype == torch.float32
    assert priority.isfinite().all()
    assert priority.min() >= 0


def test_every_tokenizer_decodes_codes_to_pixels_in_the_unit_range(tokenizer):
    codes = torch.randint(0, tokenizer.quantizer.codebook_size, (2, 6, 4, 3), generator=torch.Generator().manual_seed(0))
    clip = tokenizer.decode(codes)
    assert clip.shape == (2, 3, 12, 32, 24)
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert torch.allclose(clip[:, :, 6:], tokenizer.decode(codes[:, 3:]), atol=1e-6)


def test_every_tokenizer_rebuilds_a_window_from_its_codes(tokenizer):
    clip = random_clip()
    codes, _ = tokenizer.tokenize(clip)
    assert torch.allclose(tokenizer.decode(codes), tokenizer.reconstruct(clip).clamp(0, 1), atol=1e-5)


def test_every_tokenizer_zeroes_the_tokens_that_are_not_kept_before_they_are_quantized(tokenizer):
    clip, keep = random_clip(), torch.zeros(2, 3, 4, 3)
    keep[:, 1, 2, 0] = 1
    latents = tokenizer.latents(clip)
    codes = torch.full((2, 3, 4, 3), tokenizer.quantizer.zero_code)
    codes[:, 1, 2, 0] = tokenizer.quantizer.codes(tokenizer.quantizer(latents))[:, 1, 2, 0]
    assert torch.allclose(tokenizer.reconstruct(clip, keep).clamp(0, 1), tokenizer.decode(codes), atol=1e-5)
    assert torch.equal(tokenizer.reconstruct(clip, torch.ones_like(keep)), tokenizer.reconstruct(clip))


def test_every_tokenizer_finds_nothing_of_importance_in_a_still_image(tokenizer):
    still = torch.rand(1, 3, 1, 32, 24, generator=torch.Generator().manual_seed(2)).expand(-1, -1, 6, -1, -1)
    assert tokenizer.priority(still).abs().max() < 1e-5


def test_every_tokenizer_repeats_the_second_slot_of_a_clip_in_the_first(tokenizer):
    priority = tokenizer.priority(random_clip(frames=12))
    assert torch.equal(priority[:, 0], priority[:, 1])
    assert not torch.equal(priority[:, 1], priority[:, 2])


def test_every_tokenizer_ranks_in_full_precision_whatever_the_surroundings(tokenizer):
    clip = random_clip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        priority = tokenizer.priority(clip)
        codes, _ = tokenizer.tokenize(clip)
    assert torch.equal(priority, tokenizer.priority(clip))
    assert codes.max() < tokenizer.quantizer.codebook_size


def test_every_tokenizer_leaves_no_graph_behind(tokenizer):
    codes, priority = tokenizer.tokenize(random_clip())
    assert not codes.requires_grad
    assert not priority.requires_grad


def test_every_tokenizer_goes_on_from_its_state_dict(config, tokenizer):
    torch.manual_seed(1)
    other = config.build().eval()
    other.load_state_dict(tokenizer.state_dict())
    for one, two in zip(tokenizer.tokenize(random_clip()), other.tokenize(random_clip()), strict=True):
        assert torch.equal(one, two)


def test_every_configuration_survives_json(config):
    again = type(config).model_validate_json(config.model_dump_json())
    assert again == config
    assert load("models.tokenizers", config.model_dump(mode="json")) == config


@pytest.mark.parametrize("quantizer", [{"name": "lfq", "bits": 6}, {"name": "fsq", "levels": [5, 4, 3, 3]}])
def test_every_tokenizer_takes_every_quantizer(config, quantizer):
    other = type(config).model_validate(config.model_dump() | {"quantizer": quantizer}).build()
    codes, _ = other.tokenize(random_clip())
    assert codes.max() < other.quantizer.codebook_size
    assert other.decode(codes).isfinite().all()


def test_slots_are_measured_by_the_distance_of_their_features():
    features = torch.zeros(1, 2, 3, 1, 1)
    features[0, :, 1, 0, 0] = torch.tensor([3.0, 4.0])
    features[0, :, 2, 0, 0] = torch.tensor([3.0, 5.0])
    assert slot_distance(features).flatten().tolist() == [5, 5, 1]


# Windows over a long clip.


@pytest.mark.parametrize("stride", [2, 4])
def test_windows_that_overlap_give_the_tokens_of_their_last_frames(tokenizer, stride):
    clip = random_clip(frames=14)
    codes, priority = tokenizer.tokenize(clip, WindowConfig(stride_frames=stride))
    starts = list(range(0, 14 - 6 + 1, stride))
    assert list(tokenizer.window_starts(14, WindowConfig(stride_frames=stride))) == starts
    assert codes.shape == priority.shape == (2, 7, 4, 3)
    alone = {start: tokenizer.tokenize(clip[:, :, start : start + 6])[0] for start in starts}
    fresh = stride // 2
    expected = torch.cat([alone[0], *(alone[start][:, 3 - fresh :] for start in starts[1:])], dim=1)
    assert torch.equal(codes, expected)
    for slot in range(3, 7):  # the window that a slot's codes come from holds earlier frames, as many as there can be
        start = next(start for start in starts if start + 6 >= 2 * slot + 2)
        assert torch.equal(codes[:, slot], alone[start][:, slot - start // 2])


def test_overlap_changes_the_codes_of_a_network_that_looks_around():
    clip = random_clip(frames=12)
    plain, overlapping = (tiny_tokenizer().tokenize(clip, WindowConfig(stride_frames=stride))[0] for stride in (None, 2))
    assert torch.equal(plain[:, :3], overlapping[:, :3])
    assert not torch.equal(plain[:, 3:], overlapping[:, 3:])


def test_a_stride_of_a_whole_window_is_no_overlap(tokenizer):
    clip = random_clip(frames=12)
    for one, two in zip(tokenizer.tokenize(clip), tokenizer.tokenize(clip, WindowConfig(stride_frames=6)), strict=True):
        assert torch.equal(one, two)


def test_the_first_slot_of_every_window_repeats_the_second(tokenizer):
    clip = random_clip(frames=12)
    priority = tokenizer.tokenize(clip)[1]
    assert not torch.equal(priority[:, 1], priority[:, 2])
    for first in (0, 3):
        assert torch.equal(priority[:, first], priority[:, first + 1])
    alone = torch.cat([tokenizer.priority(clip[:, :, :6]), tokenizer.priority(clip[:, :, 6:])], dim=1)
    assert torch.allclose(priority, alone, atol=1e-6)


def test_looking_back_measures_the_first_slot_of_later_windows_against_the_slot_before(tokenizer):
    clip = random_clip(frames=12)
    repeated, back = (tokenizer.tokenize(clip, WindowConfig(first_slot=rule))[1] for rule in ("repeat", "look_back"))
    assert torch.equal(back, tokenizer.priority(clip))
    assert torch.equal(back[:, 0], back[:, 1]), "the very first slot has nothing to look back at"
    assert not torch.equal(back[:, 3], back[:, 4])
    assert torch.equal(back[:, [0, 1, 2, 4, 5]], repeated[:, [0, 1, 2, 4, 5]])
    pair = tokenizer.priority(clip[:, :, 4:8])  # the last slot of the first window and the first of the second
    assert torch.allclose(back[:, 3], pair[:, 1], atol=1e-6)


def test_where_windows_overlap_every_slot_but_the_first_has_one_before_it(tokenizer):
    clip = random_clip(frames=14)
    priority = tokenizer.tokenize(clip, WindowConfig(stride_frames=4))[1]
    assert torch.equal(priority, tokenizer.priority(clip))


@pytest.mark.parametrize("windows", [{}, {"stride_frames": 2}, {"first_slot": "look_back"}])
def test_how_many_windows_go_through_at_once_changes_nothing(tokenizer, windows):
    clip = random_clip(frames=18)
    codes, priority = tokenizer.tokenize(clip, WindowConfig(batch_windows=1, **windows))
    for count in (2, 3, 100):
        more = tokenizer.tokenize(clip, WindowConfig(batch_windows=count, **windows))
        assert torch.equal(more[0], codes)
        assert torch.equal(more[1], priority)


@pytest.mark.parametrize(
    ("frames", "stride", "message"),
    [
        (12, 3, "windows.stride_frames 3 must be a multiple of patching.tubelet_frames 2"),
        (12, 8, "no more than window_frames 6"),
        (12, 4, "12 frames are no windows of 6 frames, one every 4"),
        (14, None, "14 frames are no windows of 6 frames, one every 6"),
        (4, None, "4 frames are no windows of 6 frames"),
    ],
)
def test_a_stride_that_does_not_cover_the_clip_is_refused(tokenizer, frames, stride, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.tokenize(random_clip(frames=frames), WindowConfig(stride_frames=stride))


@pytest.mark.parametrize("change", [{"stride_frames": 0}, {"batch_windows": 0}, {"first_slot": "zero"}])
def test_windows_that_cannot_be_are_refused(change):
    with pytest.raises(ValidationError, match=next(iter(change))):
        WindowConfig(**change)


# The adaptive tokenizer.


@pytest.mark.parametrize("variant", VARIANTS)
def test_full_size_clips_of_every_variant_give_the_published_grids(variant):
    config = Config.model_validate({"variant": variant})
    with torch.device("meta"):
        tokenizer = config.build()
        reconstruction = tokenizer(torch.zeros(1, 3, 16, 224, 224))
        codes, priority = tokenizer.tokenize(torch.zeros(1, 3, 128, 224, 224))
    assert reconstruction.clip.shape == (1, 3, 16, 224, 224)
    assert reconstruction.codes.shape == reconstruction.priority.shape == reconstruction.keep.shape == (1, 8, 14, 14)
    # One code per tubelet of a masked autoencoder with the same patches.
    assert codes.shape == priority.shape == (1, *Patching().grid(128, 224)) == (1, 64, 14, 14)


def test_a_variant_stands_for_its_sizes_and_what_is_given_beside_it_wins():
    tiny = Config.model_validate({"variant": "tiny", "num_res_blocks": 3, "top_k": 0.5})
    assert (tiny.base_channels, tiny.channel_multipliers, tiny.stem_patch_px) == (32, (1, 2, 4), 4)
    assert (tiny.num_res_blocks, tiny.top_k) == (3, 0.5)
    assert Config.model_validate({"variant": "base"}) == Config()
    assert Config.model_validate({"variant": "large"}) == Config(base_channels=128)
    assert Config.model_validate(tiny.model_dump()) == tiny, "the sizes are what is written down, not the name"


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValidationError, match="unknown variant 'huge'; known: tiny, small, base, large"):
        Config.model_validate({"variant": "huge"})


def test_defaults_are_the_published_counts():
    config = Config()
    assert config.num_kept(8 * 14 * 14) == 768
    assert config.window_slots == 8
    stages = config.stages()
    assert [stage.shrink_t for stage in stages[:-1]] == [2, 1, 1, 1]
    assert [stage.shrink_px for stage in stages[:-1]] == [2] * 4


def test_the_first_slot_is_among_the_kept_or_comes_on_top_of_them():
    among, on_top = (Config(top_k=768, top_k_counts_first_slot=counts) for counts in (True, False))
    assert among.num_kept(1568) == 768
    assert on_top.num_kept(1568) == 768 + 14 * 14
    assert Config(top_k=768, top_k_counts_first_slot=False, keep_first_slot=False).num_kept(1568) == 768
    keep = tiny_tokenizer(top_k=5, top_k_counts_first_slot=False)(random_clip()).keep
    assert keep.sum(dim=(1, 2, 3)).tolist() == [17, 17]
    assert keep[:, 0].sum(dim=(1, 2)).tolist() == [12, 12]


def test_a_share_of_the_window_is_rounded_down_and_just_below_whole_counts_as_whole():
    assert Config(top_k=0.29, keep_first_slot=False).num_kept(100) == 29
    assert Config(top_k=0.5, keep_first_slot=False).num_kept(7) == 3


def test_the_linear_tokenizer_gives_the_published_grid_too():
    codes, priority = Linear().build().tokenize(torch.rand(1, 3, 32, 224, 224))
    assert codes.shape == priority.shape == (1, *Patching().grid(32, 224)) == (1, 16, 14, 14)


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


def test_a_token_that_is_not_kept_becomes_the_zero_code():
    tokenizer = tiny_tokenizer()
    reconstruction = tokenizer(random_clip())
    dropped = reconstruction.keep == 0
    assert dropped.any()
    assert (reconstruction.codes[dropped] == tokenizer.quantizer.zero_code).all()
    assert (reconstruction.codes[~dropped] != tokenizer.quantizer.zero_code).any()


def test_a_kept_token_that_has_the_zero_code_by_itself_is_told_apart():
    tokenizer = tiny_tokenizer()
    last = tokenizer.encoder[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    reconstruction = tokenizer(random_clip())
    assert (reconstruction.codes == tokenizer.quantizer.zero_code).all()
    assert reconstruction.keep.sum(dim=(1, 2, 3)).tolist() == [21, 21]


def test_tokens_are_drawn_by_the_generator_that_is_given():
    tokenizer = tiny_tokenizer(selection=load("models.selection", {"name": "gumbel", "noise": 3.0}))
    keeps = [tokenizer(random_clip(), torch.Generator().manual_seed(seed)).keep for seed in (0, 0, 1)]
    assert torch.equal(keeps[0], keeps[1])
    assert not torch.equal(keeps[0], keeps[2])
    assert (keeps[2][:, 0] == 1).all(), "the first slot is never drawn for"
    assert torch.equal(tokenizer(random_clip()).keep, tiny_tokenizer()(random_clip()).keep)


def test_the_penalty_is_the_quantizers_on_all_latents():
    clip = random_clip()
    assert tiny_tokenizer()(clip).penalty == 0
    tokenizer = tiny_tokenizer(quantizer=lfq.Config(bits=6))
    penalty = tokenizer(clip).penalty
    assert torch.equal(penalty, tokenizer.quantizer.penalty(tokenizer.latents(clip)))
    assert penalty != 0


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
    codes = torch.full((1, *GRID), tokenizer.quantizer.zero_code)
    other = codes.clone()
    other[0][place] = 0
    rows = patchify(tokenizer.decode(other) != tokenizer.decode(codes), TINY.patching).any(dim=2)
    assert rows[0].nonzero().flatten().tolist() == [(place[0] * GRID.h + place[1]) * GRID.w + place[2]]


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
        ({"quantizer": {"name": "fsq", "levels": (2, 8)}}, "levels"),
        ({"quantizer": "fsk"}, "unknown name 'fsk' in models.quantizers; known: fsq, lfq"),
        ({"selection": "top"}, "unknown name 'top' in models.selection"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_by_name(changes, named):
    with pytest.raises(ValidationError, match=named):
        Config.model_validate(TINY.model_dump() | changes)


# The linear tokenizer.


COARSE = Patching(tubelet_frames=2, patch_px=4)


def fine_linear():
    """A linear tokenizer of 5 channels with so many levels that little is lost by rounding."""
    return Linear(window_frames=4, patching=COARSE, quantizer={"name": "fsq", "levels": (63,) * 5}).build()


def clip_of(patches):
    return unpatchify(patches, COARSE, Grid(2, 3, 2))


def test_the_linear_tokenizer_has_nothing_to_train():
    assert not Linear.is_trained
    assert not list(fine_linear().parameters())
    assert set(fine_linear().state_dict()) == {"basis", "mean", "scale", "table"}


@pytest.mark.parametrize("count", [3, 6, 20])
def test_the_directions_of_the_block_transform_are_orthonormal(count):
    basis, spread = lowest_frequencies(Patching(), count)
    assert basis.shape == (count, Patching().patch_dim)
    assert torch.allclose(basis @ basis.T, torch.eye(count), atol=1e-5)
    assert (spread > 0).all()


def test_the_first_direction_is_brightness_and_the_last_two_are_colour():
    basis, _ = lowest_frequencies(COARSE, 5)
    pixels = basis.view(5, -1, 3)
    assert torch.allclose(pixels[[0, 3, 4]], pixels[[0, 3, 4], :1].expand(-1, 32, -1)), "flat over the patch"
    assert torch.allclose(pixels[0, 0] / pixels[0, 0].sum(), torch.tensor([0.299, 0.587, 0.114]), atol=1e-5)
    assert torch.allclose((pixels[3:, 0] @ pixels[0, 0]), torch.zeros(2), atol=1e-6)
    assert torch.allclose(pixels[1:3].sum(dim=1), torch.zeros(2, 3), atol=1e-5), "waves have no mean"


@pytest.mark.parametrize("given", [False, True])
def test_patches_that_the_directions_span_are_rebuilt_up_to_quantization(given):
    tokenizer, source = fine_linear(), torch.Generator().manual_seed(0)
    if given:  # such as principal components from a file
        basis = torch.linalg.qr(torch.randn(COARSE.patch_dim, 5, generator=source)).Q.T
        mean, scale = torch.rand(COARSE.patch_dim, generator=source), torch.linspace(0.2, 0.9, 5)
        tokenizer.load_state_dict(tokenizer.state_dict() | {"basis": basis, "mean": mean, "scale": scale})
    latents = torch.rand(2, 12, 5, generator=source) * 2 - 1
    clip = clip_of((latents * tokenizer.scale) @ tokenizer.basis + tokenizer.mean)
    assert torch.allclose(tokenizer.latents(clip).reshape(2, 12, 5), latents, atol=1e-4)
    error = (tokenizer.reconstruct(clip) - clip).square().sum(dim=(1, 2, 3, 4))
    # Half a level of 31 on either side of zero, where the squashing is least steep, at a latent of 1.
    bound = 12 * (tokenizer.scale * 0.5 / 31 / (1 - math.tanh(1) ** 2)).square().sum() * 1.1
    assert (error < bound).all()
    assert (error > 0).all()


def test_what_the_directions_do_not_span_is_left_out():
    tokenizer = fine_linear()
    outside = torch.randn(1, 12, COARSE.patch_dim, generator=torch.Generator().manual_seed(1)) * 0.1
    outside -= outside @ tokenizer.basis.T @ tokenizer.basis
    rebuilt = patchify(tokenizer.reconstruct(clip_of(outside + tokenizer.mean)), COARSE)
    assert (rebuilt - tokenizer.mean).abs().max() < 0.01


def test_a_zeroed_token_of_the_linear_tokenizer_is_the_mean_patch():
    tokenizer = fine_linear()
    rebuilt = tokenizer.reconstruct(torch.rand(1, 3, 4, 12, 8), torch.zeros(1, 2, 3, 2))
    assert torch.allclose(rebuilt, torch.full_like(rebuilt, 0.5), atol=0.01)


def test_signs_are_rebuilt_as_the_mean_of_their_half():
    tokenizer = Linear(window_frames=4, patching=COARSE, quantizer=lfq.Config(bits=4)).build()
    assert torch.allclose(tokenizer.table, torch.tensor([-1.5, 1.5]).expand(4, 2), atol=1e-3)


def test_fewer_channels_than_brightness_and_two_colours_are_refused():
    with pytest.raises(ValidationError, match="quantizer has 2 channels; brightness and colour need 3"):
        Linear(quantizer=fsq.Config(levels=(8, 8)))
