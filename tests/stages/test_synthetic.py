"""The synthetic scenes are what ``docs/synthetic.md`` proves its bound about: even, independent, and blind across quarters."""

import numpy as np
import pytest
from pydantic import ValidationError

from stages.readers import _scenes

CONFIG = _scenes.Config()
SMALL_FIELDS = {"size_px", "object_px", "travel_px"}
SMALL = _scenes.Config(size_px=32, object_px=12, travel_px=9)
CLEAN = _scenes.Config(noise=0, background_texture=0, object_texture=0, num_distractors=0)
QUARTER = CONFIG.num_frames // _scenes.NUM_QUARTERS
NUM_SCENES = 1200


@pytest.fixture(scope="module")
def drawn() -> list[_scenes.Scene]:
    return [_scenes.scene(CONFIG, index) for index in range(NUM_SCENES)]


def is_even(counts: np.ndarray) -> bool:
    """Within 4.5 standard deviations of equal counts everywhere."""
    expected = counts.sum() / counts.size
    return bool((np.abs(counts - expected) < 4.5 * np.sqrt(expected * (1 - 1 / counts.size))).all())


def in_quarter(quarter: int) -> slice:
    return slice(quarter * QUARTER, (quarter + 1) * QUARTER)


def with_motion(drawn: _scenes.Scene, quarter: int, motion: int) -> _scenes.Scene:
    motions = list(drawn.motions)
    motions[quarter] = motion
    return drawn._replace(motions=tuple(motions))


def test_a_scene_and_its_pixels_are_a_function_of_seed_and_number() -> None:
    again = [_scenes.render(_scenes.scene(SMALL, 7), SMALL) for _ in range(2)]
    np.testing.assert_array_equal(again[0].clip, again[1].clip)
    np.testing.assert_array_equal(again[0].boxes, again[1].boxes)
    other_seed = SMALL.model_copy(update={"seed": 1})
    for other in (_scenes.render(_scenes.scene(SMALL, 8), SMALL), _scenes.render(_scenes.scene(other_seed, 7), other_seed)):
        assert (other.clip != again[0].clip).mean() > 0.5


def test_the_first_draws_never_change() -> None:
    first = [_scenes.scene(CONFIG, index) for index in range(4)]
    assert [scene.motions for scene in first] == [(1, 1, 0, 3), (3, 1, 2, 3), (3, 1, 1, 1), (2, 1, 3, 1)]
    assert [scene.polarity for scene in first] == [-1, 1, -1, -1]
    assert [scene.shape for scene in first] == [2, 1, 2, 1]


def test_a_rendering_is_bytes_and_one_box_per_frame() -> None:
    rendering = _scenes.render(_scenes.scene(SMALL, 0), SMALL)
    assert rendering.clip.dtype == np.uint8
    assert rendering.clip.shape == (128, 32, 32, 3)
    assert rendering.boxes.dtype == np.float32
    assert rendering.boxes.shape == (128, 4)


def test_the_long_label_names_both_ends_and_the_marked_one_its_quarter(drawn: list[_scenes.Scene]) -> None:
    for scene in drawn[:50]:
        labels = _scenes.labels(scene, CONFIG.num_motions)
        assert divmod(labels["long"], CONFIG.num_motions) == (scene.motions[0], scene.motions[3])
        assert (labels["first"], labels["last"]) == (scene.motions[0], scene.motions[3])
        assert labels["marked"] == scene.motions[scene.marked_quarter]
        assert labels["shape"] == scene.shape


@pytest.mark.parametrize(("one", "other"), [(0, 3), (0, 1), (1, 2), (2, 3)])
def test_every_pair_of_directions_in_two_quarters_is_equally_frequent(drawn: list[_scenes.Scene], one: int, other: int) -> None:
    pairs = [scene.motions[one] * CONFIG.num_motions + scene.motions[other] for scene in drawn]
    assert is_even(np.bincount(pairs, minlength=CONFIG.num_motions**2))


@pytest.mark.parametrize("field", ["polarity", "shape", "marked_quarter"])
def test_looks_are_even_within_every_direction(drawn: list[_scenes.Scene], field: str) -> None:
    values = sorted({getattr(scene, field) for scene in drawn})
    assert len(values) == {"polarity": 2, "shape": len(_scenes.SHAPES), "marked_quarter": _scenes.NUM_QUARTERS}[field]
    for quarter in (0, 3):
        joint = [scene.motions[quarter] * len(values) + values.index(getattr(scene, field)) for scene in drawn]
        assert is_even(np.bincount(joint, minlength=CONFIG.num_motions * len(values)))


def test_home_is_drawn_without_regard_to_the_directions(drawn: list[_scenes.Scene]) -> None:
    homes = np.array([scene.home for scene in drawn])
    for quarter in (0, 3):
        motions = np.array([scene.motions[quarter] for scene in drawn])
        for motion in range(CONFIG.num_motions):
            # Even draws from [-1, 1] have variance 1/3.
            assert np.abs(homes[motions == motion].mean(axis=0)).max() < 4.5 * np.sqrt(1 / 3 / (motions == motion).sum())


