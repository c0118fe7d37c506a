"""``predictions.parquet``: what was said of every tested clip by every reader, so that runs can be compared clip by clip."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.evals import Scores
from stages.metrics import Answers, durations_s, frames_seen
from stages.protocol import Question
from stages.reading import Key
from stages.storage.publish import publishing

NAME = "predictions.parquet"
SCHEMA = pa.schema(
    [
        ("label", pa.string()),
        ("probe", pa.string()),
        ("features", pa.string()),
        ("split", pa.int32()),
        ("clip_id", pa.string()),
        ("key", pa.string()),
        ("group", pa.string()),
        ("duration_s", pa.float32()),
        ("num_frames", pa.int32()),
        ("true", pa.list_(pa.string())),
        ("predicted", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
    ]
)
"""``scores`` are probabilities in the order of the label's ``class_names`` in ``metrics.json``; null for a joint label, whose
scores are products of those of its parts. ``features`` names one seed, such as ``untrained-0``."""

_NAMES = ("label", "probe", "features")


def write_predictions(path: Path, questions: Sequence[Question], answered: Mapping[Key, Answers], *, view_frames: int) -> None:
    """Publish one row per label, reader, features and tested clip, one row group per label, reader and features.

    Args:
        path: the file.
        questions: the labels, in the order wanted.
        answered: the answers, within a label in the order wanted.
        view_frames: frames of a view.
    """
    with (
        publishing(path) as file,
        pq.ParquetWriter(file, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        for table in _tables(questions, answered, view_frames):
            writer.write_table(table, row_group_size=len(table))


def _tables(questions: Sequence[Question], answered: Mapping[Key, Answers], view_frames: int) -> Iterator[pa.Table]:
    for asked in questions:
        known = _of_clips(asked, view_frames)
        for (label, reader, run), found in answered.items():
            if label == asked.label:
                named = {name: [value] * len(asked.tested) for name, value in zip(_NAMES, (label, reader, run), strict=True)}
                said = {"predicted": list(map(list, found.predicted)), "scores": _lists(found.scores, len(asked.tested))}
                yield pa.table({**named, **known, **said}, schema=SCHEMA)


def _of_clips(asked: Question, view_frames: int) -> dict[str, object]:
    """What is known of the tested clips without asking anybody."""
    clips = [asked.clips[place] for place in asked.tested]
    return {
        "split": np.repeat(np.arange(len(asked.splits)), [len(split.test) for split in asked.splits]).astype(np.int32),
        "clip_id": [clip.clip_id for clip in clips],
        "key": [clip.key for clip in clips],
        "group": [asked.group_names[place] for place in asked.tested],
        "duration_s": durations_s(asked).astype(np.float32),
        "num_frames": frames_seen(asked, view_frames).astype(np.int32),
        "true": [[asked.class_names[one] for one in np.flatnonzero(row)] for row in asked.truth[asked.tested]],
    }


def _lists(scores: Scores | None, count: int) -> pa.Array:
    if scores is None:
        return pa.nulls(count, SCHEMA.field("scores").type)
    offsets = np.arange(count + 1, dtype=np.int32) * scores.shape[1]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(scores.reshape(-1)))
