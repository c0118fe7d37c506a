"""Two or more evaluations side by side: whether one is better than another on the clips that both tested, and where.

Numbers alone; ``stages.comparison_page`` shows them. Nothing is trained or predicted here: everything comes from what the
evaluations published.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.scoring import CONFIDENCE, DURATIONS_S, Interval, grouped_interval, sign_test

COLUMNS = ("label", "probe", "features", "split", "clip_id", "key", "group", "duration_s", "true", "predicted")
"""What is read of the predictions, and ``scores`` where a clip may have several classes."""
MAX_CHANGES = 8
"""Clips that are named of those that changed, each way. Our choice."""
_BUCKETS = (*(f"{low}–{high} s" for low, high in itertools.pairwise(DURATIONS_S)), f"> {DURATIONS_S[-1]} s")

Values = npt.NDArray[np.float64]


class Answer(NamedTuple):
    """What was said of one tested clip."""

    key: str
    group: str
    duration_s: float
    true: tuple[str, ...]
    said: str

    @property
    def is_right(self) -> bool:
        """Whether what was said is its class, or one of them."""
        return self.said in self.true


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation, as far as it is compared."""

    name: str
    """A letter."""
    title: str
    """What was evaluated, for a person."""
    fingerprint: str
    folder: str
    labels: Sequence[Mapping[str, Any]]
    """As in its ``metrics.json``."""
    rows: Sequence[Mapping[str, Any]]
    """Of its predictions, ``COLUMNS`` of them."""
    settings: Mapping[str, str]
    """Its recipe by dotted names."""
    inputs: Mapping[str, str]
    """Digests of what it was made from, by stage."""

    def label(self, name: str) -> Mapping[str, Any] | None:
        """What it says of a label."""
        return next((one for one in self.labels if one["label"] == name), None)

    def features(self, label: str) -> str | None:
        """The features that it is about: the first of a label; the others are there to compare with."""
        found = self.label(label)
        return found["scores"][0]["features"] if found and found["scores"] else None

    def answers(self, label: str, probe: str) -> dict[tuple[int, str], Answer]:
        """What its features and a probe say, by split and clip; of several seeds the first."""
        found, features = self.label(label), self.features(label)
        if found is None or features is None:
            return {}
        rows = [
            row for row in self.rows if (row["label"], row["probe"]) == (label, probe) and _is_of(row["features"], features)
        ]
        first = min((row["features"] for row in rows), default=features, key=lambda name: (len(name), name))
        return {
            (row["split"], row["clip_id"]): Answer(
                row["key"], row["group"], row["duration_s"], tuple(row["true"]), _said(row, found["class_names"])
            )
            for row in rows
            if row["features"] == first
        }


class Headline(NamedTuple):
    """The accuracy of one evaluation for one label and probe, as it says itself."""

    evaluation: str
    label: str
    probe: str
    features: str
    accuracy: float
    interval: Interval
    num_test: int
    uniform_chance: float


class Bucket(NamedTuple):
    """One part of the common clips."""

    title: str
    num_clips: int
    accuracies: tuple[float, float]
    difference: float
    interval: Interval


class Change(NamedTuple):
    """A clip that one of two names rightly, and the other does not."""

    key: str
    true: tuple[str, ...]
    first: str
    second: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two evaluations on the clips that both tested, for one label and probe."""

    first: str
    second: str
    label: str
    probe: str
    num_clips: int
    num_groups: int
    accuracies: tuple[float, float]
    difference: float
    """Accuracy of the first less that of the second."""
    interval: Interval
    """Of the difference, from groups of clips drawn again."""
    wins: int
    """Clips that the first alone names rightly."""
    losses: int
    """Clips that the second alone names rightly."""
    p_value: float
    """Of the exact sign test."""
    adjusted_p_value: float
    """The same after Holm's correction for all pairs that are shown."""
    buckets: Sequence[Bucket]
    """By duration, those that hold a clip."""
    won: Sequence[Change]
    """Some of the clips that the first alone names rightly."""
    lost: Sequence[Change]
    """Some of the clips that the second alone names rightly."""

    @property
    def is_certain(self) -> bool:
        """Whether chance alone would hardly make such a difference among so many pairs."""
        return self.adjusted_p_value < 1 - CONFIDENCE

    def bucket(self, title: str) -> Bucket | None:
        """The part of its clips of a duration, if there are any."""
        return next((one for one in self.buckets if one.title == title), None)


