"""Few-shot episodes: a handful of training clips of a few classes, and tested clips that go to the nearest class mean.

Source: prototypical networks, arXiv 1703.05175, with frozen features in place of a learned embedding. Where we differ: the
examples are training clips and the questions are tested clips of the same split, so that no take is on both sides.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from stages.draws import generator
from stages.evals import Classes, Features, MeasureConfig, Sample, directions


class Config(MeasureConfig):
    """N-way k-shot: every episode draws its own classes and clips, the same ones for all features."""

    name: Literal["few_shot"] = "few_shot"
    """The name in a recipe."""

    ways: int = Field(default=5, ge=2)
    """Classes of an episode; fewer where a split has not as many with enough clips, and the number's name says how many."""

    shots: int = Field(default=1, gt=0)
    """Training clips per class."""

    queries: int = Field(default=15, gt=0)
    """Tested clips per class, at most. Source: arXiv 1703.05175, section 3.1."""

    episodes: int = Field(default=600, gt=1)
    """Episodes, taken from the splits in turn. Source: arXiv 1703.05175, section 3.2."""

    seed: int = 0
    """Seed of all draws."""

    @property
    def title(self) -> str:
        """The usual name."""
        return "few-shot"

    def measure(
        self, features: Features, classes: Classes, *, groups: Classes, splits: Sequence[tuple[Classes, Classes]]
    ) -> Mapping[str, Sample]:
        """The accuracy of each episode; nothing where a split has fewer than two classes with enough clips."""
        able = [self._able(classes, *split) for split in splits]
        ways = min(self.ways, *map(len, able))
        if ways < 2:
            return {}
        rows = [directions(features[train], features[test]) for train, test in splits]
        found = np.zeros(self.episodes)
        for episode in range(self.episodes):
            number = episode % len(splits)
            train, test = splits[number]
            source = generator(self.seed, "few_shot", episode)
            chosen = _drawn(able[number], ways, source)
            found[episode] = self._episode(rows[number], (classes[train], classes[test]), chosen, source)
        return {f"{ways}-way {self.shots}-shot accuracy": Sample(found, np.arange(self.episodes))}

    def _able(self, classes: Classes, train: Classes, test: Classes) -> Classes:
        """The classes with enough examples and at least one question."""
        known, counts = np.unique(classes[train], return_counts=True)
        return np.intersect1d(known[counts >= self.shots], classes[test])

    def _episode(
        self, rows: tuple[Features, Features], classes: tuple[Classes, Classes], chosen: Classes, source: torch.Generator
    ) -> float:
        """The share of an episode's questions whose nearest class mean is that of their class."""
        train, test = rows
        examples = [train[_drawn(np.flatnonzero(classes[0] == one), self.shots, source)] for one in chosen]
        asked = [test[_drawn(np.flatnonzero(classes[1] == one), self.queries, source)] for one in chosen]
        means = np.stack([found.mean(axis=0) for found in examples])  # [ways, d]
        wanted = np.repeat(np.arange(len(chosen)), [len(found) for found in asked])
        return float((nearest(np.concatenate(asked), means) == wanted).mean())


def nearest(rows: Features, means: Features) -> Classes:
    """Which mean, ``[ways d]``, each row, ``[n d]``, lies nearest to; the first of equals."""
    # |row|^2 is the same for all means and decides nothing.
    found: Classes = (np.square(means).sum(axis=1) - 2 * rows @ means.T).argmin(axis=1)
    return found


def _drawn(values: Classes, count: int, source: torch.Generator) -> Classes:
    """So many of the values, or all, at random."""
    chosen: Classes = values[torch.randperm(len(values), generator=source)[:count].numpy()]
    return chosen
