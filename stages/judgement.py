"""Every reader on every kind of features for every label: the grid of scores behind the report."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from stages.metrics import Answers, answers, joint_answers
from stages.protocol import Question
from stages.reading import Key, Readings, Samples
from stages.scoring import Comparison, Measured, Score, compare, measured, score

Found = TypeVar("Found")
Kinds = Mapping[str, Sequence[str]]
"""Per kind of features the names of its runs, one per seed; the first kind is compared with the others."""


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was found for one label."""

    question: Question
    scores: Sequence[Score]
    comparisons: Sequence[Comparison]
    measures: Sequence[Measured]


def answer_all(questions: Sequence[Question], readings: Readings) -> dict[Key, Answers]:
    """The answers behind all readings, and those to joint questions wherever every part was read.

    Args:
        questions: the labels; the parts of a joint one are among them.
        readings: the scores, by label, reader and name of the features.
    """
    by_label = {asked.label: asked for asked in questions}
    found = {key: answers(by_label[key[0]], scores) for key, scores in readings.items()}
    for asked in questions:
        parts = asked.asking.parts
        for _, reader, run in [key for key in readings if parts and key[0] == parts[0]]:
            if all((part, reader, run) in readings for part in parts):
                scored = [(by_label[part], readings[part, reader, run]) for part in parts]
                found[asked.label, reader, run] = joint_answers(asked, scored)
    return found


def judge(
    questions: Sequence[Question], answered: Mapping[Key, Answers], samples: Samples, *, kinds: Kinds, view_frames: int
) -> list[Findings]:
    """The findings of each question.

    Args:
        questions: the labels.
        answered: the answers; a reader need not have read every kind of features.
        samples: what was measured.
        kinds: the kinds of features and their runs.
        view_frames: frames of a view.
    """
    return [_findings(asked, answered, samples, kinds, view_frames) for asked in questions]


def _findings(asked: Question, answered: Mapping[Key, Answers], samples: Samples, kinds: Kinds, view_frames: int) -> Findings:
    runs = dict(_runs(asked.label, answered, kinds))
    first = next(iter(kinds))
    return Findings(
        question=asked,
        scores=[
            score(asked, probe=reader, features=kind, runs=found, view_frames=view_frames)
            for (reader, kind), found in runs.items()
        ],
        comparisons=[
            compare(asked, probe=reader, features=first, baseline=kind, runs=runs[reader, first], against=found)
            for (reader, kind), found in runs.items()
            if kind != first and (reader, first) in runs
        ],
        measures=[
            measured(asked.label, measure, kind, found)
            for (measure, kind), found in _runs(asked.label, samples, kinds)
            if all(found)
        ],
    )


def _runs(label: str, found: Mapping[Key, Found], kinds: Kinds) -> Iterator[tuple[tuple[str, str], list[Found]]]:
    """By reader and kind of features what the runs of that kind found, where there are any."""
    for reader in dict.fromkeys(key[1] for key in found if key[0] == label):
        for kind, names in kinds.items():
            runs = [found[label, reader, name] for name in names if (label, reader, name) in found]
            if runs:
                yield (reader, kind), runs
