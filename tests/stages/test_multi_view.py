"""Views of a tested clip are spread over it, and those that show the same are one."""

import dataclasses

import pytest
from pydantic import ValidationError

from stages.multi_view import MultiViewConfig, views_of
from stages.storage.index import Clip
from stages.views import View, ViewConfig, draw_view
from tests.stages.questions import clip_of

SHAPE = ViewConfig(num_frames=32, size_px=64)


def clip(num_frames: int, height_px: int, width_px: int) -> Clip:
    return dataclasses.replace(clip_of(1, num_frames), height_px=height_px, width_px=width_px)


def places(shown: Clip, temporal: int, spatial: int) -> list[tuple[int, int, int]]:
    config = MultiViewConfig.model_validate({"temporal": temporal, "spatial": spatial})
    found = views_of(shown, draw_view(shown, 0, SHAPE), SHAPE.num_frames, config)
    assert [view.view for view in found] == list(range(len(found)))
    assert all(view.start_frame + view.num_real_frames <= shown.num_frames for view in found)
    return [(view.start_frame, view.y_px, view.x_px) for view in found]


def first(shown: Clip) -> View:
    return draw_view(shown, 0, SHAPE)


@pytest.mark.parametrize(("num_frames", "size"), [(32, 64), (100, 96), (20, 64)])
def test_one_view_is_view_0(num_frames: int, size: int) -> None:
    shown = clip(num_frames, size, size)
    assert views_of(shown, first(shown), 32, MultiViewConfig()) == [first(shown)]


def test_starts_are_spread_evenly_and_squares_lie_along_the_longer_side() -> None:
    wide = clip(92, 64, 104)
    assert sorted(places(wide, 2, 3)) == [(0, 0, 0), (0, 0, 20), (0, 0, 40), (60, 0, 0), (60, 0, 20), (60, 0, 40)]
    assert places(wide, 5, 1) == [(start, 0, 20) for start in (0, 15, 30, 45, 60)]
    assert sorted(places(clip(32, 104, 64), 7, 3)) == [(0, 0, 0), (0, 20, 0), (0, 40, 0)]


@pytest.mark.parametrize(("temporal", "spatial", "count"), [(1, 1, 1), (2, 3, 6), (5, 3, 15), (7, 3, 21)])
def test_the_usual_protocols_have_their_number_of_views(temporal: int, spatial: int, count: int) -> None:
    assert len(set(places(clip(200, 64, 104), temporal, spatial))) == count


def test_a_short_square_clip_has_one_view_however_many_are_asked() -> None:
    assert places(clip(20, 64, 64), 7, 3) == [(0, 0, 0)]


def test_only_one_or_three_squares_can_be_asked() -> None:
    with pytest.raises(ValidationError, match="1 or 3"):
        MultiViewConfig.model_validate({"spatial": 2})
