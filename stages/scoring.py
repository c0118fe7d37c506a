"""From answers to what may be claimed: numbers with intervals, and whether one reader beats another on the same clips."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy  # type: ignore[import-untyped]

from stages.evals import Classes, Sample
from stages.metrics import (
    NUM_RANKED,
    Answers,
    calibration_error,
    confusion,
    durations_s,
    frames_seen,
    mean_average_precision,
    mean_class_accuracy,
)
from stages.protocol import Question

CONFIDENCE = 0.95
DURATIONS_S = (0, 4, 8, 16, 32)
"""Where the buckets by duration begin. Source: those in which LVMAE's verbs on EPIC-KITCHENS-100 are told."""
FRAMES = (0, 16, 32, 64, 128)
"""Where the buckets by frames seen begin, each behind this number: the lengths that video models are made for."""
NUM_RESAMPLES, NUM_COSTLY_RESAMPLES = 2000, 200
"""Of the bootstrap of a mean, and of anything that must be computed anew each time. Our choice."""

Values = npt.NDArray[np.float64]
"""A share in [0, 1] per tested clip, ``[n]``."""


class Interval(NamedTuple):
    """Where the true value lies with 95 % confidence."""

    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its uncertainty from the finite number of tested clips."""

    value: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The accuracy on some of the tested clips."""

    name: str
    accuracy: float
    interval: Interval
    num_clips: int


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one reader tells one label from one kind of features."""

    label: str
    probe: str
    features: str
    accuracy: float
    """Share of tested clips named rightly, averaged over ``runs``."""
    interval: Interval
    """Uncertainty from the finite number of tested clips: Wilson's interval, and where clips come in groups a bootstrap too."""
    runs: tuple[float, ...]
    """The accuracy of each seed; a single one where there is nothing to seed."""
    seed_interval: Interval | None
    """Uncertainty from the seeds: Student's t interval of the mean; ``None`` for a single run."""
    num_train: int
    """Clips that teach, averaged over the splits."""
    num_test: int
    """Clips that are tested."""
    top5_accuracy: Estimate | None = None
    """Share of clips with a right answer among the first five; ``None`` for five classes or fewer."""
    mean_class_accuracy: Estimate | None = None
    """``None`` for a multi-label."""
    calibration_error: Estimate | None = None
    """Expected calibration error of the first answer, 0 at best."""
    mean_average_precision: Estimate | None = None
    """Averaged over classes; ``None`` but for a multi-label."""
    by_duration: tuple[Bucket, ...] = ()
    by_frames: tuple[Bucket, ...] = ()
    confusion: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    """True class, said class, clips: of the first run."""


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


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one measure found in one kind of features for one label."""

    label: str
    measure: str
    features: str
    values: Mapping[str, Estimate]
    """By the name of the number; averaged over the seeds."""


def score(question: Question, *, probe: str, features: str, runs: Sequence[Answers], view_frames: int) -> Score:
    """What one or more runs on the same clips come to, with its uncertainties.

    Args:
        question: the label.
        probe: the reader.
        features: the kind of features.
        runs: the answers of every seed.
        view_frames: frames of a view: no reader saw more of a clip.
    """
    groups = question.groups[question.tested]
    hits = _mean([run.hits for run in runs])
    accuracies = tuple(float(run.hits.mean()) for run in runs)
    has_more_than_five = len(question.class_names) > NUM_RANKED
    return Score(
        label=question.label,
        probe=probe,
        features=features,
        accuracy=math.fsum(accuracies) / len(accuracies),
        interval=share_interval(hits, groups),
        runs=accuracies,
        seed_interval=student_interval(accuracies) if len(accuracies) > 1 else None,
        num_train=round(math.fsum(len(split.train) for split in question.splits) / len(question.splits)),
        num_test=len(hits),
        top5_accuracy=_share(_mean([run.hits_at_5 for run in runs]), groups) if has_more_than_five else None,
        mean_class_accuracy=_class_accuracy(question, runs),
        calibration_error=_calibration(question, runs),
        mean_average_precision=_average_precision(question, runs),
        by_duration=buckets(hits, groups, durations_s(question), DURATIONS_S, " s"),
        by_frames=buckets(hits, groups, frames_seen(question, view_frames), FRAMES, " frames"),
        confusion=confusion(question, runs[0]),
    )


def measured(label: str, measure: str, features: str, runs: Sequence[Mapping[str, Sample]]) -> Measured:
    """What one or more runs of a measure come to, averaged over them."""
    values = {}
    for name, sample in runs[0].items():
        mean = _mean([run[name].values for run in runs])
        values[name] = Estimate(float(mean.mean()), mean_interval(mean, sample.groups))
    return Measured(label=label, measure=measure, features=features, values=values)


def buckets(hits: Values, groups: Classes, sizes: npt.NDArray[Any], starts: Sequence[int], unit: str) -> tuple[Bucket, ...]:
    """The accuracy on the clips of every range of sizes that has some.

    Args:
        hits: per tested clip.
        groups: of the tested clips.
        sizes: how long each is.
        starts: where the ranges begin; a size that is equal to the start of one still belongs to the one before.
        unit: behind the numbers.
    """
    numbers = np.searchsorted(np.array(starts[1:]), sizes, side="left")
    names = [f"{low}–{high}{unit}" for low, high in itertools.pairwise(starts)] + [f"> {starts[-1]}{unit}"]
    found = []
    for number in np.unique(numbers):
        inside = numbers == number
        interval = share_interval(hits[inside], groups[inside])
        found.append(Bucket(names[number], float(hits[inside].mean()), interval, int(inside.sum())))
    return tuple(found)


def _mean(runs: Sequence[npt.NDArray[Any]]) -> Values:
    """Per clip the mean over the runs."""
    found: Values = np.mean(np.stack(runs), axis=0)
    return found


def _share(hits: Values, groups: Classes) -> Estimate:
    return Estimate(float(hits.mean()), share_interval(hits, groups))


def _class_accuracy(question: Question, runs: Sequence[Answers]) -> Estimate | None:
    if question.asking.is_multi_label:
        return None
    classes = question.classes[question.tested]
    return _resampled(question, lambda rows: _average(mean_class_accuracy(run.hits[rows], classes[rows]) for run in runs))


def _calibration(question: Question, runs: Sequence[Answers]) -> Estimate:
    return _resampled(question, lambda rows: _average(calibration_error(run.confidence[rows], run.hits[rows]) for run in runs))


def _average_precision(question: Question, runs: Sequence[Answers]) -> Estimate | None:
    scores = [run.scores for run in runs if run.scores is not None]
    if not question.asking.is_multi_label or not scores:
        return None
    truth = question.truth[question.tested]
    return _resampled(question, lambda rows: _average(mean_average_precision(one[rows], truth[rows]) for one in scores))


def _average(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def _resampled(question: Question, statistic: Callable[[Classes], float]) -> Estimate:
    groups = question.groups[question.tested]
    return Estimate(statistic(np.arange(len(groups))), bootstrap_interval(groups, statistic))


def share_interval(hits: Values, groups: Classes) -> Interval:
    """The interval of an accuracy: Wilson's; where clips come in groups, reaching as far as a bootstrap over the groups does.

    A bootstrap of few groups alone would be too narrow: no group tells more than as many independent clips would.
    """
    alone = wilson_interval(float(hits.sum()), len(hits))
    if len(np.unique(groups)) == len(groups):
        return alone
    grouped = grouped_interval(hits, groups)
    return Interval(min(alone.low, grouped.low), max(alone.high, grouped.high))


def mean_interval(values: Values, groups: Classes) -> Interval:
    """The interval of a mean of shares: Student's t where every value is a group of its own, else a bootstrap over groups."""
    if len(np.unique(groups)) == len(groups) and len(groups) > 1:
        return student_interval(values.tolist())
    return grouped_interval(values, groups)


