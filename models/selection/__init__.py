"""Layers that keep exactly k of N tokens and let a gradient through to the scores. One file per form, named as in a recipe.

Forward, all of them give ones and zeros; they differ in the gradient, and in whether chance has a part. arXiv 2411.13683 names
a differentiable top-k layer without saying which.
"""

from abc import ABC, abstractmethod

import torch

from models.config import Config
from models.shapes import Float, Tensor
from models.top_k import top_k_positions


class SelectionConfig(Config, ABC):
    """What every form offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def keep(self, scores: Float[Tensor, "B N"], k: int, generator: torch.Generator | None) -> Float[Tensor, "B N"]:
        """Exactly k ones per clip and zeros elsewhere, with a gradient to the scores.

        Args:
            scores: one score per token; any scale.
            k: how many tokens to keep, 1 ... N.
            generator: the only source of chance; ``None`` takes the k largest scores, as after training.

        Raises:
            ValueError: k is not in 1 ... N.
        """


def hard_top_k(scores: Float[Tensor, "*batch N"], k: int) -> Float[Tensor, "*batch N"]:
    """Ones at the k largest scores and zeros elsewhere, without a gradient; among equal scores the lowest position wins.

    Raises:
        ValueError: k is not in 1 ... N.
    """
    if k < 1:
        raise ValueError(f"a top-k layer keeps at least one token, got k = {k}")
    return torch.zeros_like(scores).scatter(-1, top_k_positions(scores.detach(), k), 1.0)


def standardised(scores: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Scores of every clip with mean 0 and variance 1, so that a temperature means the same whatever the scorer's scale."""
    centred = scores.float() - scores.float().mean(dim=1, keepdim=True)
    return centred * (centred.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()


def with_sigmoid_gradient(scores: Float[Tensor, "B N"], k: int, temperature: float) -> Float[Tensor, "B N"]:
    """The hard top k forward; backward, the slope of a sigmoid centred on the k-th largest score.

    Args:
        scores: standardised, with noise or without.
        k: how many to keep.
        temperature: width of the sigmoid, in units of the scores; smaller lets fewer tokens learn.
    """
    hard = hard_top_k(scores, k)
    threshold = scores.detach().masked_fill(hard == 0, torch.inf).amin(dim=1, keepdim=True)  # [B, 1]
    soft = torch.sigmoid((scores - threshold) / temperature)
    # Adding an exact zero, not (hard - soft) to soft: the forward value must be 0 or 1 to the last bit.
    return hard + (soft - soft.detach())
