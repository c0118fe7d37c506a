"""Clips made harder to recognise: RandAugment and random erasing, the same for all frames of a clip.

Everything is torch on ``uint8 [C T H W]``, and every draw comes from the generator that is given. torchvision has such
operations for pictures; there is no build of it for every machine that this runs on, and its RandAugment draws from the global
generator. Where an operation looks at brightness (equalize, autocontrast, contrast), it looks at the whole clip, so that it
changes all frames alike: our choice, published code treats frames as pictures.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from einops import rearrange
from pydantic import Field
from torch.nn import functional

from models.config import Config as BaseConfig
from models.shapes import Tensor, UInt8
from models.vit import PIXEL_MEAN, PIXEL_STD

_MOST = 10
"""The magnitude at which an operation has its whole range."""
_LUMA = (0.299, 0.587, 0.114)
"""Weights of RGB in brightness. Source: ITU-R BT.601."""
_ERASED_SHARE = (0.02, 1 / 3)
"""Least and largest area of what is erased. Source: timm, which VideoMAE uses; arXiv 1708.04896 goes to 0.4."""
_ERASED_RATIO = 0.3
"""Height over width of what is erased lies between this and its inverse. Source: arXiv 1708.04896."""
_ATTEMPTS = 10


class RandAugment(BaseConfig):
    """Random operations in a row. Source: arXiv 1909.13719; the defaults are VideoMAE's ``m7-n4-mstd0.5``."""

    num_operations: int = Field(default=4, ge=0)
    """Operations that are drawn for a clip, with repeats."""
    magnitude: float = Field(default=7.0, ge=0, le=_MOST)
    """Mean strength of an operation, of 10."""
    spread: float = Field(default=0.5, ge=0)
    """Standard deviation of the strength, which is drawn for every operation."""
    share: float = Field(default=0.5, ge=0, le=1)
    """Share of the drawn operations that are carried out. Source: timm, which VideoMAE uses."""


def rand_augment(clip: UInt8[Tensor, "C T H W"], config: RandAugment, generator: torch.Generator) -> UInt8[Tensor, "C T H W"]:
    """The clip after random operations, each at one strength for all frames."""
    for name, strength in drawn_operations(config, generator):
        clip = OPERATIONS[name](clip, strength)
    return clip


def drawn_operations(config: RandAugment, generator: torch.Generator) -> list[tuple[str, float]]:
    """The operations for one clip: name and strength from -1 to 1, whose sign is a direction where an operation has one."""
    found = []
    for _ in range(config.num_operations):
        number = int(torch.randint(len(OPERATIONS), (), generator=generator))
        chance, side, normal = (float(draw(1, generator=generator)) for draw in (torch.rand, torch.rand, torch.randn))
        strength = min(max(config.magnitude + config.spread * normal, 0.0), float(_MOST)) / _MOST
        if chance < config.share:
            found.append((tuple(OPERATIONS)[number], strength if side < 0.5 else -strength))
    return found


def erase(clip: UInt8[Tensor, "C T H W"], share: float, generator: torch.Generator) -> UInt8[Tensor, "C T H W"]:
    """The clip, a box of which is noise in all frames, or with luck the clip as it is.

    Args:
        clip: what to erase from.
        share: probability that something is erased.
        generator: the only source of chance.

    Source: arXiv 1708.04896; noise of ImageNet's mean and spread per channel, as VideoMAE, arXiv 2203.12602.
    """
    if float(torch.rand((), generator=generator)) >= share:
        return clip
    height, width = clip.shape[2:]
    for _ in range(_ATTEMPTS):
        area = height * width * _uniform(*_ERASED_SHARE, generator)
        ratio = math.exp(_uniform(math.log(_ERASED_RATIO), -math.log(_ERASED_RATIO), generator))
        high, wide = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < high < height and 0 < wide < width:
            top = int(torch.randint(height - high + 1, (), generator=generator))
            left = int(torch.randint(width - wide + 1, (), generator=generator))
            erased = clip.clone()
            box = erased[:, :, top : top + high, left : left + wide]
            box.copy_(_rounded(255 * (_per_channel(PIXEL_MEAN) + _per_channel(PIXEL_STD) * _noise(box, generator))))
            return erased
    return clip


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _per_channel(values: tuple[float, float, float]) -> Tensor:
    return torch.tensor(values)[:, None, None, None]


def _rounded(pixels: Tensor) -> Tensor:
    return pixels.round().clamp(0, 255).to(torch.uint8)


# Operations. Ranges are those of timm's increasing set, which the published string names; a strength is 0 ... 1, or -1 ... 1.


def rotate(clip: Tensor, strength: float) -> Tensor:
    """Turned about its centre by at most 30 degrees, clockwise where the strength is positive."""
    angle = math.radians(30 * strength)
    return _warped(clip, ((math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))))


def shear_x(clip: Tensor, strength: float) -> Tensor:
    """Rows moved by at most 0.3 of their distance to the middle row."""
    return _warped(clip, ((1.0, 0.3 * strength), (0.0, 1.0)))


def shear_y(clip: Tensor, strength: float) -> Tensor:
    """Columns moved by at most 0.3 of their distance to the middle column."""
    return _warped(clip, ((1.0, 0.0), (0.3 * strength, 1.0)))


