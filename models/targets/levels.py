"""The tokenizer's codes as classes, taken apart: which of its levels each channel of the quantizer has."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch.nn import functional

from models.grid import Patching
from models.quantizers import QuantizerConfig
from models.shapes import Float, Int, Shaped, Tensor
from models.targets import Target, TargetConfig


class Config(TargetConfig):
    """Classify the level of every channel of a token's code.

    Source: our choice. Hundreds of thousands of codes are too many classes for a head; six channels of eight levels are 48
    numbers. arXiv 2411.13683 regresses vectors instead, see ``code_vectors``.
    """

    needs: ClassVar[tuple[str, ...]] = ("codes",)

    name: Literal["levels"] = "levels"
    """The name in a recipe."""

    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """A module without parameters: a code's digits are its levels."""
        return Levels(quantizer.channel_levels)


class Levels(Target):
    """The digits of ``products["codes"]``, and the cross entropy of predicted logits with them.

    A prediction holds the logits of the first channel's levels, then those of the second's, and so on.

    Args:
        channel_levels: levels of every channel; the first channel is the least significant digit of a code.
    """

    base: Tensor
    radix: Tensor

    def __init__(self, channel_levels: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_levels, self.dim = channel_levels, sum(channel_levels)
        base = [math.prod(channel_levels[:channel]) for channel in range(len(channel_levels))]
        self.register_buffer("base", torch.tensor(base), persistent=False)
        self.register_buffer("radix", torch.tensor(channel_levels), persistent=False)

    def forward(
        self, patches: Float[Tensor, "B P patch_dim"], products: Mapping[str, Shaped[Tensor, "B P"]]
    ) -> Int[Tensor, "B P channels"]:
        """The level of every channel, from 0."""
        return products["codes"].long()[..., None] // self.base % self.radix

    def error(self, predictions: Float[Tensor, "B P X"], targets: Shaped[Tensor, "B P Y"]) -> Float[Tensor, "B P"]:
        """Cross entropy in nats, the mean over channels: ln 8 for a guess among eight levels, of however many channels."""
        logits = torch.split(
            predictions.float().flatten(0, 1), list(self.channel_levels), dim=-1
        )  # [B*P, levels] of every channel
        levels = targets.flatten(0, 1).unbind(dim=-1)  # [B*P] of every channel
        found = [functional.cross_entropy(*pair, reduction="none") for pair in zip(logits, levels, strict=True)]
        return torch.stack(found).mean(dim=0).view(targets.shape[:2])

    def best_constant(self, targets: Shaped[Tensor, "B P Y"], weight: Float[Tensor, "B P"]) -> Float[Tensor, " X"]:
        """The logarithm of how often each level occurs; its error is the mean entropy of the channels."""
        per_channel = []
        for channel, num_levels in enumerate(self.channel_levels):
            occurs = functional.one_hot(targets[..., channel], num_levels) * weight[..., None]  # [B, P, levels]
            # A level that never occurs gets a logit that is low and finite: infinity times a weight of zero is no number.
            per_channel.append(occurs.sum(dim=(0, 1)).clamp(min=1e-6).log())
        return torch.cat(per_channel)