def grouped_interval(values: Values, groups: Classes) -> Interval:
    """The interval of a mean where values of one group, such as takes of one scene, are not independent.

    Whole groups are drawn with replacement. Where no group differs from another the bootstrap would claim certainty; then the
    groups count as trials of Wilson's interval.

    Source: B. Efron, Annals of Statistics 7, 1979, in its percentile form.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    sums, counts = np.bincount(numbers, weights=values), np.bincount(numbers)
    if len(counts) == 1 or np.ptp(sums / counts) == 0:
        return wilson_interval(float(values.mean()) * len(counts), len(counts))

    def mean(sums: Values, counts: Values, axis: int) -> Values:
        found: Values = sums.sum(axis=axis) / counts.sum(axis=axis)
        return found

    return _bootstrap((sums, counts), mean, vectorized=True, num_resamples=NUM_RESAMPLES)


def bootstrap_interval(groups: Classes, statistic: Callable[[Classes], float]) -> Interval:
    """The interval of any share that is computed from some of the clips, by drawing whole groups with replacement.

    Where all draws agree the bootstrap would claim certainty; then the groups count as trials of Wilson's interval.

    Args:
        groups: of the tested clips; with a single group nothing can be said.
        statistic: the share, from the positions of the clips that are drawn.
    """
    numbers = np.unique(groups, return_inverse=True)[1]
    members = np.split(np.argsort(numbers, kind="stable"), np.bincount(numbers).cumsum()[:-1])
    if len(members) == 1:
        return Interval(0.0, 1.0)
    found = _bootstrap(
        (np.arange(len(members)),),
        lambda chosen: statistic(np.concatenate([members[int(one)] for one in chosen])),
        vectorized=False,
        num_resamples=NUM_COSTLY_RESAMPLES,
    )
    return found if found.low < found.high else wilson_interval(found.low * len(members), len(members))


def _bootstrap(data: Any, statistic: Callable[..., Any], *, vectorized: bool, num_resamples: int) -> Interval:
    found = scipy.stats.bootstrap(
        data,
        statistic,
        n_resamples=num_resamples,
        vectorized=vectorized,
        paired=len(data) > 1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high))


def wilson_interval(hits: float, total: int) -> Interval:
    """The interval of a proportion, honest for few trials and near 0 and 1.

    Args:
        hits: successes; a mean over seeds need not be whole.
        total: trials.

    Source: E. B. Wilson, Journal of the American Statistical Association 22, 1927.
    """
    z = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2))
    share, ratio = hits / total, z * z / total
    centre = (share + ratio / 2) / (1 + ratio)
    reach = z / (1 + ratio) * math.sqrt(share * (1 - share) / total + ratio / total / 4)
    # It holds the share itself, and rounding must not take that away at 0 and 1.
    return Interval(max(0.0, min(share, centre - reach)), min(1.0, max(share, centre + reach)))


def student_interval(values: Sequence[float]) -> Interval:
    """The interval of the mean of two or more independent shares, by Student's t, cut to what a share can be."""
    count, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    reach = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(max(0.0, mean - reach), min(1.0, mean + reach))


def compare(
    question: Question, *, probe: str, features: str, baseline: str, runs: Sequence[Answers], against: Sequence[Answers]
) -> Comparison:
    """The first run of some features against every run of others, clip by clip."""
    hits, others = runs[0].hits, [other.hits for other in against]
    return Comparison(
        label=question.label,
        probe=probe,
        features=features,
        baseline=baseline,
        difference=float(hits.mean()) - math.fsum(float(other.mean()) for other in others) / len(others),
        p_value=max(sign_test(int((hits & ~other).sum()), int((other & ~hits).sum())) for other in others),
    )


def sign_test(wins: int, losses: int) -> float:
    """The chance of a split at least as uneven if wins and losses were equally likely: exact and two-sided.

    Source: Q. McNemar, Psychometrika 12, 1947, in its exact form.
    """
    if wins + losses == 0:
        return 1.0
    return float(scipy.stats.binomtest(wins, wins + losses, 0.5).pvalue)
