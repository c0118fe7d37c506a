"""The report's figures with their captions: accuracies of a label, pictures of clips, curves of a training."""

import json
from collections.abc import Mapping, Sequence

import numpy as np

from stages import figures
from stages.examples import Example
from stages.features import PRETRAINED
from stages.film import film
from stages.judgement import Findings
from stages.multi_view import Footage
from stages.pictures import Picture
from stages.report import Asked, Shown
from stages.scoring import Score
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.summary import headline, percent

MAX_CONFUSED = 40
"""Classes of the largest table of confusions that is drawn."""

_CURVES = {
    "tokenizer": (("loss", "psnr_db"), "The tokenizer learning to rebuild windows of video from their most important codes"),
    "pretrain": (
        ("loss", "loss_over_constant"),
        "The autoencoder learning to predict hidden tokens",
    ),
}
"""What to draw of each training, and what it shows."""


def answer(found: Findings, *, number: int, titles: Mapping[str, str]) -> Asked:
    """What the report says of one label.

    Args:
        found: what was found for it.
        number: its place in the report.
        titles: what to call features and probes.
    """
    asked = found.question
    chart = Shown(
        name=f"accuracy-{number:02d}",
        title=f"Accuracy on “{asked.label}”",
        caption="Points are accuracies, bars their 95 % intervals; the dashed line is a blind guess.",
        png=figures.accuracies(found.scores, titles=titles, chance=asked.uniform_chance),
    )
    own = next(score for score in found.scores if score.features == PRETRAINED)
    same_probe = {score.features: score for score in found.scores if score.probe == own.probe}
    lengths = {
        ("duration", "how long it lasts"): {kind: score.by_duration for kind, score in same_probe.items()},
        ("frames", "how many frames of it are seen"): {kind: score.by_frames for kind, score in same_probe.items()},
    }
    by_length = [
        Shown(
            name=f"{name}-{number:02d}",
            title=f"Accuracy on “{asked.label}” by the length of the clip: {what}",
            caption=f"Of the {titles[own.probe]}; bars are 95 % intervals, wide where there are few clips.",
            png=figures.bucketed(buckets, titles=titles, chance=asked.uniform_chance),
        )
        for (name, what), buckets in lengths.items()
        if len(next(iter(buckets.values()))) > 1
    ]
    return Asked(
        question=asked,
        sentences=headline(asked, found.scores, found.comparisons, titles),
        scores=found.scores,
        comparisons=found.comparisons,
        measures=found.measures,
        charts=[chart, *by_length, *_confusion_exhibit(found, own, number, titles)],
    )


def _confusion_exhibit(found: Findings, own: Score, number: int, titles: Mapping[str, str]) -> list[Shown]:
    """Which class was taken for which by the first probe on the pretrained encoder; nothing where it could not be read."""
    names = found.question.class_names
    if len(names) > MAX_CONFUSED or found.question.asking.is_multi_label or found.question.asking.parts:
        return []
    counts = np.array([[own.confusion.get(true, {}).get(said, 0) for said in names] for true in names])
    shown = Shown(
        name=f"confusion-{number:02d}",
        title=f"Which “{found.question.label}” is taken for which",
        caption=f"Tested clips of the pretrained encoder with the {titles[own.probe]}; darker is a larger share of its row.",
        png=figures.confusion(counts, names),
    )
    return [shown]


def example_exhibit(example: Example, footage: Footage, number: int, num_frames: int) -> Shown:
    """A strip of one tested clip with what it shows and what was said of it."""
    recorded = footage.pixels(example.clip)[: footage.first(example.clip).num_real_frames]
    true, said = (", ".join(f"“{name}”" for name in names) or "nothing" for names in (example.true, example.predicted))
    verdict = "right" if example.is_right else "wrong"
    return Shown(
        name=f"example-{number:02d}",
        title=f"{verdict.capitalize()}: {example.clip.key}",
        caption=f"It shows {true}; said was {said}. The probability of the first answer was {percent(example.confidence)}.",
        png=figures.strip(recorded, num_frames),
    )


def clip_exhibit(
    picture: Picture, clip: Clip, *, number: int, labels: Sequence[str], num_frames: int, is_moving: bool
) -> Shown:
    """A picture of one clip with its labels and how well it was rebuilt and predicted; a film beside it if it is to move."""
    known = ", ".join(f"{label} = {' + '.join(clip.labels[label])}" for label in labels if label in clip.labels)
    quality = f"{clip.num_frames} frames recorded. Tokenizer: {picture.tokenizer_psnr_db:.1f} dB."
    if picture.unexplained_share is not None:
        quality += (
            f" Autoencoder: at the chosen hidden tokens its squared error is {percent(picture.unexplained_share)} of the "
            "codes' variance (100 %: no better than naming their mean)."
        )
    png = figures.clip_picture(picture, num_frames)
    webm = film(picture) if is_moving else None
    return Shown(name=f"clip-{number:02d}", title=f"{clip.key} ({known})", caption=quality, png=png, webm=webm)


def curve_exhibit(stage: str, made: Artifact) -> Shown | None:
    """The curves of a training, from what it published; ``None`` for a network that was given and not trained."""
    names, title = _CURVES[stage]
    history = json.loads(made.verified("metrics.json").read_bytes())["history"]
    if not history:
        return None
    caption = f"Means over the steps between points; {history[-1]['step']:,.0f} steps in all."
    return Shown(name=f"curve-{stage}", title=title, caption=caption, png=figures.curves(history, names))
