"""The words of the report: what was found, on what data, and where every part of it came from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from stages.features import PRETRAINED
from stages.protocol import Question
from stages.scoring import Comparison, Interval, Score
from stages.storage.artifact import Artifact
from stages.storage.tables import read_table

MAX_NAMED_SOURCES = 50


class Fact(NamedTuple):
    """One line of what was run."""

    name: str
    value: str


class Origin(NamedTuple):
    """One artifact behind the report."""

    stage: str
    fingerprint: str
    digest: str
    folder: str
    counts: tuple[Fact, ...]
    config: Mapping[str, Any]


class Quarantine(NamedTuple):
    """The sources that became no clip."""

    reasons: tuple[tuple[str, int], ...]
    """How many, by reason, most frequent first."""
    named: tuple[tuple[str, str, str], ...]
    """Source, reason and detail of the first of them."""
    num_unnamed: int


def percent(share: float) -> str:
    """A share as a person reads it."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def span(interval: Interval) -> str:
    """An interval of shares as a person reads it."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of shares as a person reads it."""
    return f"{100 * difference:+.1f} points".replace("-", "−")


def probability(value: float) -> str:
    """A p-value as a person reads it."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def headline(
    question: Question, scores: Sequence[Score], comparisons: Sequence[Comparison], titles: Mapping[str, str]
) -> list[str]:
    """What was found for one label with the first probe, in sentences that claim no more than the intervals allow.

    Args:
        question: the label.
        scores: its scores.
        comparisons: of the pretrained encoder with everything else.
        titles: what to call features and probes.
    """
    probe = scores[0].probe
    own = next(score for score in scores if score.features == PRETRAINED and score.probe == probe)
    against = {comparison.baseline: comparison for comparison in comparisons if comparison.probe == probe}
    named = "a right class for" if question.asking.is_multi_label else "the right class for"
    first = (
        f"“{question.label}”, {len(question.class_names)} classes: from the pretrained encoder’s features a simple probe "
        f"({titles[probe]}) names {named} {percent(own.accuracy)} of {own.num_test} test clips (95 % interval "
        f"{span(own.interval)}); a blind guess {percent(question.uniform_chance)}."
    )
    others = [score for score in scores if score.probe == probe and score.features != PRETRAINED]
    return [first, *(_versus(score, against[score.features], titles) for score in others)]


def _versus(score: Score, comparison: Comparison, titles: Mapping[str, str]) -> str:
    name = titles[score.features]
    subject = f"{name[0].upper()}{name[1:]}: {percent(score.accuracy)}"
    if not comparison.is_certain:
        return f"{subject}. Not told apart from the pretrained encoder on these clips ({probability(comparison.p_value)})."
    relation = "below" if comparison.difference > 0 else "above"
    return f"{subject}, {relation} the pretrained encoder, and not by chance ({probability(comparison.p_value)})."


def facts(inputs: Mapping[str, Artifact], question: Question, config: Mapping[str, Any]) -> list[Fact]:
    """What was run on what data, each line readable without the code.

    Args:
        inputs: the artifacts behind the evaluation.
        question: the label of the headline.
        config: the evaluation's own parameters as plain values.
    """
    recipe, counts = inputs["pretrain"].manifest.config, inputs["pretrain"].manifest.counts
    views, encoder = inputs["precompute"].manifest.config["views"], recipe["model"]["encoder"]
    excluded = [f"those with {key} = {value}" for key, value in recipe["exclude"].items()]
    return [
        Fact("Data", f"{inputs['shard'].folder.name}: {_data(inputs['shard'].manifest.counts)}"),
        Fact(
            "Input", f"{views['num_frames']} frames of {views['size_px']} x {views['size_px']} px, {counts['tokens']:,} tokens"
        ),
        Fact(
            "Encoder",
            f"{encoder['depth']} blocks of width {encoder['width']}, {counts['encoder_parameters']:,} parameters",
        ),
        Fact("Pretraining", _pretraining(recipe, counts)),
        Fact("Kept out of pretraining", " and ".join(excluded) or "nothing: the test clips were seen, without their labels"),
        Fact("Features", _features(config)),
        Fact("Scored clips", _scored(question, config)),
    ]


def _data(counts: Mapping[str, int]) -> str:
    return (
        f"{counts['clips']:,} clips from {counts['committed']:,} of {counts['inputs']:,} sources; "
        f"{counts['quarantined']:,} sources are quarantined, {counts['pending']:,} pending"
    )


def _pretraining(recipe: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    seen, predicted, target = (recipe[name]["name"] for name in ("encoder_masking", "decoder_masking", "target"))
    return (
        f"{counts['units']:,} steps of {recipe['optimization']['batch_clips']} clips, without labels; the encoder sees "
        f"{counts['visible_tokens']:,} tokens ({seen}), the decoder predicts {counts['predicted_tokens']:,} ({predicted}); "
        f"what is predicted: {target}"
    )


def _features(config: Mapping[str, Any]) -> str:
    place = "the last block" if config["layer"] is None else f"block {config['layer']}"
    return (
        f"frozen; tokens after {place} of all recorded frames, averaged within {config['spatial_cells']} x "
        f"{config['spatial_cells']} places and {config['temporal_bins']} equal parts of time, joined in order"
    )


def _scored(question: Question, config: Mapping[str, Any]) -> str:
    chosen = " and ".join(f"{key} = {value}" for key, value in config["where"].items())
    how = (
        f"taught and tested as the column “{config['split_label']}” says"
        if config["folds"] is None
        else f"{config['folds']}-fold, each clip tested once, whole groups of “{config['group_label'] or 'source'}” held out"
    )
    torn = f"; {question.num_shared_groups} groups are on both sides of a split" if question.num_shared_groups else ""
    asked = f"{len(question.rows)} clips" + (f" with {chosen}" if chosen else "")
    return f"{asked}; {how}{torn}; {_views(config['views'])}"


def _views(views: Mapping[str, int]) -> str:
    if views["temporal"] == views["spatial"] == 1:
        return "one view of each tested clip, its start and centre"
    return (
        f"up to {views['temporal']} x {views['spatial']} views of each tested clip (starts x parts of the frame), their "
        "probabilities averaged"
    )


def origin(stage: str, made: Artifact, folder: str) -> Origin:
    """Where one part of the report came from."""
    counts = tuple(Fact(name.replace("_", " "), f"{value:,}") for name, value in made.manifest.counts.items())
    return Origin(stage, made.fingerprint, made.digest, folder, counts, made.manifest.config)


def quarantine(snapshot: Artifact) -> Quarantine:
    """Every source that became no clip, with its reason."""
    parts = sorted(name for name in snapshot.manifest.files if name.startswith("quarantine/"))
    rows = [row for name in parts for row in read_table(snapshot.verified(name))]
    reasons = Counter(row["reason"] for row in rows)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    named = tuple((row["key"], row["reason"], row["detail"]) for row in rows[:MAX_NAMED_SOURCES])
    return Quarantine(tuple(ordered), named, max(0, len(rows) - MAX_NAMED_SOURCES))
