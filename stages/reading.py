"""What probes say of the tested clips: the probability of every class, asked of every view of a clip and averaged.

A reading is kept on disk as soon as it is there, so that a killed run asks no probe twice.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from stages.evals import Classes, Features, MeasureConfig, ProbeConfig, Sample, Scores
from stages.features import ClipFeatures
from stages.protocol import Question, Split, Truth
from stages.storage import probabilities
from stages.storage.features import scores_path

Key = tuple[str, str, str]
"""Label, reader (the name of a probe, or of whatever else gives scores) and the name of the features."""
Readings = dict[Key, Scores]
"""The probability of every class for the tested clips, in the order of ``Question.tested``."""
Samples = dict[Key, Mapping[str, Sample]]
"""What each measure found, by label, measure and features."""


def read_all(
    questions: Sequence[Question],
    *,
    probes: Sequence[ProbeConfig],
    measures: Sequence[MeasureConfig],
    runs: Sequence[str],
    load: Callable[[str], ClipFeatures],
    folder: Path,
    finished: Callable[[], None],
) -> tuple[Readings, Samples]:
    """What every probe and measure makes of every kind of features, for every label.

    Args:
        questions: the labels and their splits, none of them joint.
        probes: what reads the features.
        measures: what is measured of them, for labels with one class per clip.
        runs: the names of the features.
        load: the features by their name; one kind is held in memory at a time.
        folder: where readings are kept until the artifact is published.
        finished: called after every probe of every label and kind.
    """
    readings: Readings = {}
    samples: Samples = {}
    for run in runs:
        features = load(run)
        for asked in questions:
            for probe in probes:
                key = (asked.label, probe.name, run)
                readings[key] = _kept(folder, key, probe, asked, features)
                finished()
            if not asked.asking.is_multi_label:
                samples |= {(asked.label, one.name, run): _measured(one, asked, features) for one in measures}
    return readings, samples


def _kept(folder: Path, key: Key, probe: ProbeConfig, question: Question, features: ClipFeatures) -> Scores:
    path, identity = scores_path(folder, key), " ".join(key)
    known = probabilities.find(path, identity=identity)
    if known is not None:
        return known["scores"]
    found = read(probe, question, features)
    probabilities.write(path, {"scores": found}, identity=identity)
    return found


def read(probe: ProbeConfig, question: Question, features: ClipFeatures) -> Scores:
    """The probability of every class for every tested clip, averaged over its views."""
    # One thread: the same numbers on any number of cores, and several times faster for problems as small as these.
    with threadpool_limits(limits=1):
        found = [_read_split(probe, question, features, split) for split in question.splits]
    return np.concatenate(found).clip(0, 1).astype(np.float32)


def _read_split(probe: ProbeConfig, question: Question, features: ClipFeatures, split: Split) -> Scores:
    taught, tested = question.rows[split.train], question.rows[split.test]
    others = np.flatnonzero(np.isin(features.owners, tested))
    shown = np.concatenate([features.first[tested], features.further[others]])
    ask = one_versus_rest if question.asking.is_multi_label else one_of_many
    truth, groups = question.truth[split.train], question.groups[split.train]
    scores = ask(probe, features.first[taught], truth, groups=groups, test_features=shown)
    return averaged(scores, np.concatenate([tested, features.owners[others]]), tested)


def one_of_many(probe: ProbeConfig, features: Features, truth: Truth, *, groups: Classes, test_features: Features) -> Scores:
    """A probe's scores where every clip has one class."""
    num_classes, classes = truth.shape[1], truth.argmax(axis=1)
    return probe.scores(features, classes, num_classes=num_classes, groups=groups, test_features=test_features)


def one_versus_rest(
    probe: ProbeConfig, features: Features, truth: Truth, *, groups: Classes, test_features: Features
) -> Scores:
    """The scores of one probe per class, each telling its class from all else; the training's answer where it has only one."""
    scores = np.zeros((len(test_features), truth.shape[1]), dtype=np.float32)
    for number, shows in enumerate(truth.T):
        if shows.all() or not shows.any():
            scores[:, number] = shows[0]
            continue
        classes = shows.astype(np.int64)
        both = probe.scores(features, classes, num_classes=2, groups=groups, test_features=test_features)
        scores[:, number] = both[:, 1]
    return scores


def averaged(scores: Scores, owners: Classes, clips: Classes) -> Scores:
    """Mean scores over the views of each clip.

    Args:
        scores: of views, ``[m K]``.
        owners: the clip of each view.
        clips: every clip, in the order wanted; each owns a view.
    """
    order = np.argsort(clips)
    places = order[np.searchsorted(clips, owners, sorter=order)]
    total = np.zeros((len(clips), scores.shape[1]))
    np.add.at(total, places, scores)
    return (total / np.bincount(places, minlength=len(clips))[:, None]).astype(np.float32)


def _measured(measure: MeasureConfig, question: Question, features: ClipFeatures) -> Mapping[str, Sample]:
    with threadpool_limits(limits=1):
        rows = features.first[question.rows]
        return measure.measure(rows, question.classes, groups=question.groups, splits=question.splits)
