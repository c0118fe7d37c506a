"""Figures are whole PNG files, the same every time, and show the pixels they were given."""

import io

import numpy as np
import pytest
from PIL import Image

from stages import figures
from stages.pictures import RANDOM, TOP, UNUSED, VISIBLE, Picture
from stages.scoring import Bucket, Interval, Score


def picture(predicted: bool = True) -> Picture:
    source = np.random.default_rng(0)
    clip = source.integers(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    return Picture(
        original=clip,
        tokenized=clip // 2,
        predicted=255 - clip if predicted else None,
        priority=source.random((4, 2, 2)).astype(np.float32),
        roles=np.array([[[VISIBLE, TOP], [RANDOM, UNUSED]]] * 4),
        num_recorded_frames=6,
        tokenizer_psnr_db=20.0,
        unexplained_share=0.5 if predicted else None,
    )


def pixels(png: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(png)).convert("RGB"))


def holds(page: np.ndarray, frame: np.ndarray) -> bool:
    """Whether an enlarged frame lies somewhere on a page, found by its first row."""
    row = frame[0].astype(int)
    windows = np.lib.stride_tricks.sliding_window_view(page.astype(int), (1, len(row), 3))[..., 0, 0, :, :]
    return bool((windows == row).all(axis=(-1, -2)).any())


def test_a_clip_is_drawn_alike_every_time() -> None:
    assert figures.clip_picture(picture(), 3) == figures.clip_picture(picture(), 3)


@pytest.mark.parametrize("number", [0, 5])
def test_the_first_and_the_last_recorded_frame_are_shown_unchanged(number: int) -> None:
    page = pixels(figures.clip_picture(picture(), 3))
    enlarged = picture().original[number].repeat(4, axis=0).repeat(4, axis=1)
    assert holds(page, enlarged)
    assert not holds(page, picture().original[6].repeat(4, axis=0).repeat(4, axis=1))


def test_without_predictions_there_is_one_row_less() -> None:
    with_row, without = (pixels(figures.clip_picture(picture(shown), 2)) for shown in (True, False))
    assert with_row.shape[0] - without.shape[0] == 132
    assert with_row.shape[1] == without.shape[1]


def test_curves_are_drawn_alike_and_without_what_was_not_measured() -> None:
    history = [{"step": 1.0, "loss": 2.0}, {"step": 2.0, "loss": 1.0}]
    assert figures.curves(history, ["loss", "psnr_db"]) == figures.curves(history, ["loss"])


def test_accuracies_are_drawn_alike() -> None:
    scores = [
        Score("class", probe, kind, 0.5, Interval(0.4, 0.7), (0.5,), None, 10, 10)
        for probe in ("knn", "linear_probe")
        for kind in ("pretrained", "untrained")
    ]
    drawn = [figures.accuracies(scores, titles={"knn": "nearest"}, chance=0.25) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert pixels(drawn[0]).std() > 0


def test_accuracies_by_length_are_drawn_alike() -> None:
    buckets = [Bucket(name, 0.5, Interval(0.4, 0.7), 10) for name in ("0–4 s", "4–8 s")]
    found = {"pretrained": buckets, "untrained": buckets}
    drawn = [figures.bucketed(found, titles={}, chance=0.25) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert pixels(drawn[0]).std() > 0


def test_confusions_are_darker_where_more_clips_are() -> None:
    right, wrong = (pixels(figures.confusion(np.array(counts), ["a", "b"])) for counts in ([[9, 0], [0, 9]], [[0, 9], [9, 0]]))
    assert right.shape == wrong.shape
    assert (right != wrong).any()


@pytest.mark.parametrize("number", [0, 7])
def test_a_strip_shows_the_first_and_the_last_frame_unchanged(number: int) -> None:
    clip = picture().original
    page = pixels(figures.strip(clip, 3))
    assert holds(page, clip[number].repeat(4, axis=0).repeat(4, axis=1))