@pytest.mark.parametrize("motion", range(len(_scenes.MOTIONS)))
def test_every_quarter_begins_and_ends_at_home_and_goes_its_own_way(motion: int) -> None:
    still = _scenes.Config(camera_px=0, num_motions=len(_scenes.MOTIONS))
    scene = with_motion(_scenes.scene(still, 3), 1, motion)
    home = still.size_px / 2 + still.home_px * scene.home
    path = _scenes.path(scene, still)
    ends = [frame for quarter in range(4) for frame in (quarter * QUARTER, (quarter + 1) * QUARTER - 1)]
    assert np.abs(path[ends] - home).max() < 0.05 * still.travel_px
    farthest = path[in_quarter(1)][QUARTER // 2] - home
    np.testing.assert_allclose(farthest, still.travel_px * _scenes._HEADINGS[motion], atol=0.1)


@pytest.mark.parametrize("quarter", range(_scenes.NUM_QUARTERS))
def test_a_quarter_shows_nothing_of_another_quarters_direction(quarter: int) -> None:
    scene = _scenes.scene(SMALL, 11)
    changed = with_motion(scene, quarter, (scene.motions[quarter] + 1) % SMALL.num_motions)
    clip, other = _scenes.render(scene, SMALL).clip, _scenes.render(changed, SMALL).clip
    differs = (clip != other).any(axis=(1, 2, 3))
    assert differs[in_quarter(quarter)].mean() > 0.9
    assert not np.delete(differs, np.arange(SMALL.num_frames)[in_quarter(quarter)]).any()


def test_no_window_of_half_the_clip_and_one_frame_sees_both_ends() -> None:
    scene = _scenes.scene(SMALL, 5)
    clip = _scenes.render(scene, SMALL).clip
    differs = []
    for quarter in (0, 3):
        others = [with_motion(scene, quarter, motion) for motion in range(SMALL.num_motions)]
        changes = [(_scenes.render(other, SMALL).clip != clip).any(axis=(1, 2, 3)) for other in others]
        differs.append(np.any(changes, axis=0))
    length = SMALL.num_frames // 2 + 1
    for start in range(SMALL.num_frames - length + 1):
        window = slice(start, start + length)
        assert not (differs[0][window].any() and differs[1][window].any())
    assert all(end.any() for end in differs)


def test_brighter_and_darker_objects_cancel_so_that_mean_pixels_tell_no_direction() -> None:
    clean = _scenes.Config.model_validate({**CLEAN.model_dump(), **SMALL.model_dump(include=SMALL_FIELDS)})
    scene = _scenes.scene(clean, 0)._replace(marked_quarter=3, background=np.full(3, 0.5, dtype=np.float32))
    for motion in range(clean.num_motions):
        bright, dark = (
            _scenes.render(with_motion(scene, 0, motion)._replace(polarity=polarity), clean).clip[in_quarter(0)].astype(int)
            for polarity in (1, -1)
        )
        assert np.abs(bright - dark).max() > 0.9 * 2 * clean.object_contrast * 255
        assert np.abs(bright + dark - 255).max() <= 1


@pytest.mark.parametrize("shape", range(len(_scenes.SHAPES)))
def test_the_box_lies_on_the_object(shape: int) -> None:
    scene = _scenes.scene(CLEAN, 2)._replace(shape=shape)
    seen = _scenes.render(scene, CLEAN)
    changed = (np.abs(seen.clip - 255 * scene.background) > 15).any(axis=-1)
    for frame in range(0, CLEAN.num_frames, 5):
        rows, columns = np.nonzero(changed[frame])
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, np.clip(seen.boxes[frame], 0, CLEAN.size_px), atol=1.0)


def test_the_rim_is_worn_in_the_marked_quarter_alone() -> None:
    scene = _scenes.scene(CLEAN, 4)
    white = (_scenes.render(scene, CLEAN).clip == 255).all(axis=-1).sum(axis=(1, 2))
    for quarter in range(_scenes.NUM_QUARTERS):
        found = white[in_quarter(quarter)]
        assert (found > 20).all() if quarter == scene.marked_quarter else (found == 0).all()


def test_the_noise_changes_its_strength_from_place_to_place() -> None:
    noisy = CLEAN.model_copy(update={"noise": 0.4, "object_contrast": 0.0})
    scene = _scenes.scene(noisy, 6)
    clip = _scenes.render(scene, noisy).clip.astype(np.float32).mean(axis=-1) / 255
    spread = clip.reshape(16, 8, 8, 8, 8, 8).std(axis=(1, 3, 5))
    assert spread.min() < 0.1 < 0.25 < spread.max() < 0.4


@pytest.mark.parametrize(("field", "value"), [("num_frames", 126), ("num_motions", 1), ("num_motions", 9), ("speed", 2)])
def test_a_config_that_breaks_the_construction_is_refused(field: str, value: int) -> None:
    with pytest.raises(ValidationError, match=field):
        _scenes.Config.model_validate({field: value})
