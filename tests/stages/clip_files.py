"""Tiny clips as the shard stage stores them, and snapshots of them, made without it."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import Config
from stages.storage.artifact import Artifact
from stages.storage.clips import Dataset, Member
from stages.storage.workspace import Workspace
from tests.stages.videos import run_ffmpeg

_TAGS = ("-colorspace", "smpte170m", "-color_range", "tv")
H264 = (
    "-c:v",
    "libx264",
    "-preset",
    "ultrafast",
    "-bf",
    "3",
    "-b_strategy",
    "0",
    "-crf",
    "10",
    "-g",
    "16",
    "-keyint_min",
    "16",
)
H264 = (*H264, "-x264-params", "cabac=0:scenecut=0:open_gop=0", "-pix_fmt", "yuv420p", *_TAGS)
AV1 = ("-c:v", "libsvtav1", "-preset", "10", "-crf", "15", "-g", "16", "-pix_fmt", "yuv420p", *_TAGS)
JPEG_FULL = ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj420p")
JPEG_LIMITED = ("-c:v", "mjpeg", "-q:v", "2", "-strict", "unofficial", "-pix_fmt", "yuv420p", *_TAGS)
H264_444 = ("-c:v", "libx264", "-crf", "10", "-g", "16", "-bf", "0", "-pix_fmt", "yuv444p", *_TAGS)

COLOURS = ((200, 40, 40), (40, 160, 60), (50, 60, 200), (128, 128, 128), (230, 225, 200), (20, 20, 20))


def patches(num_frames: int, *, height_px: int = 48, width_px: int = 72) -> npt.NDArray[np.uint8]:
    """Frames [T H W 3] of six patches of colour over a stripe whose brightness tells the frame's number, at most 58."""
    frames = np.empty((num_frames, height_px, width_px, 3), np.uint8)
    step = width_px // len(COLOURS)
    for number, colour in enumerate(COLOURS):
        frames[:, :, number * step : (number + 1) * step] = colour
    frames[:, height_px // 2 :] = (20 + 4 * np.arange(num_frames, dtype=np.uint8))[:, None, None, None]
    return frames


def told(frames: npt.NDArray[np.uint8]) -> list[int]:
    """The number that each frame tells."""
    return [round((float(frame[-8:].mean()) - 20) / 4) for frame in frames]


def encoded(folder: Path, frames: npt.NDArray[np.uint8], codec: Sequence[str] = H264) -> bytes:
    """An mp4 file of RGB frames [T H W 3]."""
    _, height, width, _ = frames.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", "25", "-i", "pipe:0")
    scaled = ("-vf", f"scale=out_color_matrix=bt601:out_range={'pc' if 'yuvj420p' in codec else 'tv'}")
    path = folder / "clip.mp4"
    run_ffmpeg(*raw, *scaled, *codec, "-movflags", "+faststart", path, data=frames.tobytes())
    return path.read_bytes()


def npy(values: npt.NDArray[Any]) -> bytes:
    """The bytes of an npy file."""
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def member(video: bytes, *, motion: bytes | None = None, **changes: object) -> Member:
    """A clip that waits to be written."""
    name = str(changes.get("key", hashlib.sha256(video).hexdigest()))
    row = {
        "source_id": hashlib.sha256(name.encode()).hexdigest(), "key": name, "native_id": "", "start_s": 0.0, "start_frame": 0,
        "num_frames": 40, "fps": 25.0, "width_px": 72, "height_px": 48, "labels": {}, "boxes": (),
    }  # fmt: skip
    return Member(hashlib.sha256(name.encode()).hexdigest()[:32], video, motion, {**row, **changes})


def dataset(root: Path, shards: Sequence[Sequence[Member]]) -> Dataset:
    """A dataset of some units."""
    made = Dataset(Workspace(root), "toy-1")
    for ordinal, members in enumerate(shards):
        made.write_unit(ordinal, [([one], source_row(one), None) for one in members])
    return made


def snapshot(root: Path, shards: Sequence[Sequence[Member]]) -> Artifact:
    """A snapshot of a dataset of some units."""
    return dataset(root, shards).snapshot(config=Config(), fingerprint="f" * 16, counts={})


def source_row(one: Member) -> Mapping[str, object]:
    """The row of the source that made one clip."""
    copied = {name: one.row[name] for name in ("source_id", "key", "num_frames")}
    return {**copied, "size_bytes": 1, "status": "committed", "num_clips": 1}
