"""Frozen features of clips: every token of the recorded frames enters the encoder, and a coarse where and when survives.

A clip's tokens are averaged within the cells of a coarse grid over space and time, and the cells are joined. Averaging over
everything, as is usual for short clips, would throw away the order that long clips are about. This is our choice. A clip that
is shorter than the view is seen as long as it is: no token shows a repeated frame.
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
from stages.pixels import FRAMES, PIXELS, pixel_features, pool_time
from stages.storage import features as store
from stages.storage.index import Clip
from stages.views import View, cut

PRETRAINED = "pretrained"

Row = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """All that turns a clip into features.

    Args:
        encoders: the networks to compare, by the name of their features.
        slot_frames: clips are cut to a multiple of so many frames, whole slots of every encoder.
        frames: decodes clips.
        views: view 0 of every clip.
        layer: the block whose output is pooled; ``None``: after the final norm.
        temporal_bins: parts of time.
        spatial_cells: cells along each side.
        pixel_cells: cells of the trivial features' grid along each side.
        batch_clips: clips per forward pass.
    """

    encoders: Mapping[str, VideoEncoder]
    slot_frames: int
    frames: ClipFrames
    views: Mapping[str, View]
    layer: int | None
    temporal_bins: int
    spatial_cells: int
    pixel_cells: int
    batch_clips: int

    def shard(self, clips: Sequence[Clip]) -> dict[str, npt.NDArray[np.float32]]:
        """Per kind of features ``[clips, width]``, for the clips of one shard."""
        rows: dict[str, dict[str, Row]] = {clip.clip_id: {} for clip in clips}
        for batch in self._batches(clips):
            pixels = [self._pixels(clip) for clip in batch]
            for clip, frames in zip(batch, pixels, strict=True):
                rows[clip.clip_id] |= pixel_features(frames, bins=self.temporal_bins, cells=self.pixel_cells)
            stacked = torch.from_numpy(np.stack(pixels))
            for name, encoder in self.encoders.items():
                found = self.encode(encoder, stacked)
                for clip, row in zip(batch, found.cpu().numpy(), strict=True):
                    rows[clip.clip_id][name] = row
        return {name: np.stack([rows[clip.clip_id][name] for clip in clips]) for name in (*self.encoders, PIXELS, FRAMES)}

    @torch.no_grad()
    def encode(self, encoder: VideoEncoder, frames: UInt8[Tensor, "B T H W C"]) -> Float[Tensor, "B wide"]:
        """Features of clips of equal length, all tokens visible.

        Args:
            encoder: the network.
            frames: recorded frames, a whole number of slots.
        """
        maps = rearrange(encoder.tokens(frames, layer=self.layer), "B t h w D -> (B t) D h w")
        cells = functional.adaptive_avg_pool2d(maps, self.spatial_cells)  # [B*t, D, cells, cells]
        slots = rearrange(cells, "(B t) D y x -> B t (y x D)", B=len(frames))
        return pool_time(slots, self.temporal_bins)

    def _batches(self, clips: Sequence[Clip]) -> Iterator[Sequence[Clip]]:
        """Clips of equal length together, so that a batch needs no padding; their order is a function of the shard alone."""
        by_length = sorted(clips, key=self._num_slots)
        for _, same in itertools.groupby(by_length, key=self._num_slots):
            together = list(same)
            yield from (together[first : first + self.batch_clips] for first in range(0, len(together), self.batch_clips))

    def _num_slots(self, clip: Clip) -> int:
        return max(1, self.views[clip.clip_id].num_real_frames // self.slot_frames)

    def _pixels(self, clip: Clip) -> npt.NDArray[np.uint8]:
        num_frames = self._num_slots(clip) * self.slot_frames
        return cut(self.frames, clip, self.views[clip.clip_id], num_frames)


def missing_shards(folder: Path, shards: Mapping[int, Sequence[Clip]]) -> list[int]:
    """The shards whose features an earlier run has not published."""
    return [ordinal for ordinal in shards if not store.is_committed(folder, ordinal)]


def extract(folder: Path, shards: Mapping[int, Sequence[Clip]], *, extractor: Extractor, finished: Callable[[], None]) -> None:
    """Publish the features of every given shard, one file each.

    Args:
        folder: the artifact's folder.
        shards: the clips of each shard, by its number.
        extractor: makes the features.
        finished: called after every shard.
    """
    for ordinal, clips in shards.items():
        store.write_part(folder, ordinal, clip_ids=[clip.clip_id for clip in clips], features=extractor.shard(clips))
        finished()


def load(folder: Path, name: str, shards: Mapping[int, Sequence[Clip]]) -> npt.NDArray[np.float32]:
    """One kind of features of all clips, ``[n, width]``, in shard order."""
    found = store.read_kind(folder, list(shards), name)
    return np.stack([found[clip.clip_id] for clips in shards.values() for clip in clips])
