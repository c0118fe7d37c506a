"""The report's figures as PNG bytes: pictures of clips, training curves, accuracies. Equal inputs give equal bytes.

Figures are objects of their own; nothing here touches matplotlib's global state.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from stages import mosaics, overlays
from stages.mosaics import DPI, INK
from stages.pictures import Frames, Picture
from stages.scoring import Bucket, Score

_CURVE_TITLES = {
    "loss": "loss",
    "psnr_db": "PSNR of the reconstruction, dB",
    "loss_over_constant": "loss over that of the best constant prediction",
}
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def clip_picture(picture: Picture, num_columns: int) -> bytes:
    """A few frames of one clip, one row for each thing that was made of it.

    Args:
        picture: the clip.
        num_columns: frames to show, spread evenly over the recorded part.
    """
    frames = np.linspace(0, picture.num_recorded_frames - 1, num_columns).round().astype(int)
    return mosaics.titled(_picture_rows(picture, frames), frames.tolist(), title_px=100)


def curves(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> bytes:
    """Measurements over the steps of a training, one panel each.

    Args:
        history: rows with ``step`` and measurements.
        names: which measurements; those that no row has are left out.
    """
    shown = [name for name in names if history and name in history[0]]
    figure = Figure(figsize=(5.2 * max(1, len(shown)), 2.9), dpi=DPI, layout="constrained")
    axes = figure.subplots(1, max(1, len(shown)), squeeze=False)[0]
    for axis, name in zip(axes, shown, strict=False):
        axis.plot([row["step"] for row in history], [row[name] for row in history], color=_COLOURS[0], linewidth=1.4)
        axis.set_title(_CURVE_TITLES.get(name, name), fontsize=10, color=INK)
        axis.set_xlabel("step", fontsize=9, color=INK)
        if name == "loss_over_constant":
            axis.axhline(1, color="#888888", linewidth=1, linestyle="--")
            place = ("axes fraction", "data")
            axis.annotate("no better than a constant", (0.99, 1), xycoords=place, ha="right", va="bottom", fontsize=8)
        _plain(axis)
    return mosaics.png(figure)


def accuracies(scores: Sequence[Score], *, titles: Mapping[str, str], chance: float) -> bytes:
    """Accuracies of one label with their intervals against chance, one line per kind of features.

    Args:
        scores: of one label.
        titles: what to call features and probes.
        chance: the accuracy of a blind guess.
    """
    features = list(dict.fromkeys(score.features for score in scores))
    probes = list(dict.fromkeys(score.probe for score in scores))
    figure = Figure(figsize=(8.6, 0.95 + 0.55 * len(features)), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.axvline(chance, color="#888888", linewidth=1, linestyle="--", label="chance")
    for number, probe in enumerate(probes):
        shown = [score for score in scores if score.probe == probe]
        height = np.array([features.index(score.features) for score in shown]) + 0.16 * (number - (len(probes) - 1) / 2)
        value = np.array([score.accuracy for score in shown])
        reach = np.abs(np.array([score.interval for score in shown]).T - value)
        colour = _COLOURS[number % len(_COLOURS)]
        axis.errorbar(value, height, xerr=reach, fmt="o", color=colour, markersize=5, capsize=3, label=titles.get(probe, probe))
    axis.set_yticks(range(len(features)), [titles.get(name, name) for name in features])
    axis.set(xlim=(0, 1), ylim=(len(features) - 0.5, -0.5))
    axis.xaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axis.set_xlabel("accuracy on the test clips, with 95 % intervals", fontsize=9, color=INK)
    figure.legend(loc="outside upper right", ncols=len(probes) + 1, fontsize=9, frameon=False)
    _plain(axis)
    return mosaics.png(figure)


def bucketed(found: Mapping[str, Sequence[Bucket]], *, titles: Mapping[str, str], chance: float) -> bytes:
    """Accuracies on clips of different length, one line per kind of features.

    Args:
        found: the buckets of every kind of features, the same ones for all.
        titles: what to call features.
        chance: the accuracy of a blind guess.
    """
    names = [f"{bucket.name}\n{bucket.num_clips} clips" for bucket in next(iter(found.values()))]
    figure = Figure(figsize=(8.6, 3.4), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.axhline(chance, color="#888888", linewidth=1, linestyle="--", label="chance")
    for number, (kind, buckets) in enumerate(found.items()):
        place = np.arange(len(buckets)) + 0.08 * (number - (len(found) - 1) / 2)
        value = np.array([bucket.accuracy for bucket in buckets])
        reach = np.abs(np.array([bucket.interval for bucket in buckets]).T - value)
        colour = _COLOURS[number % len(_COLOURS)]
        axis.errorbar(place, value, yerr=reach, fmt="o-", color=colour, markersize=5, capsize=3, label=titles.get(kind, kind))
    axis.set_xticks(range(len(names)), names)
    axis.set(ylim=(0, 1))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axis.set_ylabel("accuracy, with 95 % intervals", fontsize=9, color=INK)
    figure.legend(loc="outside upper right", ncols=len(found) + 1, fontsize=9, frameon=False)
    _plain(axis)
    return mosaics.png(figure)


def confusion(counts: npt.NDArray[np.int64], names: Sequence[str]) -> bytes:
    """Which class was taken for which: a row per true class, a column per class that was said.

    Args:
        counts: tested clips ``[K K]``.
        names: of the classes.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 1.6 + 0.42 * len(names)
    figure = Figure(figsize=(side + 1, side), dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (y, x), count in np.ndenumerate(counts):
        if count:
            axis.text(x, y, str(count), ha="center", va="center", fontsize=8, color="white" if shares[y, x] > 0.5 else INK)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_xlabel("said", fontsize=9, color=INK)
    axis.set_ylabel("true", fontsize=9, color=INK)
    return mosaics.png(figure)


def strip(frames: Frames, num_columns: int) -> bytes:
    """A few frames of a clip side by side, spread evenly over it.

    Args:
        frames: the recorded ones, ``uint8 [T H W C]``.
        num_columns: how many to show.
    """
    chosen = np.linspace(0, len(frames) - 1, num_columns).round().astype(int)
    return mosaics.strip(list(frames[chosen]))


def _picture_rows(picture: Picture, frames: npt.NDArray[Any]) -> dict[str, list[npt.NDArray[np.uint8]]]:
    slots = frames * picture.roles.shape[0] // len(picture.original)
    rows = {"original": list(picture.original[frames]), "tokenizer": list(picture.tokenized[frames])}
    if picture.predicted is not None:
        predicted = zip(frames, slots, strict=True)
        rows["autoencoder"] = [overlays.outlined(picture.predicted[frame], picture.roles[slot]) for frame, slot in predicted]
    heat = overlays.heat(picture.priority[: slots[-1] + 1])
    shown = [(picture.original[frame], slot) for frame, slot in zip(frames, slots, strict=True)]
    rows["priority"] = [overlays.laid_over(original, heat[slot], 0.7) for original, slot in shown]
    rows["tokens"] = [overlays.with_roles(original, picture.roles[slot]) for original, slot in shown]
    return rows


def _plain(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=9, colors=INK)
    axis.grid(axis="both", color="#e6e6e6", linewidth=0.8)
    axis.set_axisbelow(True)
