"""The linear probe: logistic regression on standardised features, its strength chosen on the training clips alone.

scikit-learn is imported where it is used: it takes seconds, and most commands only read the config.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from stages.evals import Classes, Features, ProbeConfig, standardised


class Config(ProbeConfig):
    """Multinomial logistic regression with an L2 penalty, to the optimum and without chance."""

    name: Literal["linear_probe"] = "linear_probe"
    """The name in a recipe."""

    inverse_penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1)
    """Candidates for scikit-learn's ``C``, the inverse strength of the penalty; small ones because features outnumber clips.
    The best is taken on held-out training clips, the strongest penalty among equals. Our choice."""

    inner_folds: int = Field(default=3, ge=2)
    """Parts of the training clips that are held out in turn to choose the penalty."""

    max_iterations: int = Field(default=500, gt=0)
    """Most steps of the solver; it normally stops far earlier."""

    @property
    def title(self) -> str:
        """The usual name."""
        return "linear probe"

    def fit_predict(self, features: Features, classes: Classes, *, groups: Classes, test_features: Features) -> Classes:
        """The most probable class."""
        train, test = rotated(*standardised(features, test_features))
        return self._predict(self.choose_penalty(train, classes, groups), train, classes, test)

    def choose_penalty(self, features: Features, classes: Classes, groups: Classes) -> float:
        """The candidate with the most hits on held-out clips; the strongest penalty where nothing can be held out."""
        candidates = sorted(self.inverse_penalties)
        hits = dict.fromkeys(candidates, 0)
        for kept, held_out in self._splits(classes, groups):
            for penalty in candidates if len(candidates) > 1 else ():
                predicted = self._predict(penalty, features[kept], classes[kept], features[held_out])
                hits[penalty] += int((predicted == classes[held_out]).sum())
        return max(candidates, key=lambda penalty: hits[penalty])  # the first of equals, and they are sorted

    def _splits(self, classes: Classes, groups: Classes) -> Iterator[tuple[Classes, Classes]]:
        from sklearn.model_selection import GroupKFold, StratifiedKFold

        num_groups = len(np.unique(groups))
        smallest_class = int(np.unique(classes, return_counts=True)[1].min())
        if num_groups < len(groups) and num_groups > 1:
            splits = GroupKFold(min(self.inner_folds, num_groups)).split(classes, classes, groups)
        elif num_groups == len(groups) and smallest_class > 1:
            splits = StratifiedKFold(min(self.inner_folds, smallest_class)).split(classes, classes)
        else:
            return
        yield from ((kept, held_out) for kept, held_out in splits if len(np.unique(classes[kept])) > 1)

    def _predict(self, penalty: float, features: Features, classes: Classes, test_features: Features) -> Classes:
        from sklearn.linear_model import LogisticRegression

        probe = LogisticRegression(C=penalty, max_iter=self.max_iterations).fit(features, classes)
        predicted: Classes = probe.predict(test_features)
        return predicted


def rotated(features: Features, test_features: Features) -> tuple[Features, Features]:
    """Both sets in the coordinates that the first one spans, no more of them than it has clips.

    An L2 penalty sees lengths alone and the solution lies in that span, so the probe stays the same and costs less.
    """
    if features.shape[1] <= len(features):
        return features, test_features
    axes = np.linalg.svd(features, full_matrices=False)[2].T  # [d, n]
    return features @ axes, test_features @ axes
