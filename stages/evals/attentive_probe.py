"""The attentive probe: a learned query attends over the cells of the features, so that it can pick what a mean would blur.

The whole grid of learning rates and weight decays, on every inner fold and on all training clips, is trained side by side in
one pass over the features, as V-JEPA 2 does (arXiv 2506.09985, appendix on frozen evaluation; the form of the probe:
arXiv 2404.08471). Where we differ: cells are standardised, which removes what tells them apart, so they get learned
positions; features enter through a projection, so that any width fits; and the best of the grid is chosen on held-out
training clips, never on tested ones.
"""

import copy
import itertools
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from models.shapes import Float, Int, Tensor
from stages.device import device
from stages.evals import Classes, Features, ProbeConfig, Scores, inner_splits, standardised

Rate = Annotated[float, Field(gt=0)]


class Config(ProbeConfig):
    """Cross-attention of one query, behind blocks of self-attention if there are several, and a linear layer."""

    name: Literal["attentive_probe"] = "attentive_probe"
    """The name in a recipe."""

    num_blocks: int = Field(default=1, gt=0)
    """Blocks: the last one asks with the learned query, those before it are self-attention and an MLP. 1 and 4 are usual."""

    width: int = Field(default=64, gt=0)
    """Width inside the probe. Our choice, for small sets of clips."""

    num_heads: int = Field(default=4, gt=0)
    """Attention heads; they share the width equally."""

    learning_rates: tuple[Rate, ...] = Field(default=(1e-3, 3e-3), min_length=1)
    """AdamW's, at the start; a cosine takes them to zero. Our choice of candidates, within those of V-JEPA 2."""

    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(default=(0.01, 0.4), min_length=1)
    """AdamW's. Our choice of candidates, within those of V-JEPA 2."""

    inner_folds: int = Field(default=2, ge=2)
    """Parts of the training clips that are held out in turn to choose among the grid."""

    num_steps: int = Field(default=100, gt=0)
    """Steps, each on all training clips."""

    chunk_clips: int = Field(default=512, gt=0)
    """Clips that are in memory together within a step; bounds the memory and changes nothing but rounding."""

    seed: int = 0
    """Seed of the starting weights, the same for every head."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into num_heads {self.num_heads}")
        return self

    @property
    def title(self) -> str:
        """With its number of blocks."""
        return f"attentive probe, {self.num_blocks} block{'s' if self.num_blocks > 1 else ''}"

    @property
    def grid(self) -> list[tuple[float, float]]:
        """Every pair of learning rate and weight decay."""
        return list(itertools.product(self.learning_rates, self.weight_decays))

    def scores(
        self, features: Features, classes: Classes, *, num_classes: int, groups: Classes, test_features: Features
    ) -> Scores:
        """The softmax of the head that was best on held-out training clips, trained on all of them."""
        train, test = (torch.from_numpy(found).to(device()) for found in standardised(features, test_features))
        seen, targets = np.unique(classes, return_inverse=True)
        folds = list(inner_splits(classes, groups, self.inner_folds))
        heads = self._trained(train, torch.from_numpy(targets).to(device()), len(seen), [kept for kept, _ in folds])
        best = heads.of_all[self._best(heads, train, targets, [held_out for _, held_out in folds])]
        scores = np.zeros((len(test), num_classes), dtype=np.float32)
        scores[:, seen] = self._logits([best], test)[0].softmax(dim=-1).cpu().numpy()
        return scores

    def _trained(self, train: Tensor, targets: Tensor, num_seen: int, folds: Sequence[Classes]) -> "Heads":
        """One head per point of the grid and fold, and per point on all clips."""
        weights = [np.ones(len(train)), *(np.isin(np.arange(len(train)), kept) for kept in folds)]
        first = self._built(train.shape[1], train.shape[2], num_seen).to(train.device)
        heads = Heads([[copy.deepcopy(first) for _ in self.grid] for _ in weights])
        shares = np.stack([weight / weight.sum() for weight in weights for _ in self.grid])  # [heads, n]
        self._train(heads.together, train, targets, torch.from_numpy(shares).float().to(train.device))
        return heads

    def _built(self, num_cells: int, dim: int, num_classes: int) -> "AttentiveHead":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return AttentiveHead(num_cells, dim, num_classes, self)

    def _train(
        self,
        heads: Sequence[nn.Module],
        train: Float[Tensor, "n c d"],
        targets: Int[Tensor, " n"],
        shares: Float[Tensor, "g n"],
    ) -> None:
        grid = itertools.cycle(self.grid)
        groups = [
            {"params": list(head.parameters()), "lr": rate, "weight_decay": decay}
            for head, (rate, decay) in zip(heads, grid, strict=False)
        ]
        optimizer = torch.optim.AdamW(groups)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        for _ in range(self.num_steps):
            optimizer.zero_grad()
            for rows in torch.split(torch.arange(len(train), device=train.device), self.chunk_clips):
                logits = side_by_side(heads, train[rows])  # [g, n, K]
                errors = functional.cross_entropy(
                    logits.transpose(1, 2), targets[rows].expand(len(heads), -1), reduction="none"
                )
                (errors * shares[:, rows]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def _best(self, heads: "Heads", train: Tensor, targets: Classes, held_out: Sequence[Classes]) -> int:
        """The point of the grid with the most hits on held-out clips; the first of equals."""
        hits = np.zeros(len(self.grid), dtype=np.int64)
        for of_fold, rows in zip(heads.of_folds, held_out, strict=True):
            named = self._logits(of_fold, train[torch.from_numpy(rows).to(train.device)]).argmax(dim=-1).cpu().numpy()
            hits += (named == targets[rows]).sum(axis=1)
        return int(hits.argmax())

    @torch.no_grad()
    def _logits(self, heads: Sequence[nn.Module], features: Float[Tensor, "n c d"]) -> Float[Tensor, "g n K"]:
        return torch.cat([side_by_side(heads, rows) for rows in torch.split(features, self.chunk_clips)], dim=1)


class Heads(NamedTuple):
    """Trained heads: for all training clips and then for each fold, one per point of the grid."""

    rows: list[list["AttentiveHead"]]

    @property
    def together(self) -> list["AttentiveHead"]:
        """All of them."""
        return [head for row in self.rows for head in row]

    @property
    def of_all(self) -> list["AttentiveHead"]:
        """Those that learned from all training clips."""
        return self.rows[0]

    @property
    def of_folds(self) -> list[list["AttentiveHead"]]:
        """Those that learned from a fold's kept clips."""
        return self.rows[1:]


