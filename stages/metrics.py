"""From scores to answers, and from answers to numbers without an opinion on their uncertainty.

Every number is of the tested clips of one question. An answer to a joint question, such as verb and noun, is made of the
answers to its parts.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stages.evals import Classes, Scores
from stages.protocol import JOINER, Question, Truth

NUM_RANKED = 5
"""Answers that are looked at, best first: what top-5 accuracy needs."""
NUM_BINS = 15
"""Of the calibration error. Source: Guo et al., arXiv 1706.04599."""
LIKELY = 0.5
"""Classes at least as probable are what a clip is said to show, where it may show several."""

Hits = npt.NDArray[np.bool_]
"""Whether each tested clip was named rightly, in the order of ``Question.tested``."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """What one reader says of the tested clips of a question, in the order of ``Question.tested``."""

    right: npt.NDArray[np.bool_]
    """Whether each of the most probable answers is right, best first, the lowest class first among equals: ``[n 5]``, or
    fewer where there are fewer classes."""
    confidence: npt.NDArray[np.float32]
    """The probability of the first answer, ``[n]``."""
    predicted: tuple[tuple[str, ...], ...]
    """The classes that each clip is said to show: one; several or none for a multi-label."""
    scores: Scores | None
    """``[n K]``; ``None`` for a joint question, whose scores are products of those of its parts."""

    @property
    def hits(self) -> Hits:
        """Whether the first answer is right; for a multi-label, whether it is one of the right ones."""
        hits: Hits = self.right[:, 0]
        return hits

    @property
    def hits_at_5(self) -> Hits:
        """Whether one of the first five answers is right."""
        hits: Hits = np.logical_or.reduce(self.right, axis=1)
        return hits


def answers(question: Question, scores: Scores) -> Answers:
    """The answers behind the scores of a question that is not joint."""
    order, confidence = ranked(scores)
    names = question.class_names
    if question.asking.is_multi_label:
        predicted = tuple(tuple(names[one] for one in np.flatnonzero(row >= LIKELY)) for row in scores)
    else:
        predicted = tuple((names[one],) for one in order[:, 0])
    right = np.take_along_axis(question.truth[question.tested], order, axis=1)
    return Answers(right=right, confidence=confidence[:, 0], predicted=predicted, scores=scores)


def joint_answers(question: Question, parts: Sequence[tuple[Question, Scores]]) -> Answers:
    """The answers to a joint question: a combination is as probable as the product of its parts, and right if all parts are.

    Source: EPIC-KITCHENS-100, arXiv 2006.13256, action recognition: an action is a verb and a noun.
    """
    probability = np.ones((len(question.tested), 1), dtype=np.float32)
    right = np.ones((len(question.tested), 1), dtype=bool)
    named = []
    for part, scores in parts:
        places = _places(part, question)
        order, likely = ranked(scores[places])  # the best five products are among the products of the best five
        true = np.take_along_axis(part.truth[part.tested[places]], order, axis=1)
        probability = (probability[:, :, None] * likely[:, None, :]).reshape(len(places), -1)
        right = (right[:, :, None] & true[:, None, :]).reshape(len(places), -1)
        named.append([part.class_names[one] for one in order[:, 0]])
    order, confidence = ranked(probability)
    return Answers(
        right=np.take_along_axis(right, order, axis=1),
        confidence=confidence[:, 0],
        predicted=tuple((JOINER.join(names),) for names in zip(*named, strict=True)),
        scores=None,
    )


def ranked(scores: Scores) -> tuple[Classes, Scores]:
    """The most probable columns of each row, best first and the lowest among equals, and their scores."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :NUM_RANKED]
    return order, np.take_along_axis(scores, order, axis=1)


def _places(part: Question, question: Question) -> Classes:
    """Where the tested clips of a question are among the tested ones of its part."""
    known = {row: place for place, row in enumerate(part.rows[part.tested])}
    return np.array([known[row] for row in question.rows[question.tested]], dtype=np.int64)


def mean_class_accuracy(hits: Hits, classes: Classes) -> float:
    """The accuracy within each class, averaged over the classes that are tested."""
    counts = np.bincount(classes)
    shares = np.bincount(classes, weights=hits)[counts > 0] / counts[counts > 0]
    return float(shares.mean())


def calibration_error(confidence: npt.NDArray[np.float32], hits: Hits) -> float:
    """How far the probability of the first answer is from how often it is right: the mean over bins of equal width."""
    import torch  # with torchmetrics, seconds that most commands do not need
    from torchmetrics.functional.classification import binary_calibration_error

    asked, right = torch.from_numpy(confidence), torch.from_numpy(hits.astype(np.int64))
    return float(binary_calibration_error(asked, right, n_bins=NUM_BINS, norm="l1"))


def mean_average_precision(scores: Scores, truth: Truth) -> float:
    """Average precision of each class over the clips, averaged over the classes that some clip shows; 0 without any."""
    import torch
    from torchmetrics.functional.classification import multilabel_average_precision

    shown = truth.any(axis=0)
    if not shown.any():
        return 0.0
    asked, true = torch.from_numpy(scores[:, shown]), torch.from_numpy(truth[:, shown].astype(np.int64))
    if shown.sum() == 1:
        return float(multilabel_average_precision(asked.repeat(1, 2), true.repeat(1, 2), num_labels=2))
    return float(multilabel_average_precision(asked, true, num_labels=int(shown.sum())))


def confusion(question: Question, found: Answers) -> Mapping[str, Mapping[str, int]]:
    """How many clips of each class were said to show which, by name, in the order of the classes; empty for a multi-label."""
    if question.asking.is_multi_label:
        return {}
    rows: dict[str, Counter[str]] = {}
    for place, names in zip(question.tested, found.predicted, strict=True):
        true = question.class_names[question.classes[place]]
        rows.setdefault(true, Counter())[names[0]] += 1
    return {name: dict(sorted(rows[name].items())) for name in question.class_names if name in rows}


def durations_s(question: Question) -> npt.NDArray[np.float64]:
    """How long the tested clips last."""
    return np.array([question.clips[place].num_frames / question.clips[place].fps for place in question.tested])


def frames_seen(question: Question, view_frames: int) -> Classes:
    """How many recorded frames of the tested clips one view shows."""
    return np.array([min(question.clips[place].num_frames, view_frames) for place in question.tested], dtype=np.int64)
