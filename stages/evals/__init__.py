"""Protocols that read frozen features. One file per protocol, named as in a recipe; there are two kinds.

A *probe* learns on the labelled features of some clips and says how probable every class is for others. A *measure* learns
nothing: it asks how the features lie beside each other, clip by clip or episode by episode. Whatever either must choose, it
chooses on the clips that teach, and it gives the same answer every time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from models.config import Config

Features = npt.NDArray[np.float32]
"""One matrix per clip, ``[n c d]``: ``d`` numbers for each of ``c`` cells of time and space."""
Classes = npt.NDArray[np.int64]
"""One class number, or one group number, per clip, ``[n]``."""
Scores = npt.NDArray[np.float32]
"""The probability of every class for every clip, ``[n K]``."""


class ProbeConfig(Config, ABC):
    """What every probe offers; its file holds one subclass named ``Config``."""

    name: str
    """The name in a recipe and in the report's tables."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a reader of the report calls it, such as ``linear probe``."""

    @abstractmethod
    def scores(
        self, features: Features, classes: Classes, *, num_classes: int, groups: Classes, test_features: Features
    ) -> Scores:
        """The probability of every class for every test clip; 0 for a class that no training clip shows.

        Args:
            features: the clips to learn from.
            classes: their classes; at least two different ones.
            num_classes: how many classes there are.
            groups: which clips belong together, such as takes of one scene: a choice made by holding some out must hold out
                whole groups.
            test_features: the clips to score.
        """


class Sample(NamedTuple):
    """Values whose mean is a result, each a share in [0, 1], and which of them stand or fall together."""

    values: npt.NDArray[np.float64]
    groups: Classes


class MeasureConfig(Config, ABC):
    """What every measure offers; its file holds one subclass named ``Config``."""

    name: str
    """The name in a recipe and in the report's tables."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a reader of the report calls it, such as ``retrieval``."""

    @abstractmethod
    def measure(
        self, features: Features, classes: Classes, *, groups: Classes, splits: Sequence[tuple[Classes, Classes]]
    ) -> Mapping[str, Sample]:
        """What is measured, by the name of the number; empty where the clips do not suffice.

        Args:
            features: all clips.
            classes: their classes.
            groups: which clips belong together.
            splits: positions of the clips that teach and of those that are tested.
        """


def flattened(features: Features) -> Features:
    """One row per clip, ``[n c*d]``."""
    return features.reshape(len(features), -1)


def standardised(features: Features, test_features: Features) -> tuple[Features, Features]:
    """Both sets with the mean and the spread of the first one taken out; a feature that never varies becomes zero."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A constant feature may differ by rounding alone; dividing by that would turn rounding errors into a signal.
    scale = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf).astype(np.float32)
    return (features - mean) / scale, (test_features - mean) / scale


def directions(features: Features, test_features: Features) -> tuple[Features, Features]:
    """Both sets as standardised rows of length 1, so that a product of two is their cosine; a row of zeros stays."""
    rows = standardised(flattened(features), flattened(test_features))
    train, test = (found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) for found in rows)
    return train, test


def placed(probabilities: npt.NDArray[np.floating], seen: Classes, num_classes: int) -> Scores:
    """Probabilities of the classes that were seen, ``[n seen]``, among those of all classes."""
    scores = np.zeros((len(probabilities), num_classes), dtype=np.float32)
    scores[:, seen] = probabilities
    return scores


def inner_splits(classes: Classes, groups: Classes, folds: int) -> Iterator[tuple[Classes, Classes]]:
    """Positions of the training clips to keep and to hold out in turn: whole groups; none where nothing can be held out.

    Args:
        classes: of the training clips.
        groups: of the training clips; where each is a group of its own, every fold gets its share of every class.
        folds: parts, fewer where there are not as many groups or clips of a class.
    """
    from sklearn.model_selection import GroupKFold, StratifiedKFold  # takes seconds, and most commands only read the config

    num_groups = len(np.unique(groups))
    smallest_class = int(np.unique(classes, return_counts=True)[1].min())
    if num_groups < len(groups) and num_groups > 1:
        splits = GroupKFold(min(folds, num_groups)).split(classes, classes, groups)
    elif num_groups == len(groups) and smallest_class > 1:
        splits = StratifiedKFold(min(folds, smallest_class)).split(classes, classes)
    else:
        return
    yield from ((kept, held_out) for kept, held_out in splits if len(np.unique(classes[kept])) > 1)
