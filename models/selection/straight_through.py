"""The k largest scores, with the gradient of a sigmoid."""

from typing import Literal

import torch
from pydantic import Field

from models.selection import SelectionConfig, standardised, with_sigmoid_gradient
from models.shapes import Float, Tensor


class Config(SelectionConfig):
    """Forward the hard top k, backward a sigmoid around the k-th score, as if tokens were kept softly. Our default."""

    name: Literal["straight_through"] = "straight_through"
    """The name in a recipe."""

    temperature: float = Field(default=1.0, gt=0)
    """Width of the sigmoid in standard deviations of the scores; smaller lets fewer tokens learn. Our choice."""

    def keep(self, scores: Float[Tensor, "B N"], k: int, generator: torch.Generator | None) -> Float[Tensor, "B N"]:
        """The k largest; chance has no part."""
        return with_sigmoid_gradient(standardised(scores), k, self.temperature).to(scores.dtype)
