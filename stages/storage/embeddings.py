"""Embeddings of videos: one Parquet file, one row per window, with what they were made by in its metadata."""

import contextlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.storage.publish import publishing
from stages.storage.tables import Row, write_groups

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("start_frame", pa.int32()),
        ("num_frames", pa.int32()),
        ("num_tokens", pa.int32()),
        ("embedding", pa.list_(pa.float32())),
    ]
)
"""``embedding`` holds ``num_tokens`` vectors one after the other, in token order."""
METADATA = "lvmae"
"""The key under which the file's metadata holds, as JSON, the encoder, the windows and the pooling."""

_ROWS_PER_GROUP = 1024


class _NothingToWrite(Exception):
    """There was no row."""


def write_embeddings(path: Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> int:
    """Publish rows as they come, a group of them in memory at a time; no file, and an earlier one kept, if there is none.

    Args:
        path: the file, which appears whole or not at all.
        rows: with the columns of the schema.
        facts: what they were made by.

    Returns:
        the number of rows.
    """
    waiting, count = iter(rows), 0

    def groups() -> Iterator[list[Row]]:
        nonlocal count
        while group := list(itertools.islice(waiting, _ROWS_PER_GROUP)):
            count += len(group)
            yield group

    with contextlib.suppress(_NothingToWrite), publishing(path) as file:
        write_groups(file, groups(), SCHEMA.with_metadata({METADATA: json.dumps(facts, sort_keys=True)}))
        if not count:
            raise _NothingToWrite
    return count
