"""Frozen features of clips: every token of the recorded frames enters the encoder, and a coarse where and when survives.

A clip's tokens are averaged within the cells of a coarse grid over space and time. Averaging over everything, as is usual for
short clips, would throw away the order that long clips are about. This is our choice. A clip that is shorter than the view is
seen as long as it is: no token shows a repeated frame.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch.nn import functional

from models.shapes import Float, Tensor, UInt8
from stages.batches import ClipFrames
from stages.encoders import VideoEncoder
from stages.evals import Classes, Features
from stages.pixels import pixel_features, pool_time
from stages.storage import features as store
from stages.storage.features import FeatureUnit
from stages.storage.index import Clip
from stages.views import View, cut

PRETRAINED = "pretrained"

Look = tuple[Clip, View]
"""A clip and what of it is seen."""


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """One kind of features of all scored clips."""

    first: Features
    """View 0 of every clip, ``[n c d]``."""
    further: Features
    """Further views of tested clips, ``[m c d]``."""
    owners: Classes
    """Which of the clips each further view shows, ``[m]``."""


@dataclasses.dataclass(frozen=True)
class Extractor:
    """All that turns a clip into features.

    Args:
        encoders: the networks to compare, by the name of their features.
        slot_frames: clips are cut to a multiple of so many frames, whole slots of every encoder.
        frames: decodes clips.
        layer: the block whose output is pooled; ``None``: after the final norm.
        temporal_bins: parts of time.
        spatial_cells: cells along each side.
        pixel_cells: cells of the trivial features' grid along each side.
        batch_clips: clips per forward pass.
    """

    encoders: Mapping[str, VideoEncoder]
    slot_frames: int
    frames: ClipFrames
    layer: int | None
    temporal_bins: int
    spatial_cells: int
    pixel_cells: int
    batch_clips: int

    def features(self, looks: Sequence[Look]) -> dict[str, Features]:
        """Per kind of features ``[looks, cells, width]``."""
        found: dict[str, Features] = {}

        def put(name: str, places: Sequence[int], cells: Features) -> None:
            # Room for all at once: small rows that are kept between large ones that are not would hold the heap together.
            found.setdefault(name, np.empty((len(looks), *cells.shape[1:]), np.float32))[places] = cells

        for batch in self._batches(looks):
            pixels = [self._pixels(*looks[place]) for place in batch]
            stacked = torch.from_numpy(np.stack(pixels))
            for name, encoder in self.encoders.items():
                put(name, batch, self.encode(encoder, stacked).cpu().numpy())
            for place, frames in zip(batch, pixels, strict=True):
                for name, row in pixel_features(frames, bins=self.temporal_bins, cells=self.pixel_cells).items():
                    put(name, [place], row[None, None])
        return found

    @torch.no_grad()
    def encode(self, encoder: VideoEncoder, frames: UInt8[Tensor, "B T H W C"]) -> Float[Tensor, "B cells D"]:
        """Features of clips of equal length, all tokens visible.

        Args:
            encoder: the network.
            frames: recorded frames, a whole number of slots.
        """
        tokens = encoder.tokens(frames, layer=self.layer)
        return pooled(tokens, temporal_bins=self.temporal_bins, spatial_cells=self.spatial_cells)

    def _batches(self, looks: Sequence[Look]) -> Iterator[list[int]]:
        """Places of clips of equal length together, so that a batch needs no padding; a function of the looks alone."""
        places = sorted(range(len(looks)), key=lambda place: self._num_slots(looks[place][1]))
        for _, same in itertools.groupby(places, key=lambda place: self._num_slots(looks[place][1])):
            together = list(same)
            yield from (together[first : first + self.batch_clips] for first in range(0, len(together), self.batch_clips))

    def _num_slots(self, view: View) -> int:
        return max(1, view.num_real_frames // self.slot_frames)

    def _pixels(self, clip: Clip, view: View) -> npt.NDArray[np.uint8]:
        return cut(self.frames, clip, view, self._num_slots(view) * self.slot_frames)


def pooled(tokens: Float[Tensor, "B t h w D"], *, temporal_bins: int, spatial_cells: int) -> Float[Tensor, "B cells D"]:
    """Means of tokens within the cells of a coarse grid: by time, then from top to bottom, then from left to right."""
    maps = rearrange(tokens, "B t h w D -> (B t) D h w")
    places = functional.adaptive_avg_pool2d(maps, spatial_cells)  # [B*t, D, cells, cells]
    slots = rearrange(places, "(B t) D y x -> B t (y x D)", B=len(tokens))
    return rearrange(pool_time(slots, temporal_bins), "B (cells D) -> B cells D", D=tokens.shape[-1])


def missing_units(folder: Path, units: Mapping[FeatureUnit, Sequence[Look]]) -> dict[FeatureUnit, Sequence[Look]]:
    """The units that an earlier run has not published."""
    return {unit: looks for unit, looks in units.items() if not store.is_committed(folder, unit)}


def extract(
    folder: Path, units: Mapping[FeatureUnit, Sequence[Look]], *, extractor: Extractor, finished: Callable[[], None]
) -> None:
    """Publish the features of every given unit, one file each.

    Args:
        folder: the artifact's folder.
        units: what to see.
        extractor: makes the features.
        finished: called after every unit.
    """
    for unit, looks in units.items():
        clip_ids = [clip.clip_id for clip, _ in looks]
        store.write_part(folder, unit, clip_ids=clip_ids, features=extractor.features(looks))
        finished()


def load(folder: Path, name: str, units: Mapping[FeatureUnit, Sequence[Look]], scored: Sequence[Clip]) -> ClipFeatures:
    """One kind of features of all scored clips, in their order."""
    found = store.read_kind(folder, units, name)
    first = np.stack([found[clip.clip_id, 0] for clip in scored])
    rows = {clip.clip_id: row for row, clip in enumerate(scored)}
    further = [key for key in found if key[1] > 0]
    return ClipFeatures(
        first=first,
        further=np.stack([found[key] for key in further]) if further else first[:0],
        owners=np.array([rows[clip_id] for clip_id, _ in further], dtype=np.int64),
    )
