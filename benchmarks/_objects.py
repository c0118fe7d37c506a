"""How much of what a score ranks highest lies on a known object, and the scores that are compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange, reduce

from models.grid import Patching
from models.tokenizers import Tokenizer
from stages.batches import ClipFrames
from stages.products import Footage, codec_motion, everest, flow
from stages.readers import synthetic
from stages.storage.artifact import Artifact
from stages.storage.boxes import read_boxes
from stages.storage.index import Clip, Index, read_motion
from stages.storage.workspace import Workspace
from stages.views import ViewConfig, cut, draw_view

Array = npt.NDArray[np.floating]
"""Per clip and token ``[n t h w]`` unless said otherwise."""

TOP_SHARE = 0.1
"""Share of a clip's tokens that are looked at: what pretraining decodes by priority. Source: arXiv 2411.13683."""
ON_OBJECT = 0.5
"""Covered share from which on a token counts as lying on the object. Our choice."""
_DRAWS = 2000
"""Bootstrap draws of clips behind an interval."""


def coverage(boxes: npt.NDArray[np.float32], patching: Patching, size_px: int) -> Array:
    """The share of every token ``[t h w]`` that lies in the object's box, over its frames.

    Args:
        boxes: left, top, right and bottom in pixels ``[T 4]``; parts beyond the frame count nowhere.
        patching: the pixels of a token.
        size_px: side of the frames.
    """
    starts = np.arange(0, size_px, patching.patch_px)

    def shared(low: Array, high: Array) -> Array:
        ends = np.minimum(starts + patching.patch_px, high[:, None]) - np.maximum(starts, low[:, None])
        lengths: Array = np.clip(ends, 0, None) / patching.patch_px
        return lengths

    per_frame = np.einsum("th,tw->thw", shared(boxes[:, 1], boxes[:, 3]), shared(boxes[:, 0], boxes[:, 2]))
    covered_share: Array = reduce(per_frame, "(t dt) h w -> t h w", "mean", dt=patching.tubelet_frames)
    return covered_share


def footage(snapshot: Artifact, clips: Sequence[Clip], *, num_frames: int, size_px: int) -> list[Footage]:
    """The middle view of clips, as the stage ``precompute`` cuts view 0, with the motion that is stored with them."""
    frames, views = ClipFrames(snapshot), ViewConfig(num_frames=num_frames, size_px=size_px)
    drawn = [draw_view(clip, 0, views) for clip in clips]
    return [
        Footage(cut(frames, clip, view, num_frames), view, Patching(), read_motion(snapshot, clip))
        for clip, view in zip(clips, drawn, strict=True)
    ]


def held_out(snapshot: Artifact) -> list[Clip]:
    """The clips of the split ``test``."""
    return [clip for clip in Index(snapshot) if clip.label("split") == "test"]


def object_coverage(source: synthetic.Config, workspace: Workspace, clips: Sequence[Clip]) -> Array:
    """Coverage of the tokens of clips that a reader rendered; its files are there already."""
    folder = Path(next(iter(source.sources(workspace))).place.url).parent.parent
    boxes = read_boxes(folder / synthetic.BOXES_NAME)
    return np.stack([coverage(boxes[clip.key], Patching(), source.scenes.size_px) for clip in clips])


def products(seen: Sequence[Footage]) -> dict[str, Array]:
    """The scores that need no network; codec motion only where it is stored."""
    made = {
        "flow": [flow.Config(name="flow").compute(part) for part in seen],
        "EVEREST": [everest.Config(name="everest").compute(part) for part in seen],
    }
    if all(part.motion is not None for part in seen):
        vectors = [codec_motion.Config(name="codec_motion").compute(part) for part in seen]
        made["codec motion"] = [np.linalg.norm(part.astype(np.float32), axis=-1) for part in vectors]
    return {name: np.stack(parts).astype(np.float32) for name, parts in made.items()}


def block_means(seen: Sequence[Footage], side_px: int) -> Array:
    """Change from slot to slot of the mean brightness of blocks, root mean square over a token; averaging takes noise away."""
    grey = np.stack([part.pixels.mean(axis=3, dtype=np.float32) for part in seen])
    blocks = reduce(grey, "n (t dt) (h y) (w x) -> n t h w", "mean", dt=Patching().tubelet_frames, y=side_px, x=side_px)
    squares = np.diff(blocks, axis=1) ** 2
    inner = Patching().patch_px // side_px
    found = np.sqrt(reduce(squares, "n t (h y) (w x) -> n t h w", "mean", y=inner, x=inner))
    return np.concatenate([found[:, :1], found], axis=1)


def priorities(tokenizer: Tokenizer, seen: Sequence[Footage]) -> Array:
    """What the tokenizer finds important, in windows as targets are made."""
    found = []
    for part in seen:
        clip = rearrange(torch.from_numpy(part.pixels), "T H W C -> 1 C T H W").float() / 255
        found.append(tokenizer.tokenize(clip)[1][0].numpy())
    return np.stack(found)


def top_tokens(scores: Array, *, share: float = TOP_SHARE) -> npt.NDArray[np.int64]:
    """Positions ``[n k]`` of the highest scores of every clip; equal scores in an order drawn once."""
    flat = scores.reshape(len(scores), -1)
    chance = np.random.default_rng(0).random(flat.shape)
    return np.lexsort((chance, -flat), axis=1)[:, : round(share * flat.shape[1])]


def covered(scores: Array, objects: Array) -> Array:
    """The covered share ``[n k]`` of every top token of every clip."""
    return np.take_along_axis(objects.reshape(len(objects), -1), top_tokens(scores), axis=1)


def judged(scores: Mapping[str, Array], objects: Array) -> list[dict[str, float | str]]:
    """One row per score: covered share of its top tokens, lift over area with 95 % interval, share of them on the object."""
    area = objects.reshape(len(objects), -1).mean(axis=1)
    rows: list[dict[str, float | str]] = []
    for name, values in scores.items():
        shares = covered(values, objects)
        low, high = ratio_interval(shares.mean(axis=1), area)
        rows.append(
            {
                "score": name,
                "covered share of top 10 %": float(shares.mean()),
                "lift over area": float(shares.mean() / area.mean()),
                "low": low,
                "high": high,
                "half covered or more": float((shares >= ON_OBJECT).mean()),
            }
        )
    return rows


def ratio_interval(above: Array, below: Array) -> tuple[float, float]:
    """The 95 % bootstrap interval, over clips, of the ratio of two means ``[n]`` of the same clips."""
    draws = np.random.default_rng(0).integers(0, len(above), (_DRAWS, len(above)))
    ratios = above[draws].mean(axis=1) / np.maximum(below[draws].mean(axis=1), 1e-9)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(low), float(high)
