"""Motion vectors say where things moved, in quarter pixels per frame, and nothing where nothing is known."""

import io
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from stages.video_command import H264
from stages.video_motion import motion, motion_file
from tests.stages.videos import changed, cut, write_video

CLIP = changed(num_frames=32, size_px=64, motion_vectors=True, encoding=H264(preset="medium", crf=12))
COLUMNS = ("source", "w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


class Frame:
    """A frame as the grid sees it."""

    def __init__(self, is_anchor: bool, *vectors: tuple[int, ...]) -> None:
        self.is_anchor = is_anchor
        self.vectors = np.array(list(vectors), [(name, "i4") for name in COLUMNS]) if vectors else None


def moving(step_yx_px: tuple[int, int], num_frames: int = 32) -> np.ndarray:
    """Frames [T 64 96 3] of a smooth texture that moves by so many pixels per frame."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(400, 400)), 2.0)
    texture = (texture / texture.std() * 40 + 128).clip(0, 255).astype(np.uint8)
    grey = [texture[150 - step_yx_px[0] * t :, 150 - step_yx_px[1] * t :][:64, :96] for t in range(num_frames)]
    return np.repeat(np.stack(grey)[..., None], 3, axis=-1)


@pytest.mark.parametrize("step_yx_px", [(1, 3), (-2, -1)])
def test_a_moving_picture_has_its_motion_in_every_inner_cell(tmp_path: Path, step_yx_px: tuple[int, int]) -> None:
    made = cut(write_video(tmp_path / "a.mp4", moving(step_yx_px)), CLIP)
    data = made.segments[0].motion
    assert data is not None
    grid = np.load(io.BytesIO(data), allow_pickle=False)
    assert (grid.shape, grid.dtype) == ((16, 4, 6, 2), np.int8)
    inner = grid[1:-1, 1:-1, 1:-1].reshape(-1, 2)
    expected = np.array([step_yx_px[1], step_yx_px[0]]) * 4
    assert np.abs(np.median(inner, axis=0) - expected).max() <= 1
    assert (np.abs(inner - expected).max(axis=1) <= 2).mean() > 0.8


def test_a_picture_at_rest_does_not_move_and_sizes_round_up(tmp_path: Path) -> None:
    made = cut(write_video(tmp_path / "a.mp4", moving((0, 0), 7)[:, :48, :56]), CLIP)
    grid = np.load(io.BytesIO(made.segments[0].motion or b""), allow_pickle=False)
    assert grid.shape == (4, 4, 5, 2)  # 7 frames of 74 x 64 pixels
    assert not grid.any()


def test_the_same_clip_gives_the_same_bytes(tmp_path: Path) -> None:
    made = cut(write_video(tmp_path / "a.mp4", moving((1, 2), 16)), CLIP)
    assert motion_file(made.segments[0].video) == made.segments[0].motion


def test_a_vector_counts_per_frame_of_its_distance_and_by_its_area() -> None:
    past = (-1, 16, 16, 8, 8, -24, 8, 4)
    future = (1, 16, 16, 24, 8, 8, 0, 4)
    halves = ((-1, 16, 8, 8, 20, -4, 0, 4), (-1, 16, 8, 8, 28, -12, 0, 4))
    frames = [Frame(True), Frame(False, past, future), Frame(False), Frame(True, *halves)]
    grid = motion(frames, height_px=32, width_px=32)
    assert grid.shape == (2, 2, 2, 2)
    assert grid[0, 0, 0].tolist() == [24, -8], "one frame back: the way it came"
    assert grid[0, 0, 1].tolist() == [4, 0], "two frames ahead: half of the way it will go"
    assert grid[1, 1, 0].tolist() == [round(8 / 3), 0], "three frames back, the mean of both halves"
    assert not grid[1, 0].any()
    assert not grid[0, 1].any()


def test_far_vectors_are_limited_and_frames_without_any_are_zero() -> None:
    grid = motion([Frame(True), Frame(True, (-1, 16, 16, 8, 8, -4000, 4000, 4))], height_px=16, width_px=16)
    assert grid.tolist() == [[[[127, -127]]]]
    assert motion([Frame(True)] * 3, height_px=17, width_px=16).tolist() == np.zeros((2, 2, 1, 2)).tolist()
