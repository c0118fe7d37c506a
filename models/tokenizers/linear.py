"""The linear tokenizer: every tubelet projected on a few directions, each coefficient quantized by itself.

Nothing in it is trained by gradients. As it is built, the directions are the lowest frequencies of a block transform; with
weights from a file they may be any others, such as principal components. It is what a learned tokenizer of the same
rate must beat, and shows how a frozen tokenizer of another kind fits.
"""

import math
from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import model_validator

from models.grid import Grid, Patching, patchify, unpatchify
from models.shapes import Float, Int, Tensor
from models.tokenizers import Tokenizer, TokenizerConfig, full_precision, slot_distance

_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue. Source: ITU-R BT.601."""
_LUMA_SPREAD, _CHROMA_SPREAD = 0.25, 0.05
"""Standard deviation of the means of tubelets over natural video, about; a file of weights has measured ones."""


class Config(TokenizerConfig):
    """A projection; its size follows from the patches and the quantizer."""

    is_trained: ClassVar[bool] = False

    name: Literal["linear"] = "linear"
    """The name in a recipe."""

    @model_validator(mode="after")
    def _has_a_channel_per_colour(self) -> "Config":
        if len(self.quantizer.channel_levels) < 3:
            raise ValueError(f"quantizer has {len(self.quantizer.channel_levels)} channels; brightness and colour need 3")
        return self

    def build(self) -> "LinearTokenizer":
        """The block transform."""
        return LinearTokenizer(self)


class LinearTokenizer(Tokenizer):
    """Coefficients of tubelets along fixed directions.

    A coefficient over its ``scale`` is the latent; what a level stands for is read from ``table``, in units of ``scale``.

    Source: our choice, as a yardstick; block transforms and principal components are textbook matter.
    """

    basis: Tensor
    """Directions of length 1, ``[d patch_dim]``."""
    mean: Tensor
    """The patch at the origin, ``[patch_dim]``."""
    scale: Tensor
    """Coefficient that becomes a latent of 1, ``[d]``."""
    table: Tensor
    """Latent that every level of a channel is rebuilt as, ``[d levels]``."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        basis, spread = lowest_frequencies(config.patching, self.quantizer.dim)
        self.register_buffer("basis", basis)
        self.register_buffer("mean", torch.full((config.patching.patch_dim,), 0.5))
        self.register_buffer("scale", spread)
        self.register_buffer("table", self._mid_levels())

    def latents(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w d"]:
        """Scaled coefficients of every token."""
        grid = self.config.patching.grid(clip.shape[2], clip.shape[3])
        patches = patchify(clip, self.config.patching)  # [B, N, patch_dim]
        coefficients = (patches - self.mean) @ self.basis.T / self.scale
        return rearrange(coefficients, "B (t h w) d -> B t h w d", t=grid.t, h=grid.h)

    def rebuild(self, vectors: Float[Tensor, "B t h w d"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels, which may leave [0, 1], from the levels of every channel."""
        digits = self._digits(self.quantizer.codes(vectors))
        levels = torch.arange(self.quantizer.dim, device=digits.device)
        coefficients = self.table[levels, digits] * self.scale  # [B, t, h, w, d]
        patches = rearrange(coefficients @ self.basis + self.mean, "B t h w pixels -> B (t h w) pixels")
        return unpatchify(patches, self.config.patching, Grid(*vectors.shape[1:4]))

    def priority(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w"]:
        """Distance of every token's coefficients from those at the same place in the slot before."""
        with full_precision(clip):
            return slot_distance(rearrange(self.latents(clip.float()) * self.scale, "B t h w d -> B d t h w"))

    def _digits(self, codes: Int[Tensor, "*batch"]) -> Int[Tensor, "*batch d"]:
        """The level of every channel."""
        levels = torch.tensor(self.config.quantizer.channel_levels, device=codes.device)
        base = torch.cumprod(levels, dim=0) // levels
        return codes[..., None] // base % levels

    def _mid_levels(self) -> Float[Tensor, "d levels"]:
        """The middle of the latents that are rounded to each level, as far as the quantizer's own numbers tell."""
        fine = torch.linspace(-3, 3, 6001)[:, None].expand(-1, self.quantizer.dim)
        digits = self._digits(self.quantizer.codes(self.quantizer(fine)))  # [6001, d]
        table = torch.zeros(self.quantizer.dim, max(self.config.quantizer.channel_levels))
        for channel in range(self.quantizer.dim):
            for level in range(self.config.quantizer.channel_levels[channel]):
                table[channel, level] = fine[digits[:, channel] == level, channel].mean()
        return table


def lowest_frequencies(patching: Patching, count: int) -> tuple[Float[Tensor, "count patch_dim"], Float[Tensor, " count"]]:
    """Directions of a block cosine transform: brightness from the lowest frequency up, then the mean of two colours.

    Returns:
        directions of length 1, and about how far coefficients along them spread.
    """
    shape = (patching.tubelet_frames, patching.patch_px, patching.patch_px)
    places = [(t, y, x) for t in range(shape[0]) for y in range(shape[1]) for x in range(shape[2])]
    # One step in time counts as much as one in space, whatever the number of steps there are.
    lowest = sorted(places, key=lambda place: (sum(place), place))[: count - 2]
    luma, flat = torch.tensor(_LUMA), torch.tensor([1.0, 1.0, 1.0])
    colours = [torch.linalg.cross(luma, flat), torch.linalg.cross(torch.linalg.cross(luma, flat), luma)]
    waves = [*(_wave(place, shape) for place in lowest), *[_wave((0, 0, 0), shape)] * 2]
    tints = [*[luma] * len(lowest), *colours]
    basis = torch.stack([torch.einsum("thw,c->thwc", wave, tint).flatten() for wave, tint in zip(waves, tints, strict=True)])
    spread = [_LUMA_SPREAD / (1 + sum(place)) ** 1.5 for place in lowest] + [_CHROMA_SPREAD] * 2
    return basis / basis.norm(dim=1, keepdim=True), torch.tensor(spread) * math.sqrt(patching.patch_dim)


def _wave(place: tuple[int, int, int], shape: tuple[int, int, int]) -> Float[Tensor, "dt dh dw"]:
    axes = [
        torch.cos(math.pi * frequency * (torch.arange(size) + 0.5) / size) for frequency, size in zip(place, shape, strict=True)
    ]
    return torch.einsum("t,h,w->thw", *axes)
