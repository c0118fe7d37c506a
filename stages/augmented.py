"""Clips as a fine-tuning sees them: another time, place and look in every epoch and repeat, and some of the tokens.

Every draw is for (seed, epoch, clip, repeat) and a purpose, but for the time, which repeats share: a clip is decoded once for
all of them.
"""

import dataclasses
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from models.augmentation import RandAugment, erase, rand_augment
from models.classifier import kept_tokens
from stages.batches import ClipFrames, Sample
from stages.draws import below, generator
from stages.networks import Geometry
from stages.storage.index import Clip
from stages.training import SAMPLE
from stages.video_decode import Pixels


class Seen(NamedTuple):
    """What the main process knows of a sample."""

    repeat: int
    """Which sample of the same clip in an epoch, from 0."""
    truth: tuple[Tensor, ...]
    """What the clip shows, ``float32 [n_classes]`` by what is asked."""


@dataclasses.dataclass(frozen=True)
class Augmented:
    """How samples are made. It is sent to the workers.

    Args:
        frames: decodes clips.
        geometry: what the encoder was made for.
        seed: of all draws.
        token_drop: share of the tubes that are left out.
        rand_augment: random operations; ``None``: none.
        erasing: share of samples of which a box is erased.
        flip_share: share of samples that are mirrored.
        latest: the frames that were decoded last, for the next repeat of the same clip.
    """

    frames: ClipFrames
    geometry: Geometry
    seed: int
    token_drop: float
    rand_augment: RandAugment | None
    erasing: float
    flip_share: float
    latest: dict[tuple[str, int], Pixels] = dataclasses.field(default_factory=dict)

    def sample(self, clip: Clip, epoch: int, seen: Seen) -> Sample:
        """One clip as a training sees it.

        ``clip uint8 [C T H W]``, the positions ``[V]`` that the encoder may see, ``num_slots []`` that count, and ``truth_0``,
        ``truth_1`` ... ``[n_classes]``.
        """
        purpose = (epoch, clip.clip_id, seen.repeat)
        frames = self._square(self._window(clip, epoch), generator(self.seed, "crop", *purpose))
        pixels = torch.from_numpy(rearrange(frames, "T H W C -> C T H W").copy())
        if self.rand_augment:
            pixels = rand_augment(pixels, self.rand_augment, generator(self.seed, "operations", *purpose))
        pixels = erase(pixels, self.erasing, generator(self.seed, "erasing", *purpose))
        num_recorded = pixels.shape[1]
        return {
            SAMPLE: " ".join(map(str, (clip.clip_id, epoch, seen.repeat))),
            "clip": pixels[:, torch.arange(self.geometry.views.num_frames) % num_recorded],
            "positions": kept_tokens(self.geometry.grid, self.token_drop, generator(self.seed, "tokens", *purpose)),
            "num_slots": torch.tensor(num_slots(self.geometry, num_recorded)),
            **{f"truth_{number}": truth for number, truth in enumerate(seen.truth)},
        }

    def _window(self, clip: Clip, epoch: int) -> Pixels:
        """Recorded frames in a row ``uint8 [T H W C]``, as many as a view has or all."""
        key = (clip.clip_id, epoch)
        if key not in self.latest:
            num_frames = min(self.geometry.views.num_frames, clip.num_frames)
            start = below(clip.num_frames - num_frames + 1, generator(self.seed, "start", epoch, clip.clip_id))
            frames = self.frames.read(clip, start, num_frames)
            self.latest.clear()
            self.latest[key] = frames
        return self.latest[key]

    def _square(self, frames: Pixels, source: torch.Generator) -> Pixels:
        """The part of the frames that a view shows, at a place and in a direction drawn from ``source``."""
        side = self.geometry.views.size_px
        y, x = (below(length - side + 1, source) for length in frames.shape[1:3])
        square = frames[:, y : y + side, x : x + side]
        return square[:, :, ::-1] if float(torch.rand((), generator=source)) < self.flip_share else square


def num_slots(geometry: Geometry, num_recorded: int) -> int:
    """Slots that count of so many recorded frames: those that show nothing else, or the first where there is none."""
    return max(1, num_recorded // geometry.model.patching.tubelet_frames)