class Setting(NamedTuple):
    """Something that is not the same in all evaluations."""

    name: str
    values: Sequence[str | None]
    """Of each evaluation; ``None`` where it has no such setting."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that is said of some evaluations side by side."""

    evaluations: Sequence[Evaluation]
    headlines: Sequence[Headline]
    pairs: Sequence[Pair]
    settings: Sequence[Setting]
    """What differs between their recipes."""
    inputs: Sequence[Setting]
    """Digests of what they were made from, those that are the same as well."""
    warnings: Sequence[str]
    """Why they may not be comparable."""

    @property
    def asked(self) -> list[tuple[str, str]]:
        """Every label and probe, in their order."""
        return list(dict.fromkeys((one.label, one.probe) for one in self.headlines))

    @property
    def durations(self) -> list[str]:
        """Every bucket of durations that holds a clip of any pair, the shortest first."""
        there = {bucket.title for pair in self.pairs for bucket in pair.buckets}
        return [title for title in _BUCKETS if title in there]

    def headline(self, evaluation: str, label: str, probe: str) -> Headline | None:
        """What one evaluation says for a label and a probe."""
        wanted = (evaluation, label, probe)
        return next((one for one in self.headlines if (one.evaluation, one.label, one.probe) == wanted), None)

    def record(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        kept = ("name", "title", "fingerprint", "folder", "inputs")
        return {
            "evaluations": [{name: getattr(one, name) for name in kept} for one in self.evaluations],
            "headlines": [_plain(one) for one in self.headlines],
            "pairs": [_plain(one) for one in self.pairs],
            "settings": [_plain(one) for one in self.settings],
            "warnings": list(self.warnings),
        }


def compare(evaluations: Sequence[Evaluation]) -> Comparison:
    """All pairs of evaluations, for every label and probe that both have."""
    pairs = [pair for first, second in itertools.combinations(evaluations, 2) for pair in _pairs(first, second)]
    adjusted = holm([pair.p_value for pair in pairs])
    return Comparison(
        evaluations=evaluations,
        headlines=[one for evaluation in evaluations for one in _headlines(evaluation)],
        pairs=[dataclasses.replace(pair, adjusted_p_value=value) for pair, value in zip(pairs, adjusted, strict=True)],
        settings=_differing([evaluation.settings for evaluation in evaluations]),
        inputs=_settings([evaluation.inputs for evaluation in evaluations]),
        warnings=list(dict.fromkeys(_warnings(evaluations))),
    )


def difference_interval(differences: Values, groups: Sequence[str]) -> Interval:
    """How far the mean of differences may be off because only so many groups of clips were tested.

    Args:
        differences: one per clip, from -1 to 1.
        groups: to which each belongs.

    Source: as ``grouped_interval``, of which it is the interval on another scale.
    """
    low, high = grouped_interval((differences + 1) / 2, np.unique(np.asarray(groups), return_inverse=True)[1])
    return Interval(2 * low - 1, 2 * high - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all tests together: the chance that any of those below a bound is there by chance is below it.

    Source: S. Holm, Scandinavian Journal of Statistics 6, 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(value) for value in adjusted]


def _is_of(name: str, features: str) -> bool:
    """Whether a name means these features, or one seed of them, such as ``untrained-0``."""
    return name == features or (name.removeprefix(f"{features}-").isdecimal() and name.startswith(f"{features}-"))


def _said(row: Mapping[str, Any], class_names: Sequence[str]) -> str:
    """The first answer: where there are several or none, the most probable class."""
    if row.get("scores"):
        return class_names[int(np.argmax(row["scores"]))]
    return " + ".join(row["predicted"])


def _headlines(evaluation: Evaluation) -> Iterator[Headline]:
    for found in evaluation.labels:
        for score in found["scores"]:
            if score["features"] == evaluation.features(found["label"]):
                yield Headline(
                    evaluation=evaluation.name,
                    label=found["label"],
                    probe=score["probe"],
                    features=score["features"],
                    accuracy=score["accuracy"],
                    interval=Interval(*score["interval"]),
                    num_test=score["num_test"],
                    uniform_chance=found["uniform_chance"],
                )


def _pairs(first: Evaluation, second: Evaluation) -> Iterator[Pair]:
    there = {(one.label, one.probe) for one in _headlines(second)}
    for one in _headlines(first):
        if (one.label, one.probe) in there:
            answers = first.answers(one.label, one.probe), second.answers(one.label, one.probe)
            common = sorted({*answers[0]} & {*answers[1]})
            if common:
                joined = [(answers[0][place], answers[1][place]) for place in common]
                yield _pair((first.name, second.name), (one.label, one.probe), joined)


def _pair(names: tuple[str, str], asked: tuple[str, str], joined: Sequence[tuple[Answer, Answer]]) -> Pair:
    hits = np.array([(one.is_right, other.is_right) for one, other in joined])
    groups = [one.group for one, _ in joined]
    whole = _bucket("all", hits, groups)
    won, lost = hits[:, 0] & ~hits[:, 1], hits[:, 1] & ~hits[:, 0]
    p_value = sign_test(int(won.sum()), int(lost.sum()))
    return Pair(
        *names,
        *asked,
        num_clips=len(joined),
        num_groups=len({*groups}),
        accuracies=whole.accuracies,
        difference=whole.difference,
        interval=whole.interval,
        wins=int(won.sum()),
        losses=int(lost.sum()),
        p_value=p_value,
        adjusted_p_value=p_value,
        buckets=list(_by_duration(hits, joined)),
        won=_changes(joined, won),
        lost=_changes(joined, lost),
    )


def _by_duration(hits: npt.NDArray[np.bool_], joined: Sequence[tuple[Answer, Answer]]) -> Iterator[Bucket]:
    numbers = np.searchsorted(DURATIONS_S[1:], [one.duration_s for one, _ in joined])
    for number, title in enumerate(_BUCKETS):
        chosen = np.flatnonzero(numbers == number).tolist()
        if len(chosen):
            yield _bucket(title, hits[chosen], [joined[place][0].group for place in chosen])


def _bucket(title: str, hits: npt.NDArray[np.bool_], groups: Sequence[str]) -> Bucket:
    first, second = (float(value) for value in hits.mean(axis=0))
    differences = hits[:, 0].astype(np.float64) - hits[:, 1]
    return Bucket(title, len(hits), (first, second), float(differences.mean()), difference_interval(differences, groups))


def _changes(joined: Sequence[tuple[Answer, Answer]], chosen: npt.NDArray[np.bool_]) -> list[Change]:
    """Some of the chosen clips: of as many different classes as there are, by their names."""
    found = sorted(
        Change(joined[place][0].key, joined[place][0].true, joined[place][0].said, joined[place][1].said)
        for place in np.flatnonzero(chosen).tolist()
    )
    seen: dict[tuple[str, ...], int] = {}
    turns = []
    for change in found:
        turns.append((seen.get(change.true, 0), change.true, change))
        seen[change.true] = seen.get(change.true, 0) + 1
    return [change for _, _, change in sorted(turns)[:MAX_CHANGES]]


def _settings(found: Sequence[Mapping[str, str]]) -> list[Setting]:
    names = dict.fromkeys(name for one in found for name in one)
    return [Setting(name, [one.get(name) for one in found]) for name in names]


def _differing(found: Sequence[Mapping[str, str]]) -> list[Setting]:
    return [setting for setting in _settings(found) if len({*setting.values}) > 1]


def _warnings(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    for first, second in itertools.combinations(evaluations, 2):
        names = f"{first.name} and {second.name}"
        labels = [[one["label"] for one in evaluation.labels] for evaluation in (first, second)]
        common = [label for label in labels[0] if label in labels[1]]
        if not common:
            yield f"{names} have no label in common ({', '.join(labels[0])}; {', '.join(labels[1])}): nothing to compare."
        elif {*labels[0]} != {*labels[1]}:
            apart = sorted({*labels[0]} ^ {*labels[1]})
            yield f"{names} were not asked for the same labels; left out here: {', '.join(apart)}."
        for label in common:
            yield from _differences(names, label, first, second)


def _differences(names: str, label: str, first: Evaluation, second: Evaluation) -> Iterator[str]:
    """What stands against a comparison for one label."""
    classes = [tuple(found["class_names"]) for one in (first, second) if (found := one.label(label))]
    if {*classes[0]} != {*classes[1]}:
        yield f"{names} tell different classes of “{label}”: {len(classes[0])} and {len(classes[1])}; one task may be easier."
    probes = [[one.probe for one in _headlines(run) if one.label == label] for run in (first, second)]
    common = [probe for probe in probes[0] if probe in probes[1]]
    if not common:
        yield f"{names} have no probe in common for “{label}” ({', '.join(probes[0])}; {', '.join(probes[1])})."
        return
    one, other = first.answers(label, common[0]), second.answers(label, common[0])
    both = {*one} & {*other}
    if len(both) < max(len(one), len(other)):
        yield (
            f"{names} were not tested on the same clips of “{label}”: {len(one)} and {len(other)}, of which {len(both)} are in "
            "the same split of both; the pair is about these alone, and their own accuracies are not."
        )
    relabelled = sum({*one[place].true} != {*other[place].true} for place in both)
    if relabelled:
        yield f"{relabelled} of the common clips of “{label}” have other classes in {first.name} than in {second.name}."


def _plain(value: Any) -> Any:
    """Named tuples and dataclasses as JSON objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Interval):
        return list(value)
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    return [_plain(part) for part in value] if isinstance(value, list | tuple) else value
