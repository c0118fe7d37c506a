"""Every probe on every kind of features for every label: the grid of scores behind the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from stages.evals import Features, ProbeConfig
from stages.protocol import Question
from stages.scoring import Comparison, Hits, Score, compare, predicted_hits, score


@dataclasses.dataclass(frozen=True)
class Findings:
    """All scores and comparisons of one label."""

    question: Question
    scores: Sequence[Score]
    comparisons: Sequence[Comparison]


def judge(
    questions: Sequence[Question],
    *,
    probes: Sequence[ProbeConfig],
    kinds: Mapping[str, Sequence[str]],
    load: Callable[[str], Features],
    finished: Callable[[], None],
) -> list[Findings]:
    """The findings of each question.

    Args:
        questions: the labels and their splits.
        probes: what reads the features.
        kinds: per kind of features the names of its runs, one per seed; the first kind is compared with the others.
        load: the features of all scored clips by the name of a run; one run is held in memory at a time.
        finished: called after every probe of every run and label.
    """
    hits: dict[tuple[str, str, str], list[Hits]] = {}
    for kind, names in kinds.items():
        for name in names:
            features = load(name)
            for asked in questions:
                for probe in probes:
                    hits.setdefault((asked.label, probe.name, kind), []).append(predicted_hits(probe, asked, features))
                    finished()
    return [_findings(asked, [probe.name for probe in probes], list(kinds), hits) for asked in questions]


def _findings(
    asked: Question, probes: Sequence[str], kinds: Sequence[str], hits: Mapping[tuple[str, str, str], Sequence[Hits]]
) -> Findings:
    runs = {(probe, kind): hits[asked.label, probe, kind] for probe in probes for kind in kinds}
    first = kinds[0]
    scores = [score(asked, probe=probe, features=kind, runs=found) for (probe, kind), found in runs.items()]
    comparisons = [
        compare(asked, probe=probe, features=first, baseline=kind, runs=runs[probe, first], against=found)
        for (probe, kind), found in runs.items()
        if kind != first
    ]
    return Findings(asked, scores, comparisons)
