"""Flow energy is what moves, in pixels of the view per frame, wherever the view's pixels came from."""

from collections.abc import Iterator

import cv2
import numpy as np
import pytest

from stages.products.flow import Config
from tests.stages.products.footage import footage, square_moving_right

FINE = Config(preset="medium")
STEP_PX = 2


@pytest.fixture
def threads() -> Iterator[None]:
    """Leaves OpenCV with as many threads as it had."""
    before = cv2.getNumThreads()
    yield
    cv2.setNumThreads(before)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize(
    ("preset", "size_px", "share"), [("ultrafast", 128, 0.1), ("fast", 128, 0.2), ("fast", 224, 0.1), ("medium", 128, 0.02)]
)
def test_a_moving_square_has_its_speed_and_the_ground_has_none(preset: str, size_px: int, share: float, scale: int) -> None:
    """However large the view is in which the scene is seen."""
    frames = square_moving_right(8, step_px=STEP_PX).repeat(scale, axis=1).repeat(scale, axis=2)
    energy = Config.model_validate({"preset": preset, "size_px": size_px}).compute(footage(frames)).astype(np.float64)
    within = slice(3 * scale, 5 * scale)  # rows and columns 48 to 80 of the scene: the square in every frame
    np.testing.assert_allclose(energy[:, within, within], STEP_PX * scale, rtol=share)
    np.testing.assert_allclose(energy[:, [0, -1]], 0, atol=0.05 * scale)


def test_the_first_frame_counts_as_the_second() -> None:
    frames = square_moving_right(4, step_px=STEP_PX)
    stopped = np.concatenate([frames[:2], frames[1:2], frames[1:2]])
    energy = FINE.compute(footage(stopped))
    assert energy[0, 3:5, 3:4].mean() == pytest.approx(STEP_PX, rel=0.1)
    assert not energy[1].any()


def test_a_mirrored_view_has_the_mirrored_map() -> None:
    frames = square_moving_right(8, step_px=STEP_PX)
    plain = FINE.compute(footage(frames)).astype(np.float64)
    turned = FINE.compute(footage(frames[:, :, ::-1], flip=True)).astype(np.float64)
    np.testing.assert_allclose(turned[:, :, ::-1], plain, atol=0.15)
    assert np.abs(turned - plain).max() > 0.5, "the square is not in the middle"


def test_motion_upwards_counts_like_motion_to_the_right() -> None:
    frames = square_moving_right(6, step_px=STEP_PX)
    right = FINE.compute(footage(frames)).astype(np.float64)
    up = FINE.compute(footage(frames.swapaxes(1, 2)[:, ::-1])).astype(np.float64)
    np.testing.assert_allclose(up[:, ::-1].swapaxes(1, 2), right, atol=0.15)


def test_a_small_view_is_enlarged_and_keeps_its_unit() -> None:
    small = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in square_moving_right(6, step_px=4)])
    energy = FINE.compute(footage(small, num_real_frames=6))
    assert energy.shape == (3, 2, 2)
    assert 0.1 < energy.mean() < 1.0, "the square moves 1 px per frame in a quarter of the view"


@pytest.mark.parametrize("preset", ["ultrafast", "fast", "medium"])
@pytest.mark.usefixtures("threads")
def test_the_number_of_threads_changes_nothing(preset: str) -> None:
    view = footage(square_moving_right(4, step_px=STEP_PX))
    product = Config.model_validate({"preset": preset, "size_px": 224})
    found = []
    for num_threads in (1, 2, 3, 7):
        cv2.setNumThreads(num_threads)
        found.append(product.compute(view).tobytes())
    assert len(set(found)) == 1


def test_computing_leaves_opencvs_threads_alone() -> None:
    before = cv2.getNumThreads()
    Config().compute(footage(square_moving_right(2, step_px=STEP_PX)))
    assert cv2.getNumThreads() == before
