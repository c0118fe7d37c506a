"""Small questions about clips that lie nowhere."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.protocol import Asking, Question, Split
from stages.storage.index import Clip


def clip_of(number: int, num_frames: int = 100, fps: float = 25.0) -> Clip:
    """A clip with a name of its own."""
    return Clip(
        clip_id=f"{number:032x}", source_id=f"{number:064x}", key=f"{number}.mp4", num_frames=num_frames, fps=fps,
        width_px=64, height_px=64, ordinal=0, slot=number, offset_bytes=0, size_bytes=0, crc32c=0,
    )  # fmt: skip


def asked(
    classes: Sequence[int] | npt.NDArray[np.int64],
    splits: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    label: str = "class",
    rows: Sequence[int] | None = None,
    groups: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    clips: Sequence[Clip] | None = None,
) -> Question:
    """A question with one class per clip, named ``c0``, ``c1``, ...; every clip is a group of its own if none are given."""
    total, known = len(classes), names or [f"c{number}" for number in range(max(classes) + 1)]
    return Question(
        asking=Asking(label),
        clips=tuple(clips or map(clip_of, range(total))),
        rows=np.array(range(total) if rows is None else rows),
        class_names=tuple(known),
        truth=np.eye(len(known), dtype=bool)[np.array(classes)],
        group_names=tuple(map(str, range(total) if groups is None else groups)),
        splits=tuple(Split(np.array(train), np.array(test)) for train, test in splits),
    )


def several(truth: npt.NDArray[np.bool_], splits: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Question:
    """A question with several classes per clip, or none."""
    total, count = truth.shape
    return Question(
        asking=Asking("verbs", is_multi_label=True),
        clips=tuple(map(clip_of, range(total))),
        rows=np.arange(total),
        class_names=tuple(f"c{number}" for number in range(count)),
        truth=truth,
        group_names=tuple(map(str, range(total))),
        splits=tuple(Split(np.array(train), np.array(test)) for train, test in splits),
    )
