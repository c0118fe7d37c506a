"""Stored motion is cut like the pixels: a token's vector is the mean over the frames and pixels that it shows."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from models.grid import Patching
from stages.errors import ArtifactDamaged
from stages.products.codec_motion import Config, overlaps
from stages.video_command import H264
from tests.stages.products.footage import any_motion, footage
from tests.stages.videos import changed, cut, write_video

SIZE_PX, NUM_FRAMES = 64, 12


def per_pixel(
    motion: npt.NDArray[np.int8], patching: Patching, *, start_frame: int, y_px: int, x_px: int, flip: bool
) -> npt.NDArray[np.float64]:
    """The same by brute force: a vector for every pixel of every stored frame, cut, mirrored, and averaged over tokens."""
    dense = (motion / 4).repeat(2, axis=0).repeat(16, axis=1).repeat(16, axis=2)
    view = dense[start_frame : start_frame + NUM_FRAMES, y_px : y_px + SIZE_PX, x_px : x_px + SIZE_PX]
    if flip:
        view = view[:, :, ::-1] * [-1, 1]
    frames, side = patching.tubelet_frames, patching.patch_px
    blocks = view.reshape(NUM_FRAMES // frames, frames, SIZE_PX // side, side, SIZE_PX // side, side, 2)
    means: npt.NDArray[np.float64] = blocks.mean(axis=(1, 3, 5))
    return means


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("start_frame", [0, 1, 4, 7])
@pytest.mark.parametrize(("y_px", "x_px"), [(0, 0), (16, 32), (5, 11), (31, 1)])
@pytest.mark.parametrize(("tubelet_frames", "patch_px"), [(2, 16), (3, 8), (1, 32), (4, 4)])
def test_every_token_has_the_mean_of_its_pixels(
    flip: bool, start_frame: int, y_px: int, x_px: int, tubelet_frames: int, patch_px: int
) -> None:
    motion, patching = any_motion(10, 6, 7), Patching(tubelet_frames=tubelet_frames, patch_px=patch_px)
    pixels = np.zeros((NUM_FRAMES, SIZE_PX, SIZE_PX, 3), np.uint8)
    view = footage(pixels, motion, patching=patching, start_frame=start_frame, y_px=y_px, x_px=x_px, flip=flip)
    expected = per_pixel(motion, patching, start_frame=start_frame, y_px=y_px, x_px=x_px, flip=flip)
    assert (Config().compute(view) == expected.astype(np.float16)).all()


def test_overlaps_are_lengths_in_common() -> None:
    assert overlaps(2, 3, 4, 2, offset=1).tolist() == [[1, 2, 0, 0], [0, 0, 2, 1]]


def test_motion_that_ends_before_the_view_is_damage() -> None:
    pixels = np.zeros((NUM_FRAMES, SIZE_PX, SIZE_PX, 3), np.uint8)
    assert Config().compute(footage(pixels, any_motion(6, 4, 4))).shape == (6, 4, 4, 2)
    for changes in ({"start_frame": 1}, {"y_px": 1}, {"x_px": 1}):
        with pytest.raises(ArtifactDamaged, match=r"clip clip: its stored motion is \[6, 4, 4, 2\], too small"):
            Config().compute(footage(pixels, any_motion(6, 4, 4), **changes))


def test_a_real_clip_that_pans_has_its_pan_in_every_token(tmp_path: Path) -> None:
    source = np.random.default_rng(0).integers(0, 255, (40, 60)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    frames = np.stack([source[100:164, 200 - 3 * number :][:, :96] for number in range(32)])
    clip = changed(num_frames=32, size_px=64, motion_vectors=True, encoding=H264(preset="medium", crf=12))
    data = cut(write_video(tmp_path / "a.mp4", np.repeat(frames[..., None], 3, axis=-1)), clip).segments[0].motion
    assert data is not None
    view = footage(np.zeros((24, 48, 48, 3), np.uint8), np.load(io.BytesIO(data)), start_frame=3, y_px=9, x_px=21)
    vectors = Config().compute(view).reshape(-1, 2)
    np.testing.assert_allclose(np.median(vectors, axis=0), [3, 0], atol=0.3)
    turned = Config().compute(view._replace(view=footage(view.pixels, start_frame=3, y_px=9, x_px=21, flip=True).view))
    np.testing.assert_allclose(np.median(turned.reshape(-1, 2), axis=0), [-3, 0], atol=0.3)
