"""Views: which frames and which square of a clip a model sees, so that stored targets always match the pixels.

View 0 is the start of the clip and its centre; the others are drawn from (seed, clip id, view). A clip shorter than the view
is looped, and what is recorded is told apart from what is repeated.
"""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import repeat

from models.config import Config
from models.grid import Grid
from models.shapes import Bool, Shaped, Tensor
from stages.batches import ClipFrames
from stages.draws import below, generator
from stages.errors import ConfigError
from stages.storage.index import Clip
from stages.storage.targets.chunks import Place
from stages.video_decode import Crop, Pixels


class ViewConfig(Config):
    """The shape of a view and how many each clip has."""

    num_views: int = 1
    """Views per clip; view 0 is the centre, the others are drawn."""
    num_frames: int = 128
    """Frames of a view, at the clip's own rate."""
    size_px: int = 224
    """Height and width of a view."""
    seed: int = 0
    """Seed of the drawn views."""


@dataclasses.dataclass(frozen=True)
class View:
    """One view of one clip: what the view table says of its pixels."""

    clip_id: str
    view: int
    start_frame: int
    y_px: int
    x_px: int
    size_px: int
    flip: bool
    num_real_frames: int
    """Frames that were recorded; the rest of the view repeats them."""

    def row(self) -> dict[str, Any]:
        """The values of the view table."""
        return dataclasses.asdict(self)


def draw_view(clip: Clip, number: int, config: ViewConfig) -> View:
    """The view with a given number, a pure function of (seed, clip id, number).

    Raises:
        ConfigError: the clip is smaller than the view.
    """
    spare_y, spare_x = clip.height_px - config.size_px, clip.width_px - config.size_px
    if min(spare_y, spare_x) < 0:
        raise ConfigError(
            f"clip {clip.clip_id} is {clip.width_px}x{clip.height_px} px, smaller than precompute.views.size_px="
            f"{config.size_px}; make shard.clip.size_px at least as large"
        )
    spare_frames = max(0, clip.num_frames - config.num_frames)
    start, y, x, flip = 0, spare_y // 2, spare_x // 2, False
    if number:
        source = generator(config.seed, "view", clip.clip_id, number)
        start, y, x = (below(spare + 1, source) for spare in (spare_frames, spare_y, spare_x))
        flip = bool(below(2, source))
    return View(
        clip_id=clip.clip_id,
        view=number,
        start_frame=start,
        y_px=y,
        x_px=x,
        size_px=config.size_px,
        flip=flip,
        num_real_frames=min(config.num_frames, clip.num_frames - start),
    )


def stored_view(place: Place) -> View:
    """The view that the values of a place belong to."""
    return View(**{field.name: getattr(place, field.name) for field in dataclasses.fields(View)})


def cut(frames: ClipFrames, clip: Clip, view: View, num_frames: int) -> Pixels:
    """The pixels of a view; nothing else of the clip is decoded.

    Args:
        frames: decodes clips.
        clip: the clip of the view.
        view: what to cut.
        num_frames: frames wanted; a shorter clip is looped.

    Returns:
        ``uint8 [num_frames size_px size_px C]``.
    """
    recorded = min(num_frames, clip.num_frames - view.start_frame)
    square = frames.read(clip, view.start_frame, recorded, Crop(view.y_px, view.x_px, view.size_px, view.size_px))
    turned = square[:, :, ::-1] if view.flip else square
    looped = turned if recorded == num_frames else turned[np.arange(num_frames) % recorded]
    return np.ascontiguousarray(looped)


def real_tokens(view: View, grid: Grid, tubelet_frames: int) -> Bool[Tensor, " N"]:
    """Which tokens show recorded frames only, rather than repeated ones."""
    slots = torch.arange(grid.t) * tubelet_frames + tubelet_frames <= view.num_real_frames
    return repeat(slots, "t -> (t h w)", h=grid.h, w=grid.w)


def per_token(values: npt.NDArray[Any]) -> Shaped[Tensor, "N ..."]:
    """Stored values ``[t h w]`` or ``[t h w c]`` in token order, in single precision or as whole numbers."""
    return torch.from_numpy(values.astype(np.float32 if values.dtype.kind == "f" else np.int64)).flatten(0, 2)
