"""Choosing exactly k of N: once as positions, once as a layer that lets a gradient through."""

import torch

from models.shapes import Float, Int, Tensor


def top_k_positions(scores: Float[Tensor, "*batch N"], k: int) -> Int[Tensor, "*batch {k}"]:
    """Positions of the k largest scores, largest first; among equal scores the lowest position wins.

    A stable sort instead of ``torch.topk``, whose choice among equals differs between devices and versions.

    Raises:
        ValueError: k is negative or larger than the number of scores.
    """
    if not 0 <= k <= scores.shape[-1]:
        raise ValueError(f"cannot take the top {k} of {scores.shape[-1]} scores")
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :k]


def straight_through_top_k(scores: Float[Tensor, "B N"], k: int, temperature: float) -> Float[Tensor, "B N"]:
    """Exactly k ones per clip and zeros elsewhere; backward, the slope of a sigmoid centred on the k-th score.

    Scores are standardised per clip first, so that ``temperature`` means the same whatever the scale of the scorer.

    Args:
        scores: one score per token; any scale.
        k: how many tokens to keep, 1 ... N.
        temperature: width of the sigmoid in standard deviations of the scores; smaller lets fewer tokens learn.

    Raises:
        ValueError: k is not in 1 ... N.

    Source: our choice; arXiv 2411.13683 names a differentiable top-k layer without saying which.
    """
    if k < 1:
        raise ValueError(f"a top-k layer keeps at least one token, got k = {k}")
    chosen = top_k_positions(scores.detach(), k)  # [B, k]
    hard = torch.zeros_like(scores).scatter(1, chosen, 1.0)
    centred = scores - scores.mean(dim=1, keepdim=True)
    standardised = centred * (centred.square().mean(dim=1, keepdim=True) + 1e-6).rsqrt()
    threshold = standardised.detach().gather(1, chosen[:, -1:])  # [B, 1]
    soft = torch.sigmoid((standardised - threshold) / temperature)
    # Adding an exact zero, not (hard - soft) to soft: the forward value must be 0 or 1 to the last bit.
    return hard + (soft - soft.detach())
