"""From predictions to what may be claimed: accuracies with intervals, and whether one beats another on the same clips."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from stages.evals import Classes, Features, ProbeConfig
from stages.protocol import Question, Split

CONFIDENCE = 0.95

Hits = npt.NDArray[np.bool_]
"""Whether each tested clip was named rightly, in the order of ``Question.tested``."""


class Interval(NamedTuple):
    """Where the true value lies with 95 % confidence."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one probe tells one label from one kind of features."""

    label: str
    probe: str
    features: str
    accuracy: float
    """Share of tested clips named rightly, averaged over ``runs``."""
    interval: Interval
    """Uncertainty from the finite number of tested clips: Wilson's interval."""
    runs: tuple[float, ...]
    """The accuracy of each seed; a single one where there is nothing to seed."""
    seed_interval: Interval | None
    """Uncertainty from the seeds: Student's t interval of the mean; ``None`` for a single run."""
    num_train: int
    """Clips that teach, averaged over the splits."""
    num_test: int
    """Clips that are tested."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two kinds of features on the same tested clips with the same probe."""

    label: str
    probe: str
    features: str
    baseline: str
    difference: float
    """Accuracy of ``features`` less that of ``baseline``, averaged over the runs of the baseline."""
    p_value: float
    """Of the exact sign test on the clips where the two differ; the largest over the runs of the baseline."""

    @property
    def is_certain(self) -> bool:
        """Whether chance alone would hardly make such a difference."""
        return self.p_value < 1 - CONFIDENCE


def predicted_hits(probe: ProbeConfig, question: Question, features: Features) -> Hits:
    """What a probe gets right.

    Args:
        probe: the probe.
        question: the label and its splits.
        features: of all scored clips, ``[n d]``.
    """
    asked = features[question.rows]
    # One thread: the same numbers on any number of cores, and several times faster for problems as small as these.
    with threadpool_limits(limits=1):
        found = [_predicted(probe, question, asked, split) for split in question.splits]
    hits: Hits = np.concatenate(found) == question.classes[question.tested]
    return hits


def _predicted(probe: ProbeConfig, question: Question, asked: Features, split: Split) -> Classes:
    return probe.fit_predict(
        asked[split.train],
        question.classes[split.train],
        groups=question.groups[split.train],
        test_features=asked[split.test],
    )


def score(question: Question, *, probe: str, features: str, runs: Sequence[Hits]) -> Score:
    """The accuracy of one or more runs on the same clips, with its uncertainties."""
    accuracies = tuple(float(hits.mean()) for hits in runs)
    mean = math.fsum(accuracies) / len(accuracies)
    num_test = len(question.tested)
    return Score(
        label=question.label,
        probe=probe,
        features=features,
        accuracy=mean,
        interval=wilson_interval(mean * num_test, num_test),
        runs=accuracies,
        seed_interval=student_interval(accuracies) if len(accuracies) > 1 else None,
        num_train=round(math.fsum(len(split.train) for split in question.splits) / len(question.splits)),
        num_test=num_test,
    )


def wilson_interval(hits: float, total: int) -> Interval:
    """The interval of a proportion, honest for few trials and near 0 and 1.

    Args:
        hits: successes; a mean over seeds need not be whole.
        total: trials.

    Source: E. B. Wilson, Journal of the American Statistical Association 22, 1927.
    """
    z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    share, ratio = hits / total, z * z / total
    centre = (share + ratio / 2) / (1 + ratio)
    reach = z / (1 + ratio) * math.sqrt(share * (1 - share) / total + ratio / total / 4)
    return Interval(max(0.0, centre - reach), min(1.0, centre + reach))


def student_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of two or more independent shares, by Student's t, cut to what a share can be."""
    count, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(max(0.0, mean - reach), min(1.0, mean + reach))


def compare(
    question: Question, *, probe: str, features: str, baseline: str, runs: Sequence[Hits], against: Sequence[Hits]
) -> Comparison:
    """The first run of some features against every run of others, clip by clip."""
    hits = runs[0]
    return Comparison(
        label=question.label,
        probe=probe,
        features=features,
        baseline=baseline,
        difference=float(hits.mean()) - math.fsum(float(other.mean()) for other in against) / len(against),
        p_value=max(sign_test(int((hits & ~other).sum()), int((other & ~hits).sum())) for other in against),
    )


def sign_test(wins: int, losses: int) -> float:
    """The chance of a split at least as uneven if wins and losses were equally likely: exact and two-sided.

    Source: Q. McNemar, Psychometrika 12, 1947, in its exact form.
    """
    if wins + losses == 0:
        return 1.0
    return float(stats.binomtest(wins, wins + losses, 0.5).pvalue)
