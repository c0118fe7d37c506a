"""Views are pure functions of the clip's id, and short clips know what they repeat."""

import numpy as np
import pytest

from models.grid import Grid
from stages.batches import Stream, batches
from stages.draws import below, generator, shuffled
from stages.errors import ConfigError
from stages.storage.clips import Clip
from stages.views import ViewConfig, cut, draw_view, real_tokens


def clip(name: str = "a", *, num_frames: int = 40, width_px: int = 48, height_px: int = 32) -> Clip:
    return Clip(
        clip_id=name, source_id="s", key="k", start_frame=0, num_frames=num_frames, fps=30.0, width_px=width_px,
        height_px=height_px, ordinal=0, slot=0, offset_bytes=0, size_bytes=0, crc32c=0, labels={},
    )  # fmt: skip


def frames(of: Clip) -> np.ndarray:
    t, y, x = np.ogrid[: of.num_frames, : of.height_px, : of.width_px]
    return np.broadcast_to((t * 5 + y * 3 + x)[..., None], (of.num_frames, of.height_px, of.width_px, 3)).astype(np.uint8)


CONFIG = ViewConfig(num_views=4, num_frames=32, size_px=32, seed=1)


def test_view_zero_is_the_start_and_the_centre() -> None:
    view = draw_view(clip(), 0, CONFIG)
    assert (view.start_frame, view.y_px, view.x_px, view.flip, view.num_real_frames) == (0, 0, 8, False, 32)


def test_a_view_depends_on_seed_clip_and_number_alone() -> None:
    assert draw_view(clip(), 3, CONFIG) == draw_view(clip(), 3, CONFIG)
    drawn = {draw_view(clip(name), number, CONFIG) for name in "abcdefgh" for number in (1, 2, 3)}
    assert len({(view.start_frame, view.x_px, view.flip) for view in drawn}) > 12
    assert {view.flip for view in drawn} == {True, False}
    assert all(0 <= view.start_frame <= 8 and 0 <= view.x_px <= 16 for view in drawn)


def test_a_cut_shows_the_pixels_that_the_view_names() -> None:
    source = frames(clip())
    for number in range(4):
        view = draw_view(clip(), number, CONFIG)
        expected = source[view.start_frame :][:32, view.y_px :, view.x_px :][:, :32, :32]
        assert (cut(source, view, 32) == (expected[:, :, ::-1] if view.flip else expected)).all()


def test_a_short_clip_is_looped_and_its_repeats_are_not_real() -> None:
    short = clip(num_frames=21)
    view = draw_view(short, 2, CONFIG)
    pixels = cut(frames(short), view, 32)
    assert view.num_real_frames == 21
    assert (pixels[21:] == pixels[:11]).all()
    real = real_tokens(view, Grid(16, 2, 2), tubelet_frames=2)
    assert real.tolist() == [True] * 10 * 4 + [False] * 6 * 4, "the slot of frame 20 holds a repeated frame too"


def test_a_clip_smaller_than_the_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="48x24 px, smaller than"):
        draw_view(clip(height_px=24), 0, CONFIG)


def test_every_epoch_holds_every_clip_once_in_its_own_order() -> None:
    stream = Stream([clip(str(number)) for number in range(10)], 0, lambda one, epoch: {"clip": one.clip_id, "epoch": epoch})
    seen = [stream[position] for position in range(30)]
    epochs = [[sample["clip"] for sample in seen if sample["epoch"] == epoch] for epoch in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [sorted(str(number) for number in range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_continue_at_any_step() -> None:
    stream = Stream([clip(str(number)) for number in range(10)], 0, lambda one, epoch: {"clip": int(one.clip_id) * 10 + epoch})
    whole = [batch["clip"].tolist() for batch in batches(stream, batch_clips=4, first_step=0, last_step=6, num_workers=0)]
    part = [batch["clip"].tolist() for batch in batches(stream, batch_clips=4, first_step=2, last_step=6, num_workers=0)]
    assert len(whole) == 6
    assert part == whole[2:]


def test_draws_differ_by_purpose_and_repeat_exactly() -> None:
    assert shuffled(50, 0, "order", 1) == shuffled(50, 0, "order", 1) != shuffled(50, 0, "order", 2)
    assert shuffled(50, 0, "a", "bc") != shuffled(50, 0, "ab", "c"), "parts must not run together"
    drawn = [below(3, generator(0, number)) for number in range(300)]
    assert {0, 1, 2} == set(drawn)
    assert min(drawn.count(value) for value in range(3)) > 70
