"""k tokens drawn without replacement, likelier with a larger score."""

from typing import Literal

import torch
from pydantic import Field

from models.selection import SelectionConfig, standardised, with_sigmoid_gradient
from models.shapes import Float, Tensor


class Config(SelectionConfig):
    """The top k of scores with Gumbel noise, which draws without replacement; backward, a sigmoid around the k-th.

    Source: Gumbel top-k, arXiv 1903.06059; the straight-through gradient is our choice.
    """

    name: Literal["gumbel"] = "gumbel"
    """The name in a recipe."""

    temperature: float = Field(default=1.0, gt=0)
    """Width of the sigmoid in standard deviations of the scores. Our choice."""

    noise: float = Field(default=0.3, gt=0)
    """Scale of the noise, in standard deviations of the scores. Our choice."""

    def keep(self, scores: Float[Tensor, "B N"], k: int, generator: torch.Generator | None) -> Float[Tensor, "B N"]:
        """A draw, or without a generator the k largest."""
        plain = standardised(scores)
        if generator is None:
            return with_sigmoid_gradient(plain, k, self.temperature).to(scores.dtype)
        even = torch.rand(plain.shape, generator=generator, device=generator.device).to(plain.device)
        drawn = -torch.log(-torch.log(even.clamp(1e-7, 1 - 1e-7)))
        return with_sigmoid_gradient(plain + self.noise * drawn, k, self.temperature).to(scores.dtype)
