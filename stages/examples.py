"""Which tested clips a person is shown: a few of many different classes, told rightly and wrongly."""

from typing import NamedTuple

import numpy as np

from stages.evals import Classes
from stages.metrics import Answers
from stages.protocol import Question
from stages.storage.index import Clip


class Example(NamedTuple):
    """A tested clip and what was said of it."""

    clip: Clip
    true: tuple[str, ...]
    predicted: tuple[str, ...]
    confidence: float
    """The probability of the first answer."""
    is_right: bool


def examples(question: Question, found: Answers, count: int) -> list[Example]:
    """So many clips that were told rightly, and then as many that were not; fewer where there are no more."""
    order = {int(place): number for number, place in enumerate(question.tested)}
    chosen = [
        order[place] for wanted in (True, False) for place in varied(question, question.tested[found.hits == wanted], count)
    ]
    return [
        Example(
            clip=question.clips[question.tested[number]],
            true=tuple(question.class_names[one] for one in np.flatnonzero(question.truth[question.tested[number]])),
            predicted=found.predicted[number],
            confidence=float(found.confidence[number]),
            is_right=bool(found.hits[number]),
        )
        for number in chosen
    ]


def varied(question: Question, places: Classes, count: int) -> list[int]:
    """So many of the clips at these places, of as many different classes as there are, by clip id within a class."""
    by_class: dict[int, list[tuple[str, int]]] = {}
    for clip_id, place in sorted((question.clips[place].clip_id, int(place)) for place in places):
        by_class.setdefault(int(question.classes[place]), []).append((clip_id, place))
    turns = sorted((turn, number, one) for number, ids in by_class.items() for turn, one in enumerate(ids))
    return [place for _, _, (_, place) in turns[:count]]
