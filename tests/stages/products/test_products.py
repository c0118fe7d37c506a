"""What every product must do, by file: say the same finite things about every token, and nothing about repeated frames."""

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from scipy.stats import rankdata

from models.extension import load, names
from models.grid import Patching
from stages.batches import ClipFrames
from stages.errors import ConfigError
from stages.products import Footage, ProductConfig, Values
from stages.storage.artifact import Artifact
from stages.storage.index import Index, read_motion
from stages.video_command import H264
from stages.views import ViewConfig, cut, draw_view
from tests.stages.clip_files import member, snapshot
from tests.stages.products.footage import any_motion, footage, square_moving_right
from tests.stages.videos import changed, write_video
from tests.stages.videos import cut as cut_video

PRODUCTS = names("stages.products")
OF_MOTION = ("codec_motion", "everest", "flow")
"""Those that say how much moves or changes."""
CROP = {"start_frame": 3, "y_px": 7, "x_px": 21, "flip": True}


@pytest.fixture(params=PRODUCTS)
def product(request: pytest.FixtureRequest) -> ProductConfig:
    found: ProductConfig = load("stages.products", request.param)
    return found


@pytest.fixture(scope="module")
def whole() -> Footage:
    """A mirrored view of 12 frames from the third on, somewhere within a stored clip of 16 frames and 144 x 160 px."""
    pixels = np.ascontiguousarray(square_moving_right(12, step_px=2)[:, :, ::-1])
    return footage(pixels, any_motion(8, 9, 10), **CROP)


def looped(view: Footage, num_real_frames: int) -> Footage:
    """The same view of a clip that ends so early that its beginning repeats."""
    pixels = view.pixels[np.arange(len(view.pixels)) % num_real_frames]
    return view._replace(pixels=pixels, view=dataclasses.replace(view.view, num_real_frames=num_real_frames))


def test_the_folder_holds_what_is_documented() -> None:
    assert PRODUCTS == ["codec_motion", "everest", "flow"]


def test_a_product_is_named_after_its_file_and_survives_json(product: ProductConfig) -> None:
    assert product.name in PRODUCTS
    assert type(product).model_validate_json(product.model_dump_json()) == product


def test_a_product_gives_finite_values_of_its_shape_and_type(product: ProductConfig, whole: Footage) -> None:
    values = product.compute(whole)
    assert values.shape == product.shape(whole.grid)
    assert values.shape[:3] == (6, 8, 8)
    assert values.dtype == product.dtype
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 50, "it tells tokens apart"


def test_a_product_says_the_same_twice_and_leaves_its_input_alone(product: ProductConfig, whole: Footage) -> None:
    before = whole.pixels.copy()
    again = whole._replace(pixels=whole.pixels.copy())
    assert product.compute(whole).tobytes() == product.compute(again).tobytes()
    assert (whole.pixels == before).all()


@pytest.mark.parametrize("num_real_frames", [1, 2, 7, 8])
def test_slots_with_repeated_frames_have_zeros_and_change_no_other(
    product: ProductConfig, whole: Footage, num_real_frames: int
) -> None:
    slots = num_real_frames // 2
    values = product.compute(looped(whole, num_real_frames))
    assert values.shape == product.shape(whole.grid)
    assert not values[slots:].any()
    short = whole._replace(pixels=whole.pixels[: 2 * slots])
    assert slots == 0 or (values[:slots] == product.compute(short)).all()


@pytest.mark.parametrize(("tubelet_frames", "patch_px"), [(1, 16), (2, 8), (4, 32), (3, 64)])
def test_a_product_follows_the_patching(product: ProductConfig, whole: Footage, tubelet_frames: int, patch_px: int) -> None:
    other = whole._replace(patching=Patching(tubelet_frames=tubelet_frames, patch_px=patch_px))
    values = product.compute(other)
    assert values.shape[:3] == (12 // tubelet_frames, 128 // patch_px, 128 // patch_px)
    assert np.isfinite(values).all()


@pytest.mark.parametrize("name", ["everest", "flow"])
def test_a_single_frame_shows_no_change(name: str, whole: Footage) -> None:
    alone = footage(whole.pixels[:1], patching=Patching(tubelet_frames=1))
    assert not load("stages.products", name).compute(alone).any()


def test_a_product_that_needs_motion_says_how_to_store_it(product: ProductConfig, whole: Footage) -> None:
    bare = whole._replace(motion=None)
    if not product.needs_motion:
        assert (product.compute(bare) == product.compute(whole)).all()
        return
    with pytest.raises(ConfigError, match=r"clip clip was stored without motion vectors; set shard\.clip\.encoding\.name=h264"):
        product.compute(bare)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A snapshot of one real clip: 32 frames of a square of 64 px that goes 2 px to the right in each, on a still ground."""
    folder = tmp_path_factory.mktemp("products")
    path = write_video(folder / "a.mp4", square_moving_right(32, step_px=2, first_px=0))
    clip = changed(num_frames=32, size_px=128, motion_vectors=True, encoding=H264(preset="medium", crf=12))
    made = cut_video(path, clip).segments[0]
    size = {"num_frames": 32, "width_px": 128, "height_px": 128}
    return snapshot(folder, [[member(made.video.read_bytes(), motion=made.motion, **size)]])


@pytest.mark.parametrize("number", range(6))
def test_products_of_a_stored_clip_agree_on_where_the_square_is(stored: Artifact, number: int) -> None:
    """In views that are cropped, shifted and mirrored at random: pixels and stored motion are cut alike."""
    clip = Index(stored)[0]
    view = draw_view(clip, number, ViewConfig(num_views=6, num_frames=16, size_px=96, seed=2))
    seen = Footage(cut(ClipFrames(stored), clip, view, 16), view, Patching(), read_motion(stored, clip))
    values = {name: load("stages.products", name).compute(seen).astype(np.float64) for name in OF_MOTION}
    rightwards = values["codec_motion"][..., 0]
    assert np.median(rightwards[np.abs(rightwards) > 1]) == pytest.approx(-2 if view.flip else 2, abs=0.2)
    values["codec_motion"] = np.linalg.norm(values["codec_motion"], axis=-1)
    ranks = [rankdata(found) for found in values.values()]
    assert np.corrcoef(ranks).min() > 0.6
    mirrored = [rankdata(found[:, :, ::-1]) for found in values.values()]
    assert np.corrcoef(ranks[0], mirrored[2])[0, 1] < np.corrcoef(ranks[0], ranks[2])[0, 1] - 0.1


class Made(ProductConfig):
    """A product that gives what it is told to."""

    dtype: ClassVar[str] = "float16"

    name: str = "made"
    fill: float = 0.0
    size: tuple[int, ...]

    def measure(self, footage: Footage) -> Values:
        return np.full(self.size, self.fill)


@pytest.mark.parametrize(
    ("size", "fill", "fault"),
    [
        ((8, 8), 0.0, r"got \[8, 8\]"),
        ((6, 8, 8, 2), 0.0, r"got \[6, 8, 8, 2\]"),
        ((6, 8, 8), np.nan, "384 are not finite"),
        ((6, 8, 8), 1e6, "384 are not finite"),
    ],
)
def test_a_product_that_breaks_its_contract_is_named(whole: Footage, size: tuple[int, ...], fill: float, fault: str) -> None:
    with pytest.raises(ValueError, match=f"product made of clip clip, view 0: expected finite values .*{fault}"):
        Made(size=size, fill=fill).compute(whole)
