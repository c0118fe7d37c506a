"""A film is a whole WebM file, the same every time, and shows the pixels that it was given, frame by frame."""

import dataclasses
import io

import av
import numpy as np
import pytest

from stages import film, overlays
from stages.pictures import RANDOM, TOP, UNUSED, VISIBLE, Picture
from stages.video_web import encode_webm

SIDE_PX, NUM_FRAMES, NUM_RECORDED = 32, 8, 6


def picture(predicted: bool = True) -> Picture:
    """A clip of smooth frames, each brighter than the one before."""
    ramp = np.linspace(40, 140, SIDE_PX)
    clip = np.stack([np.stack([ramp[:, None] + ramp[None] / 4 + 8 * time] * 3, axis=-1) for time in range(NUM_FRAMES)])
    original = clip.astype(np.uint8)
    return Picture(
        original=original,
        tokenized=original // 2,
        predicted=255 - original if predicted else None,
        priority=np.arange(16, dtype=np.float32).reshape(4, 2, 2),
        roles=np.array([[[VISIBLE, TOP], [RANDOM, UNUSED]]] * 4),
        num_recorded_frames=NUM_RECORDED,
        tokenizer_psnr_db=20.0,
        unexplained_share=0.5 if predicted else None,
    )


def decoded(data: bytes) -> np.ndarray:
    with av.open(io.BytesIO(data)) as container:
        assert container.streams.video[0].codec_context.name in ("vp9", "libvpx-vp9")
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def panel(frame: np.ndarray, place: int) -> np.ndarray:
    """A panel of the film, at the size of the clip."""
    scale = round(192 / SIDE_PX)
    y, x = film._corner(place, SIDE_PX * scale)
    cell = frame[y : y + SIDE_PX * scale, x : x + SIDE_PX * scale]
    return cell[scale // 2 :: scale, scale // 2 :: scale]


def test_a_film_is_the_same_every_time() -> None:
    assert film.film(picture()) == film.film(picture())


def test_a_film_shows_the_recorded_frames_and_no_other() -> None:
    shown = decoded(film.film(picture()))
    assert len(shown) == NUM_RECORDED
    for number, frame in enumerate(shown):
        error = np.abs(panel(frame, 0).astype(int) - picture().original[number].astype(int)).mean()
        assert error < 3, "less than the difference between two frames"


def test_only_what_the_encoder_saw_is_in_its_panel_and_it_is_outlined_among_the_predictions() -> None:
    first = next(film.frames(picture()))
    half = SIDE_PX // 2
    given = panel(first, 1)
    assert (given[:half, :half] == picture().original[0, :half, :half]).all()
    assert len(np.unique(given[half:])) == 1, "the rest is blank"
    predicted = panel(first, 2)
    assert (predicted[half:, half:] == 255 - picture().original[0, half:, half:]).all()
    blue = (np.array(overlays.role_colours(np.array(VISIBLE))) * 255).round()
    assert (predicted[0, :half] == blue).all()


def test_priority_is_bright_where_it_is_high_among_recorded_frames() -> None:
    last = list(film.frames(picture()))[-1]
    shown = panel(last, 4).astype(int)
    half = SIDE_PX // 2
    assert shown[half:, half:].sum() > shown[:half, :half].sum()
    everywhere = overlays.heat(picture().priority[:3])
    assert everywhere[2, 1, 1].sum() > everywhere[0, 0, 0].sum()


def test_the_bar_grows_with_the_clip() -> None:
    rows = [frame[-4] for frame in film.frames(picture())]
    blue = [int((row == (0, 114, 178)).all(axis=-1).sum()) for row in rows]
    assert blue == sorted(set(blue))
    assert blue[-1] == rows[0].shape[0] - 16


def test_without_predictions_there_is_one_panel_less_and_no_blank_claims_to_be_one() -> None:
    with_them, without = (next(film.frames(picture(shown))) for shown in (True, False))
    assert with_them.shape == without.shape
    assert (panel(without, 5) == 255).all()
    assert (panel(without, 2) == picture().tokenized[0]).all()


def test_a_picture_with_one_recorded_frame_is_a_film_of_one_frame() -> None:
    assert len(decoded(film.film(dataclasses.replace(picture(), num_recorded_frames=1)))) == 1


def test_odd_sides_are_refused() -> None:
    with pytest.raises(ValueError, match="film of 33x32 pixels: both sides must be even"):
        encode_webm([np.zeros((32, 33, 3), np.uint8)], fps=1)
