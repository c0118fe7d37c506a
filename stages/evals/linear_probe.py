"""The linear probe: logistic regression on standardised features, its strength chosen on the training clips alone.

scikit-learn is imported where it is used: it takes seconds, and most commands only read the config.
"""

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from stages.evals import Classes, Features, ProbeConfig, Scores, flattened, inner_splits, placed, standardised


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

    def scores(
        self, features: Features, classes: Classes, *, num_classes: int, groups: Classes, test_features: Features
    ) -> Scores:
        """The probabilities of the regression."""
        train, test = rotated(*standardised(flattened(features), flattened(test_features)))
        probe = self._fitted(self.choose_penalty(train, classes, groups), train, classes)
        return placed(probe.predict_proba(test), probe.classes_, num_classes)

    def choose_penalty(self, features: Features, classes: Classes, groups: Classes) -> float:
        """The candidate with the most hits on held-out clips; the strongest penalty where nothing can be held out.

        Args:
            features: standardised, ``[n d]``.
            classes: their classes.
            groups: which of them belong together.
        """
        candidates = sorted(self.inverse_penalties)
        hits = dict.fromkeys(candidates, 0)
        for kept, held_out in inner_splits(classes, groups, self.inner_folds) if len(candidates) > 1 else ():
            for penalty in candidates:
                probe = self._fitted(penalty, features[kept], classes[kept])
                hits[penalty] += int((probe.predict(features[held_out]) == classes[held_out]).sum())
        return max(candidates, key=lambda penalty: hits[penalty])  # the first of equals, and they are sorted

    def _fitted(self, penalty: float, features: Features, classes: Classes) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=penalty, max_iter=self.max_iterations).fit(features, classes)


def rotated(features: Features, test_features: Features) -> tuple[Features, Features]:
    """Both sets, ``[n d]``, in the coordinates that the first one spans, no more of them than it has clips.

    An L2 penalty sees lengths alone and the solution lies in that span, so the probe stays the same and costs less.
    """
    if features.shape[1] <= len(features):
        return features, test_features
    axes = np.linalg.svd(features, full_matrices=False)[2].T  # [d, n]
    return features @ axes, test_features @ axes
