"""The stage ``shard`` as the laboratory runs it, with only the cutting replaced: bytes are copied, not decoded."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.dataset  # noqa: F401 - what reading a table imports, once, before the forks

from stages import places, shard, units, video
from stages.errors import MediaError, Reason
from stages.readers import folder  # noqa: F401 - once, before the forks
from stages.storage import artifact
from stages.storage.clips import Dataset
from stages.storage.index import Index, read_clip, read_motion
from stages.storage.workspace import Workspace
from tests.faults.work import spoil

BAD = b"bad"
"""How a source begins that no clip can be made of."""
NUM_FRAMES = 8
RECORDS = {"recipe.yaml": b"stage: shard\n"}
VERSIONS = artifact.versions()
"""Looked up once: that costs more than publishing a file."""


def run(root: str, sources: str, flaw: str = "", **changes: Any) -> dict[str, Any]:
    """One run of the stage in this process, with a step of publishing left out if need be."""
    spoil(flaw)
    with mock.patch.object(units.video, "cut", cut), mock.patch.object(artifact, "versions", return_value=VERSIONS):
        outcome = shard.run(config(sources, **changes), {}, Workspace(Path(root), records=RECORDS))
    return {"counts": dict(outcome.counts), "digest": outcome.artifact.digest, "units_done": outcome.units_done}


def config(sources: str, **changes: Any) -> shard.Config:
    """A recipe of two sources per unit."""
    fields: dict[str, Any] = {
        "dataset": "faulty",
        "source": {"name": "folder", "path": sources},
        "clip": {"num_frames": NUM_FRAMES, "min_frames": 4, "size_px": 32},
        "limits": {"max_frames": 1000},
        "sources_per_shard": 2,
        "num_workers": 1,
        "settle_s": 0,
        "abandoned_s": 0,
    }
    return shard.Config.model_validate({**fields, **changes})


def cut(path: Path, *, spans: Sequence[tuple[float, float]] | None, scratch: Path, **_: Any) -> video.Cut:
    """Two clips that say where they come from."""
    places.check(places.place_of(path))
    data = path.read_bytes()
    if data.startswith(BAD):
        raise MediaError(Reason.CORRUPT, "begins with the word for it")
    segments = []
    for number in range(2):
        clip = scratch / f"{number}.mp4"
        clip.write_bytes(hashlib.sha256(data).digest() * (100 + 50 * number))
        motion = _npy(number) if number else None
        start = number * NUM_FRAMES
        segments.append(
            video.Segment(span=0, start_frame=start, start_s=start / 25, num_frames=NUM_FRAMES, video=clip, motion=motion)
        )
    probe = video.Probe(
        container="mp4", codec="h264", pixel_format="yuv420p", width_px=32, height_px=32, rotation_deg=0, fps=25.0,
        duration_s=0.64, num_frames=16, variable_rate=False, interlaced=False, transfer="", decode_errors=0,
    )  # fmt: skip
    return video.Cut(tuple(segments), num_frames=16, short_spans=0, fps=25.0, width_px=32, height_px=32, probe=probe)


def _npy(number: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.full((2, 3), number, np.int8))
    return file.getvalue()


def read(root: str) -> list[tuple[str, str]]:
    """Everything that a training would read: clip ids with the digests of their bytes, of every snapshot's newest version."""
    found = []
    workspace = Workspace(Path(root))
    for place in sorted(workspace.stage_folder("shard").iterdir()):
        snapshot = Dataset(workspace, place.name).newest_snapshot()
        assert snapshot
        for clip in Index(snapshot):
            motion = read_motion(snapshot, clip)
            data = read_clip(snapshot, clip) + (motion.tobytes() if motion is not None else b"")
            found.append((clip.clip_id, hashlib.sha256(data).hexdigest()))
    return found