def side_by_side(heads: Sequence[nn.Module], features: Float[Tensor, "n c d"]) -> Float[Tensor, "g n K"]:
    """What modules of equal shape make of the same features, in one pass; gradients reach each one's own parameters."""
    names = [name for name, _ in heads[0].named_parameters()]
    stacked = {name: torch.stack([head.get_parameter(name) for head in heads]) for name in names}

    def one(parameters: Mapping[str, Tensor], shown: Tensor) -> Tensor:
        answered: Tensor = functional_call(heads[0], dict(parameters), (shown,))
        return answered

    found: Tensor = vmap(one, in_dims=(0, None))(stacked, features)
    return found


class AttentiveHead(nn.Module):
    """Class scores from the cells of a clip."""

    def __init__(self, num_cells: int, dim: int, num_classes: int, config: Config) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, config.width)
        self.positions = nn.Parameter(0.5 * torch.randn(num_cells, config.width))  # of the size of what is embedded
        self.blocks = nn.ModuleList(AttentionBlock(config.width, config.num_heads) for _ in range(config.num_blocks - 1))
        self.query = nn.Parameter(0.02 * torch.randn(1, config.width))
        self.pool = AttentionBlock(config.width, config.num_heads)
        self.norm = nn.LayerNorm(config.width)
        self.classify = nn.Linear(config.width, num_classes)

    def forward(self, features: Float[Tensor, "n c d"]) -> Float[Tensor, "n K"]:
        """One score per class, before the softmax."""
        cells = self.embed(features) + self.positions
        for block in self.blocks:
            cells = block(cells, cells)
        pooled = self.pool(self.query.expand(len(cells), -1, -1), cells)[:, 0]
        scores: Tensor = self.classify(self.norm(pooled))
        return scores


class AttentionBlock(nn.Module):
    """Queries look at cells and pass an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_queries, self.norm_cells, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Float[Tensor, "n q e"], cells: Float[Tensor, "n c e"]) -> Float[Tensor, "n q e"]:
        """The queries after the block."""
        queries = queries + self._attended(self.norm_queries(queries), self.norm_cells(cells))
        processed: Tensor = queries + self.mlp(self.norm_mlp(queries))
        return processed

    def _attended(self, queries: Float[Tensor, "n q e"], cells: Float[Tensor, "n c e"]) -> Float[Tensor, "n q e"]:
        query = rearrange(self.to_query(queries), "n q (h e) -> n h q e", h=self.num_heads)
        key, value = rearrange(self.to_key_value(cells), "n c (two h e) -> two n h c e", two=2, h=self.num_heads)
        # Plain products: cells are few, and fused attention has no rule for heads side by side on every device.
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(dim=-1)
        mixed: Tensor = self.out(rearrange(weights @ value, "n h q e -> n q (h e)"))
        return mixed
