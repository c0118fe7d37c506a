"""One layer in which a class token attends to all tokens and nothing attends back."""

from typing import Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import nn
from torch.nn import functional

from models.pooling import PoolingConfig
from models.shapes import Bool, Float, Tensor
from models.vit import initialise


class Config(PoolingConfig):
    """A class-attention layer.

    Source: CaiT, arXiv 2103.17239, section 2.2; arXiv 2411.13683 pools with one such layer for ViT-L. CaiT's scales of the
    branches are left out: they are for depth, and here is one layer.
    """

    name: Literal["class_attention"] = "class_attention"
    """The name in a recipe."""

    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLP over the width of a token."""

    def build(self, width: int, num_heads: int) -> "ClassAttention":
        """The module, with as many heads as the encoder."""
        return ClassAttention(width, num_heads, self.mlp_ratio)


class ClassAttention(nn.Module):
    """The class token after it attended to itself and to the tokens, and after an MLP.

    Args:
        width: features of a token.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over ``width``.
    """

    def __init__(self, width: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.class_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)  # its bias would add the same number to every score
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, int(width * mlp_ratio)), nn.GELU(), nn.Linear(int(width * mlp_ratio), width))
        self.apply(initialise)

    def forward(self, tokens: Float[Tensor, "B V D"], exists: Bool[Tensor, "B V"] | None = None) -> Float[Tensor, "B D"]:
        """One vector per clip."""
        asking = self.class_token.to(tokens.dtype).expand(len(tokens), 1, -1)  # [B, 1, D]
        asking = asking + self._attended(self.norm_attention(torch.cat([asking, tokens], dim=1)), exists)
        pooled: Tensor = asking + self.mlp(self.norm_mlp(asking))
        return pooled[:, 0]

    def _attended(self, tokens: Tensor, exists: Tensor | None) -> Tensor:
        """What the first of the tokens takes from all of them, ``[B, 1, D]``."""
        parts = (self.query(tokens[:, :1]), self.key(tokens), self.value(tokens))
        query, key, value = (rearrange(part, "B N (heads d) -> B heads N d", heads=self.num_heads) for part in parts)
        keys = None if exists is None else functional.pad(exists, (1, 0), value=True)[:, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        joined: Tensor = self.out(rearrange(attended, "B heads N d -> B N (heads d)"))
        return joined
