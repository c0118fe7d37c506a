"""Two clips mixed into one with both of their labels: mixup and cutmix, over all frames alike, and smoothed labels.

A batch is mixed with itself in reverse, by one draw for all of it.
"""

import random
from typing import NamedTuple

import torch
from pydantic import Field

from models.config import Config
from models.shapes import Float, Tensor


class Mixing(Config):
    """How batches are mixed. Source of the defaults: VideoMAE, arXiv 2203.12602, and the ObjectViViT recipe of Scenic."""

    mixup: float | None = Field(default=0.8, gt=0)
    """Both parameters of the beta distribution of a mixup's share; ``None``: no mixup. Source: arXiv 1710.09412."""
    cutmix: float | None = Field(default=1.0, gt=0)
    """The same of a cutmix, whose share is an area; ``None``: no cutmix. Source: arXiv 1905.04899."""
    cutmix_share: float = Field(default=0.5, ge=0, le=1)
    """Share of batches that take a cutmix where both are wanted."""


class Box(NamedTuple):
    """A part of every frame, in pixels; the ends are beyond it."""

    top: int
    bottom: int
    left: int
    right: int


class Mix(NamedTuple):
    """How one batch is mixed."""

    own: float
    """The share that a clip keeps of itself, and so the weight of its labels."""
    box: Box | None = None
    """What comes from the other clip; ``None``: everything, faded."""


def draw_mix(config: Mixing, *, height: int, width: int, generator: torch.Generator) -> Mix | None:
    """How to mix a batch of clips of a size in pixels; ``None`` where the config wants nothing."""
    wants_cutmix = config.cutmix is not None and (
        config.mixup is None or float(torch.rand((), generator=generator)) < config.cutmix_share
    )
    alpha = config.cutmix if wants_cutmix else config.mixup
    if alpha is None:
        return None
    seed = int(torch.randint(2**62, (), generator=generator))
    own = random.Random(seed).betavariate(alpha, alpha)  # torch draws beta from the global generator alone
    if not wants_cutmix:
        return Mix(own)
    box = _box(1 - own, height, width, generator)
    area = (box.bottom - box.top) * (box.right - box.left)
    return Mix(1 - area / (height * width), box)


def mixed(clips: Float[Tensor, "B C T H W"], mix: Mix) -> Float[Tensor, "B C T H W"]:
    """The clips, each with its part of the one on the other side of the batch."""
    others = clips.flip(0)
    if mix.box is None:
        return mix.own * clips + (1 - mix.own) * others
    top, bottom, left, right = mix.box
    joined = clips.clone()
    joined[..., top:bottom, left:right] = others[..., top:bottom, left:right]
    return joined


def mixed_labels(labels: Float[Tensor, "B K"], mix: Mix) -> Float[Tensor, "B K"]:
    """The labels of mixed clips: of both, each with the share of pixels that is its clip's."""
    return mix.own * labels + (1 - mix.own) * labels.flip(0)


def smoothed(labels: Float[Tensor, "B K"], smoothing: float) -> Float[Tensor, "B K"]:
    """Distributions over classes of which a share is spread evenly; a clip without a class stays without.

    Source: arXiv 1512.00567, section 7.
    """
    return (1 - smoothing) * labels + smoothing * labels.sum(dim=1, keepdim=True) / labels.shape[1]


def _box(area: float, height: int, width: int, generator: torch.Generator) -> Box:
    """A box with a share of the frame's area and its proportions, cut off where it leaves the frame."""
    sides = [int(side * area**0.5) for side in (height, width)]
    centres = [int(torch.randint(side, (), generator=generator)) for side in (height, width)]
    edges = [
        (max(0, centre - side // 2), min(full, centre - side // 2 + side))
        for centre, side, full in zip(centres, sides, (height, width), strict=True)
    ]
    return Box(*edges[0], *edges[1])