def translate_x(clip: Tensor, strength: float) -> Tensor:
    """Moved to the left by at most 0.45 of the width."""
    return _warped(clip, ((1.0, 0.0), (0.0, 1.0)), x_px=0.45 * strength * clip.shape[3])


def translate_y(clip: Tensor, strength: float) -> Tensor:
    """Moved up by at most 0.45 of the height."""
    return _warped(clip, ((1.0, 0.0), (0.0, 1.0)), y_px=0.45 * strength * clip.shape[2])


def brightness(clip: Tensor, strength: float) -> Tensor:
    """Darker or brighter by a factor between 0.1 and 1.9."""
    return _blended(torch.zeros(()), clip, strength)


def contrast(clip: Tensor, strength: float) -> Tensor:
    """Differences from the clip's mean brightness times 0.1 ... 1.9."""
    return _blended(_grey(clip).mean().round(), clip, strength)


def colour(clip: Tensor, strength: float) -> Tensor:
    """Differences from grey times 0.1 ... 1.9."""
    return _blended(_grey(clip), clip, strength)


def sharpness(clip: Tensor, strength: float) -> Tensor:
    """Differences from a blurred clip times 0.1 ... 1.9; the outermost pixels stay."""
    kernel = torch.full((1, 1, 3, 3), 1 / 13)
    kernel[..., 1, 1] = 5 / 13
    frames = rearrange(clip.float(), "C T H W -> (C T) 1 H W")
    blurred = clip.float()
    blurred[..., 1:-1, 1:-1] = rearrange(functional.conv2d(frames, kernel), "(C T) 1 H W -> C T H W", C=len(clip))
    return _blended(blurred, clip, strength)


def posterize(clip: Tensor, strength: float) -> Tensor:
    """The highest bits of every value alone: 4 down to 0 of them."""
    lost = 8 - (4 - int(4 * abs(strength)))
    return clip >> lost << lost if lost < 8 else torch.zeros_like(clip)


def solarize(clip: Tensor, strength: float) -> Tensor:
    """Values above a limit inverted, which falls from 256 to 0."""
    limit = 256 - int(256 * abs(strength))
    return torch.where(clip.int() >= limit, 255 - clip, clip)


def invert(clip: Tensor, strength: float) -> Tensor:
    """Dark where it was bright, at any strength."""
    return 255 - clip


def autocontrast(clip: Tensor, strength: float) -> Tensor:
    """Every channel stretched over all values, at any strength."""
    low, high = (clip.float().amin((1, 2, 3), keepdim=True), clip.float().amax((1, 2, 3), keepdim=True))
    stretched = _rounded((clip.float() - low) * 255 / (high - low).clamp_min(1))
    return torch.where(high > low, stretched, clip)


def equalize(clip: Tensor, strength: float) -> Tensor:
    """Every channel with all values about equally often, at any strength."""
    return torch.stack([_equalized(channel) for channel in clip])


def _equalized(values: Tensor) -> Tensor:
    counts = values.flatten().int().bincount(minlength=256)
    step = int(counts.sum() - counts[counts > 0][-1]) // 255
    if not step:
        return values
    table = ((counts.cumsum(0) - counts + step // 2) // step).clamp(0, 255).to(torch.uint8)
    return table[values.long()]


def _grey(clip: Tensor) -> Tensor:
    """Brightness ``float [1 T H W]``, in whole numbers."""
    return (clip.float() * _per_channel(_LUMA)).sum(0, keepdim=True).round()


def _blended(nothing: Tensor, clip: Tensor, strength: float) -> Tensor:
    """As far from ``nothing`` as a factor of 1 + 0.9 times the strength takes it."""
    return _rounded(nothing + (1 + 0.9 * strength) * (clip.float() - nothing))


def _warped(
    clip: Tensor, matrix: tuple[tuple[float, float], tuple[float, float]], *, x_px: float = 0.0, y_px: float = 0.0
) -> Tensor:
    """All frames seen through one map from places in the result to places in the clip, bilinear; outside lies the mean colour.

    Args:
        clip: what to look at.
        matrix: of (x, y) from the centre, in pixels.
        x_px: added to x.
        y_px: added to y.
    """
    height, width = clip.shape[2:]
    (xx, xy), (yx, yy) = matrix
    scaled = torch.tensor([[xx, xy * height / width, 2 * x_px / width], [yx * width / height, yy, 2 * y_px / height]])
    outside = 255 * _per_channel(PIXEL_MEAN)
    layers = rearrange(clip.float() - outside, "C T H W -> 1 (C T) H W")
    places = functional.affine_grid(scaled[None], list(layers.shape), align_corners=False)
    seen = functional.grid_sample(layers, places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return _rounded(rearrange(seen, "1 (C T) H W -> C T H W", C=len(clip)) + outside)


OPERATIONS: Mapping[str, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {
        operation.__name__: operation
        for operation in (
            rotate, shear_x, shear_y, translate_x, translate_y, brightness, contrast, colour, sharpness, posterize, solarize,
            equalize, autocontrast, invert,
        )
    }
)  # fmt: skip
"""What RandAugment draws from. Source: arXiv 1909.13719, without its identity."""
