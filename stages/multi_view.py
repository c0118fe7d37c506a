"""Several views of a tested clip: parts of time and parts of the frame, whose answers are averaged.

Source: the usual T x S testing of video classification, such as 5 x 3 in VideoMAE, arXiv 2203.12602. View 0 is always one of
them; views that would show the same pixels are one, so a short clip or a square one has fewer.
"""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Literal, Self

import numpy as np
from pydantic import Field

from models.config import Config
from stages.batches import ClipFrames
from stages.networks import geometry
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.storage.targets.reading import TargetReader
from stages.video_decode import Pixels
from stages.views import View, cut, stored_view


class MultiViewConfig(Config):
    """How many views of a tested clip are read; probes always learn on view 0."""

    temporal: int = Field(default=1, gt=0)
    """Starts, spread evenly over a clip that is longer than a view."""
    spatial: Literal[1, 3] = 1
    """Squares along the longer side of the stored clip: its centre, or both ends and the centre."""


def views_of(clip: Clip, first: View, num_frames: int, config: MultiViewConfig) -> list[View]:
    """The different views of a clip, view 0 first.

    Args:
        clip: the clip.
        first: its view 0, which starts with the clip and shows the centre.
        num_frames: frames of a view.
        config: how many.
    """
    spare_frames = max(0, clip.num_frames - num_frames)
    starts = np.linspace(0, spare_frames, config.temporal).round().astype(int).tolist()
    places = [(first.start_frame, first.y_px, first.x_px)]
    for start, (y, x) in itertools.product(starts, _corners(clip, first, config.spatial)):
        if (start, y, x) not in places:
            places.append((start, y, x))
    return [
        View(
            clip_id=clip.clip_id,
            view=number,
            start_frame=start,
            y_px=y,
            x_px=x,
            size_px=first.size_px,
            flip=False,
            num_real_frames=min(num_frames, clip.num_frames - start),
        )
        for number, (start, y, x) in enumerate(places)
    ]


def _corners(clip: Clip, first: View, spatial: int) -> list[tuple[int, int]]:
    """Top left corners of the squares."""
    if spatial == 1:
        return [(first.y_px, first.x_px)]
    spare_y, spare_x = clip.height_px - first.size_px, clip.width_px - first.size_px
    if spare_x >= spare_y:
        return [(first.y_px, x) for x in (0, spare_x // 2, spare_x)]
    return [(y, first.x_px) for y in (0, spare_y // 2, spare_y)]


@dataclasses.dataclass(frozen=True)
class Footage:
    """What an evaluation sees of clips.

    Args:
        frames: decodes clips.
        targets: knows view 0 of every clip.
        view_frames: frames of a view.
    """

    frames: ClipFrames
    targets: TargetReader
    view_frames: int

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact]) -> Self:
        """The footage behind an evaluation's inputs."""
        view_frames = geometry(inputs["pretrain"]).views.num_frames
        return cls(ClipFrames(inputs["shard"]), TargetReader(inputs["precompute"]), view_frames)

    def views(self, clip: Clip, config: MultiViewConfig) -> list[View]:
        """The different views of a clip, view 0 first."""
        return views_of(clip, self.first(clip), self.view_frames, config)

    def first(self, clip: Clip) -> View:
        """View 0 of a clip."""
        return stored_view(self.targets.place(clip, 0))

    def pixels(self, clip: Clip) -> Pixels:
        """View 0 of a clip, a short one looped, ``uint8 [T H W C]``."""
        return cut(self.frames, clip, self.first(clip), self.view_frames)
