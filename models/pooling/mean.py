"""The mean of all tokens."""

from typing import Literal

from torch import nn

from models.pooling import PoolingConfig
from models.shapes import Bool, Float, Tensor


class Config(PoolingConfig):
    """Has no parameters. Source: VideoMAE, arXiv 2203.12602, and arXiv 2411.13683 for ViT-B."""

    name: Literal["mean"] = "mean"
    """The name in a recipe."""

    def build(self, width: int, num_heads: int) -> "Mean":
        """The module."""
        return Mean()


class Mean(nn.Module):
    """The mean of the tokens that exist."""

    def forward(self, tokens: Float[Tensor, "B V D"], exists: Bool[Tensor, "B V"] | None = None) -> Float[Tensor, "B D"]:
        """One vector per clip."""
        if exists is None:
            return tokens.mean(dim=1)
        weight = exists[:, :, None].to(tokens.dtype)
        return (tokens * weight).sum(dim=1) / weight.sum(dim=1)
