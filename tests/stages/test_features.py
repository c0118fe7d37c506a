"""Features say what is where and when, every view of a clip has its own, and what is there is not made again."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange

from stages.batches import ClipFrames
from stages.features import Extractor, Look, extract, load, missing_units, pooled
from stages.multi_view import MultiViewConfig, views_of
from stages.storage.artifact import Artifact
from stages.storage.features import FeatureUnit
from stages.storage.index import Clip, Index
from stages.views import ViewConfig, cut, draw_view

SHAPE = ViewConfig(num_frames=16, size_px=16)


@dataclasses.dataclass(frozen=True)
class Colours:
    """An encoder whose tokens are the mean colours of their pixels."""

    tubelet_frames: int = 2

    def tokens(self, frames: torch.Tensor, *, layer: int | None) -> torch.Tensor:
        blocks = rearrange(frames.float(), "B (t a) (h b) (w c) C -> B t h w (a b c) C", a=2, b=8, c=8)
        return blocks.mean(dim=4)


def test_cells_are_means_by_time_then_from_top_to_bottom_and_left_to_right() -> None:
    tokens = torch.randn(2, 4, 4, 6, 3)
    found = pooled(tokens, temporal_bins=2, spatial_cells=2)
    assert found.shape == (2, 2 * 2 * 2, 3)
    torch.testing.assert_close(found[:, 0], tokens[:, :2, :2, :3].mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found[:, 1], tokens[:, :2, :2, 3:].mean(dim=(1, 2, 3)))
    torch.testing.assert_close(found[:, 6], tokens[:, 2:, 2:, :3].mean(dim=(1, 2, 3)))


@pytest.fixture
def scored(toy_inputs: Mapping[str, Artifact]) -> list[Clip]:
    return list(Index(toy_inputs["shard"]))


def units_of(scored: list[Clip], config: MultiViewConfig) -> dict[FeatureUnit, list[Look]]:
    units: dict[FeatureUnit, list[Look]] = {}
    for clip in scored:
        for view in views_of(clip, draw_view(clip, 0, SHAPE), SHAPE.num_frames, config):
            units.setdefault(FeatureUnit(clip.ordinal, view.view), []).append((clip, view))
    return units


def extractor(inputs: Mapping[str, Artifact]) -> Extractor:
    frames = ClipFrames(inputs["shard"])
    sizes = {"layer": None, "temporal_bins": 4, "spatial_cells": 1, "pixel_cells": 2, "batch_clips": 3}
    return Extractor(encoders={"colours": Colours()}, slot_frames=2, frames=frames, **sizes)


def test_every_view_of_a_clip_is_seen_once_and_told_to_its_clip(
    toy_inputs: Mapping[str, Artifact], scored: list[Clip], tmp_path: Path
) -> None:
    units = units_of(scored, MultiViewConfig(temporal=2, spatial=3))
    made = extractor(toy_inputs)
    extract(tmp_path, units, extractor=made, finished=lambda: None)
    assert missing_units(tmp_path, units) == {}
    found = load(tmp_path, "colours", units, scored)
    assert found.first.shape == (15, 4, 3)
    assert found.further.shape == (15 * 5, 4, 3)
    assert (np.bincount(found.owners) == 5).all()
    place = 40
    clip = scored[found.owners[place]]
    others = [view for looks in units.values() for one, view in looks if one.clip_id == clip.clip_id and view.view]
    number = int((found.owners[:place] == found.owners[place]).sum())
    seen = cut(made.frames, clip, others[number], 16).astype(np.float32)
    np.testing.assert_allclose(found.further[place], seen.reshape(4, -1, 3).mean(axis=1), atol=1e-3)


def test_what_is_published_is_not_made_again(toy_inputs: Mapping[str, Artifact], scored: list[Clip], tmp_path: Path) -> None:
    units = units_of(scored, MultiViewConfig())
    made, done = extractor(toy_inputs), FeatureUnit(1, 0)
    extract(tmp_path, {done: units[done]}, extractor=made, finished=lambda: None)
    assert set(missing_units(tmp_path, units)) == {FeatureUnit(0, 0), FeatureUnit(2, 0)}


def test_one_view_has_no_further_features(toy_inputs: Mapping[str, Artifact], scored: list[Clip], tmp_path: Path) -> None:
    units = units_of(scored, MultiViewConfig())
    extract(tmp_path, units, extractor=extractor(toy_inputs), finished=lambda: None)
    found = load(tmp_path, "pixels", units, scored)
    assert found.first.shape == (15, 1, 4 * 3 * 4)
    assert found.further.shape == (0, 1, 4 * 3 * 4)
    assert len(found.owners) == 0
