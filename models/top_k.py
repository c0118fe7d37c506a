"""The positions of the k largest of N scores."""

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
