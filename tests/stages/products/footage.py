"""Made-up views for the tests of products: a textured square over a textured ground, and motion of any kind."""

import dataclasses

import cv2
import numpy as np
import numpy.typing as npt

from models.grid import Patching
from stages.products import Footage
from stages.views import View

SQUARE_PX = 64


def texture(size_px: int, seed: int) -> npt.NDArray[np.float64]:
    """A smooth random picture, mid grey, with a spread that stays within 0 and 255."""
    noise = np.random.default_rng(seed).normal(size=(size_px, size_px))
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return smooth / smooth.std() * 35 + 128


def square_moving_right(num_frames: int, *, step_px: int, size_px: int = 128, first_px: int = 24) -> npt.NDArray[np.uint8]:
    """Frames [T H W 3] of a square of 64 px in the middle rows that goes right over a ground that stands still."""
    frames = np.stack([texture(size_px, 0)] * num_frames)
    square, top = texture(SQUARE_PX, 1), (size_px - SQUARE_PX) // 2
    for number, frame in enumerate(frames):
        left = first_px + number * step_px
        frame[top : top + SQUARE_PX, left : left + SQUARE_PX] = square
    return np.repeat(frames.clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def footage(pixels: npt.NDArray[np.uint8], motion: npt.NDArray[np.int8] | None = None, *, patching: Patching | None = None,
            **changes: object) -> Footage:  # fmt: skip
    """A view of these frames, all of them recorded unless ``changes`` of the view say otherwise."""
    view = View("clip", 0, 0, 0, 0, pixels.shape[1], False, len(pixels))
    return Footage(pixels, dataclasses.replace(view, **changes), patching or Patching(), motion)  # type: ignore[arg-type]


def any_motion(*shape: int, seed: int = 0) -> npt.NDArray[np.int8]:
    """A stored motion grid [tubelets rows columns 2] of any vectors."""
    return np.random.default_rng(seed).integers(-127, 128, (*shape, 2)).astype(np.int8)
