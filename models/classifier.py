"""A video transformer that names classes: encoder, pooling, one linear layer per question.

The encoder sees whichever tokens it is given: a part of them while it is trained, all of them afterwards. What is drawn by
chance, which tokens and which branches are left out, is given as well, so that nothing here has a state but parameters.
"""

from collections.abc import Sequence

import torch
from torch import nn

from models.grid import Grid
from models.masking import tube
from models.pooling import PoolingConfig
from models.shapes import Bool, Float, Int, Tensor
from models.vit import Encoder

HEAD_STD = 2e-5
"""Spread of the first weights of the heads, so small that training starts from equal probabilities. Source: MAE, arXiv
2111.06377, in its fine-tuning code."""


class Classifier(nn.Module):
    """Scores of the classes of one question, or of several that are asked together, such as verb and noun.

    The encoder's final norm is kept and a second one follows the pooling; VideoMAE, arXiv 2203.12602, has the second alone.

    Args:
        encoder: taken over, not copied.
        pooling: from its tokens to one vector.
        num_classes: classes of every question.
    """

    def __init__(self, encoder: Encoder, pooling: PoolingConfig, num_classes: Sequence[int]) -> None:
        super().__init__()
        width = encoder.embed.out_features
        self.num_classes = tuple(num_classes)
        self.encoder = encoder
        self.pooling = pooling.build(width, encoder.blocks[0].attention.num_heads)  # type: ignore[union-attr, arg-type]
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, sum(num_classes))
        nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        patches: Float[Tensor, "B V patch_dim"],
        positions: Int[Tensor, "B V"],
        *,
        exists: Bool[Tensor, "B V"] | None = None,
        branch_scales: Float[Tensor, "depth 2 B"] | None = None,
    ) -> tuple[Float[Tensor, "B classes"], ...]:
        """Per question the scores of its classes, before softmax or sigmoid.

        Args:
            patches: pixels in [0, 1].
            positions: where each patch lies in the clip.
            exists: patches that count; the scores are those that the clip would have without the others. ``None``: all.
            branch_scales: see :func:`drop_path`; ``None``: every branch as it is.
        """
        tokens = self.encoder(patches, positions, exists=exists, branch_scales=branch_scales)
        scores: Tensor = self.head(self.norm(self.pooling(tokens, exists)))
        return torch.split(scores.float(), list(self.num_classes), dim=1)

    def layers(self) -> dict[str, int]:
        """The layer of every parameter by its name: 0 the embedding, 1 ... depth the blocks, depth + 1 all that follows.

        Source: BEiT, arXiv 2106.08254.
        """
        return {name: self._layer(name) for name, _ in self.named_parameters()}

    def _layer(self, name: str) -> int:
        if name.startswith("encoder.embed."):
            return 0
        if name.startswith("encoder.blocks."):
            return int(name.split(".")[2]) + 1
        return len(self.encoder.blocks) + 1


def drop_path(depth: int, rate: float, num_clips: int, generator: torch.Generator) -> Float[Tensor, "depth 2 B"] | None:
    """What the branches of a clip are multiplied with: 0 where one is left out, else what keeps the expected value.

    Args:
        depth: blocks, of which the first never loses a branch and the others with a share that rises linearly.
        rate: the share of the last block; at 0 the answer is ``None``.
        num_clips: clips, each of which loses branches of its own.
        generator: the only source of chance.

    Source: stochastic depth, arXiv 1603.09382, per clip and branch.
    """
    if not rate:
        return None
    kept = 1 - torch.linspace(0, rate, depth)[:, None, None]  # [depth, 1, 1]
    is_kept = torch.rand(depth, 2, num_clips, generator=generator) < kept
    return is_kept / kept


def kept_tokens(grid: Grid, drop: float, generator: torch.Generator) -> Int[Tensor, " V"]:
    """The positions of random tubes, all but a share of them that is rounded down: the same patches in every slot.

    Source: arXiv 2411.13683 drops 20 % of the tubes when it fine-tunes on 128 frames.
    """
    everywhere = torch.ones(grid.num_tokens, dtype=torch.bool)
    return tube.Config(ratio=drop).select(grid, products={}, real=everywhere, generator=generator)


def seen_slots(positions: Int[Tensor, "B V"], slot_tokens: int, num_slots: Int[Tensor, " B"]) -> Bool[Tensor, "B V"]:
    """Which positions lie within the first slots of a clip.

    Args:
        positions: of tokens.
        slot_tokens: tokens of one slot.
        num_slots: how many slots of every clip count.
    """
    return positions // slot_tokens < num_slots[:, None]
