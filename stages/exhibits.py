"""The report's figures with their captions: accuracies of a label, pictures of clips, curves of a training."""

import json
from collections.abc import Mapping, Sequence

from stages import figures
from stages.judgement import Findings
from stages.pictures import Picture
from stages.report import Asked, Shown
from stages.storage.artifact import Artifact
from stages.storage.index import Clip
from stages.summary import headline, percent

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
        found: its scores.
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
    sentences = headline(asked, found.scores, found.comparisons, titles)
    return Asked(question=asked, sentences=sentences, scores=found.scores, comparisons=found.comparisons, chart=chart)


def clip_exhibit(picture: Picture, clip: Clip, *, number: int, labels: Sequence[str], num_frames: int) -> Shown:
    """A picture of one clip with its labels and how well it was rebuilt and predicted."""
    known = ", ".join(f"{label} = {' + '.join(clip.labels[label])}" for label in labels if label in clip.labels)
    quality = f"{clip.num_frames} frames recorded. Tokenizer: {picture.tokenizer_psnr_db:.1f} dB."
    if picture.unexplained_share is not None:
        quality += (
            f" Autoencoder: at the chosen hidden tokens its squared error is {percent(picture.unexplained_share)} of the "
            "codes' variance (100 %: no better than naming their mean)."
        )
    png = figures.clip_picture(picture, num_frames)
    return Shown(name=f"clip-{number:02d}", title=f"{clip.key} ({known})", caption=quality, png=png)


def curve_exhibit(stage: str, made: Artifact) -> Shown | None:
    """The curves of a training, from what it published; ``None`` for a network that was given and not trained."""
    names, title = _CURVES[stage]
    history = json.loads(made.verified("metrics.json").read_bytes())["history"]
    if not history:
        return None
    caption = f"Means over the steps between points; {history[-1]['step']:,.0f} steps in all."
    return Shown(name=f"curve-{stage}", title=title, caption=caption, png=figures.curves(history, names))
