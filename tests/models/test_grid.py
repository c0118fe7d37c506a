"""Tokens and pixels: which belongs to which, in one order everywhere."""

import pytest
import torch

from models.grid import Grid, Patching, gather_tokens, patchify, unpatchify

SMALL = Patching(tubelet_frames=2, patch_px=4)


def test_published_clips_give_the_published_grids():
    assert Patching().grid(16, 224) == Grid(8, 14, 14)
    assert Patching().grid(128, 224) == Grid(64, 14, 14)
    assert Patching().grid(128, 224).num_tokens == 12_544
    assert Patching().patch_dim == 1536


@pytest.mark.parametrize(("num_frames", "size_px", "named"), [(15, 224, "15.*2"), (16, 220, "220.*16"), (0, 224, "0.*2")])
def test_a_clip_that_leaves_part_of_a_patch_is_refused_with_both_numbers(num_frames, size_px, named):
    with pytest.raises(ValueError, match=named):
        Patching().grid(num_frames, size_px)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_unpatchify_undoes_patchify(dtype):
    clip = torch.randint(0, 256, (2, 3, 4, 8, 12)).to(dtype)
    patches = patchify(clip, SMALL)
    assert patches.dtype == dtype
    assert torch.equal(unpatchify(patches, SMALL, Grid(2, 2, 3)), clip)


def test_a_pixel_lands_in_the_token_of_its_slot_row_and_column():
    grid = Grid(2, 2, 3)
    for t, h, w in [(0, 0, 0), (0, 1, 2), (1, 0, 1), (1, 1, 2)]:
        clip = torch.zeros(1, 3, 4, 8, 12)
        clip[0, :, 2 * t : 2 * t + 2, 4 * h : 4 * h + 4, 4 * w : 4 * w + 4] = 1
        touched = patchify(clip, SMALL)[0].sum(dim=1)
        expected = torch.zeros(grid.num_tokens)
        expected[(t * grid.h + h) * grid.w + w] = SMALL.patch_dim
        assert torch.equal(touched, expected)


def test_values_in_a_patch_run_over_frame_row_column_channel():
    clip = torch.zeros(1, 3, 2, 4, 4)
    clip[0, 2, 1, 3, 1] = 1
    assert patchify(clip, SMALL).flatten().argmax() == ((1 * 4 + 3) * 4 + 1) * 3 + 2


def test_gathered_tokens_keep_the_order_of_the_index():
    tokens = torch.arange(2 * 5 * 3).reshape(2, 5, 3)
    index = torch.tensor([[4, 0], [1, 1]])
    gathered = gather_tokens(tokens, index)
    assert torch.equal(gathered[0], tokens[0, [4, 0]])
    assert torch.equal(gathered[1], tokens[1, [1, 1]])
