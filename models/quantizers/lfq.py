"""Lookup-free quantization: every channel of a latent keeps its sign alone, and the signs are the bits of the code.

Unlike scalar levels, signs need a loss that keeps the codes in use; it is part of the quantizer.
"""

from typing import Literal

import torch
from pydantic import Field
from torch.nn import functional

from models.quantizers import Quantizer, QuantizerConfig
from models.shapes import Float, Int, Tensor


class Config(QuantizerConfig):
    """Source: MAGVIT-v2, arXiv 2310.05737; arXiv 2411.13683 compares it with FSQ at equal numbers of codes."""

    name: Literal["lfq"] = "lfq"
    """The name in a recipe."""

    bits: int = Field(default=18, ge=1, le=31)
    """Channels of a latent; there are 2**bits codes. Source: 18 in arXiv 2310.05737."""

    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of the entropy penalty: each token sure of its bits, all tokens together using all of them.

    Source: the form in arXiv 2310.05737, section 3.1; the weight is the public reimplementations', the paper has none.
    """

    commitment_weight: float = Field(default=0.25, ge=0)
    """Weight of the squared distance from latents to their vectors. Source: VQ-VAE, arXiv 1711.00937."""

    temperature: float = Field(default=1.0, gt=0)
    """Softness of the bits within the entropy penalty. Our choice."""

    def build(self) -> "LFQ":
        """The layer."""
        return LFQ(self)

    @property
    def channel_levels(self) -> tuple[int, ...]:
        """Two per bit."""
        return (2,) * self.bits


class LFQ(Quantizer):
    """Signs of latents as vectors of -1 and 1, the first channel being the least significant bit of the code.

    Args:
        config: bits and the weights of the penalty.

    Source: arXiv 2310.05737, section 3.1.
    """

    base: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.dim, self.codebook_size, self.zero_code = config.bits, 2**config.bits, 0
        self.register_buffer("base", 2 ** torch.arange(config.bits), persistent=False)

    def forward(self, latents: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The signs, zero counting as negative, in float32; the gradient passes as if nothing had been done."""
        exact = latents.float()
        signs = torch.where(exact > 0, 1.0, -1.0)
        return signs + (exact - exact.detach())

    def codes(self, vectors: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The numbers whose bits are the positive signs."""
        return ((vectors > 0).long() * self.base).sum(dim=-1)

    def vectors(self, codes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The signs of codes; the inverse of ``codes``."""
        return (codes.long()[..., None] // self.base % 2 * 2 - 1).float()

    def nearest(self, points: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The code of the signs of each point."""
        return self.codes(points)

    def penalty(self, latents: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
        """Entropy and commitment, weighted.

        The entropy is taken bit by bit, which needs no sum over 2**bits codes: exact for one token, whose bits are
        independent given its latent, and an upper bound for all tokens together.
        """
        tokens = latents.float().reshape(-1, self.dim)  # [n, d]
        logits = 4 * tokens / self.config.temperature  # the squared distances to -1 and to 1 differ by this
        per_token = _entropy(logits).sum(dim=-1).mean()
        mean_bit = torch.sigmoid(logits).mean(dim=0)  # [d]
        together = _entropy(torch.logit(mean_bit, eps=1e-6)).sum()
        commitment = functional.mse_loss(tokens, torch.where(tokens.detach() > 0, 1.0, -1.0))
        return self.config.entropy_weight * (per_token - together) + self.config.commitment_weight * commitment


def _entropy(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Entropy in nats of bits that are one with the probability ``sigmoid(logits)``."""
    return functional.softplus(logits) - logits * torch.sigmoid(logits)
