"""Views are pure functions of the clip's id, and short clips know what they repeat."""

import pytest

from models.grid import Grid
from stages.batches import ClipFrames
from stages.draws import below, generator
from stages.errors import ConfigError
from stages.storage.index import Clip, Index
from stages.views import ViewConfig, cut, draw_view, real_tokens
from tests.stages.clip_files import encoded, member, patches, snapshot
from tests.stages.numbered import clip

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


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClipFrames, list[Clip]]:
    """A clip of 40 frames and one of 21."""
    folder = tmp_path_factory.mktemp("views")
    members = [member(encoded(folder, patches(count)), num_frames=count) for count in (40, 21)]
    made = snapshot(folder, [members])
    return ClipFrames(made), list(Index(made))


def test_a_cut_shows_the_pixels_that_the_view_names(stored: tuple[ClipFrames, list[Clip]]) -> None:
    frames, (whole, _) = stored
    source = frames.read(whole)
    for number in range(6):
        view = draw_view(whole, number, CONFIG)
        expected = source[view.start_frame :][:32, view.y_px :, view.x_px :][:, :32, :32]
        assert (cut(frames, whole, view, 32) == (expected[:, :, ::-1] if view.flip else expected)).all()


def test_a_short_clip_is_looped_and_its_repeats_are_not_real(stored: tuple[ClipFrames, list[Clip]]) -> None:
    frames, (_, short) = stored
    view = draw_view(short, 2, CONFIG)
    pixels = cut(frames, short, view, 32)
    assert pixels.shape == (32, 32, 32, 3)
    assert view.num_real_frames == 21
    assert (pixels[21:] == pixels[:11]).all()
    assert (pixels[20] != pixels[0]).any()
    real = real_tokens(view, Grid(16, 2, 2), tubelet_frames=2)
    assert real.tolist() == [True] * 10 * 4 + [False] * 6 * 4, "the slot of frame 20 holds a repeated frame too"


def test_a_clip_smaller_than_the_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="48x24 px, smaller than"):
        draw_view(clip(height_px=24), 0, CONFIG)


def test_draws_differ_by_purpose_and_repeat_exactly() -> None:
    def numbers(*purpose: str | int) -> list[int]:
        source = generator(0, *purpose)
        return [below(1000, source) for _ in range(5)]

    assert numbers("order", 1) == numbers("order", 1) != numbers("order", 2)
    assert numbers("a", "bc") != numbers("ab", "c"), "parts must not run together"
    drawn = [below(3, generator(0, number)) for number in range(300)]
    assert {0, 1, 2} == set(drawn)
    assert min(drawn.count(value) for value in range(3)) > 70
