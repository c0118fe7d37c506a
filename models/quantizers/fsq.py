"""Finite scalar quantization: every channel of a latent is rounded to a few fixed levels, and the levels make the code.

There is no codebook to learn, to commit to or to keep alive; the layer has no parameters at all.
"""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator

from models.quantizers import Quantizer, QuantizerConfig
from models.shapes import Float, Int, Tensor


class Config(QuantizerConfig):
    """Source: arXiv 2309.15505; arXiv 2411.13683 uses it with 2**18 codes and does not say how they are split."""

    name: Literal["fsq"] = "fsq"
    """The name in a recipe."""

    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field(default=(8,) * 6, min_length=1)
    """Levels per channel; six of 8 make the paper's 2**18 codes, the split into six is our choice."""

    @model_validator(mode="after")
    def _codes_fit_where_they_are_stored(self) -> "Config":
        if math.prod(self.levels) > 2**31:
            raise ValueError(f"levels {list(self.levels)} make {math.prod(self.levels):.3g} codes; there may be 2**31 at most")
        return self

    def build(self) -> "FSQ":
        """The layer."""
        return FSQ(self.levels)

    @property
    def channel_levels(self) -> tuple[int, ...]:
        """The levels themselves."""
        return self.levels


class FSQ(Quantizer):
    """Rounds latents to a grid of vectors in [-1, 1] and numbers the grid points.

    A channel with L levels is squashed to just over L integers and rounded, with the gradient passed straight through.
    For even L the grid has one more point below zero than above it: -1 ... 1 - 2/L.

    Args:
        levels: levels of every channel; the first channel is the least significant digit of a code.

    Raises:
        ValueError: a channel has fewer than three levels; two need a symmetric variant that is not this one.

    Source: arXiv 2309.15505, appendix A.1.
    """

    half_range: Tensor
    offset: Tensor
    shift: Tensor
    half_width: Tensor
    base: Tensor
    radix: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if not levels or min(levels) < 3:
            raise ValueError(f"every channel needs at least 3 levels, got {levels}")
        self.dim, self.codebook_size = len(levels), math.prod(levels)
        self.zero_code = sum(level // 2 * math.prod(levels[:channel]) for channel, level in enumerate(levels))
        per_channel = torch.tensor(levels)
        # A thousandth more than half the range keeps the outermost levels reachable by a finite latent.
        half_range = (per_channel - 1) * 1.001 / 2
        offset = torch.where(per_channel % 2 == 0, 0.5, 0.0)
        constants = {
            "half_range": half_range,
            "offset": offset,
            "shift": torch.atanh(offset / half_range),
            "half_width": per_channel // 2,
            "base": torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))]),
            "radix": per_channel,
        }
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)

    def forward(self, latents: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The nearest grid vectors, in float32 and in [-1, 1]; the gradient is that of the squashing alone.

        Rounding is done in float32 whatever the input is: in bfloat16 neighbouring levels can merge.
        """
        squashed = torch.tanh(latents.float() + self.shift) * self.half_range - self.offset
        # The rounded value plus an exact zero, so that the forward pass lands on the grid and not beside it.
        rounded = squashed.detach().round() + (squashed - squashed.detach())
        return rounded / self.half_width

    def codes(self, vectors: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The numbers of grid vectors, 0 ... K-1."""
        return self._numbered((vectors.float() * self.half_width).round().long())

    def vectors(self, codes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The grid vectors of codes; the inverse of ``codes``."""
        digits = codes.long()[..., None] // self.base % self.radix
        return (digits - self.half_width) / self.half_width

    def nearest(self, points: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The code of the grid vector closest to each point, inside the grid or beyond its edges."""
        lowest, highest = -self.half_width, self.radix - 1 - self.half_width
        return self._numbered(torch.clamp((points.float() * self.half_width).round().long(), lowest, highest))

    def _numbered(self, steps: Int[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """Codes of grid points, given in steps from the centre along every channel."""
        return ((steps + self.half_width) * self.base).sum(dim=-1)
