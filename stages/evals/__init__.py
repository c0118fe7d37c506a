"""Probes: what can be read from frozen features. One file per probe, named as in a recipe.

A probe learns on the labelled features of some clips and names the class of others. Whatever it must choose, it chooses on
the clips it learns on, and it gives the same answer every time.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from models.config import Config

Features = npt.NDArray[np.float32]
"""One row per clip, ``[n d]``."""
Classes = npt.NDArray[np.int64]
"""One class number, or one group number, per clip, ``[n]``."""


class ProbeConfig(Config, ABC):
    """What every probe offers; a file in this folder holds one subclass named ``Config``."""

    name: str
    """The name in a recipe and in the report's tables."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a reader of the report calls it, such as ``linear probe``."""

    @abstractmethod
    def fit_predict(self, features: Features, classes: Classes, *, groups: Classes, test_features: Features) -> Classes:
        """The class of every test clip.

        Args:
            features: the clips to learn from.
            classes: their classes; at least two different ones.
            groups: which of them belong together, such as takes of one scene: a choice made by holding some clips out
                must hold out whole groups.
            test_features: the clips to name.
        """


def standardised(features: Features, test_features: Features) -> tuple[Features, Features]:
    """Both sets with the mean and the spread of the first one taken out; a feature that never varies becomes zero."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    # A constant feature may differ by rounding alone; dividing by that would turn rounding errors into a signal.
    scale = np.where(spread > 1e-6 * (1 + np.abs(mean)), spread, np.inf).astype(np.float32)
    return (features - mean) / scale, (test_features - mean) / scale
