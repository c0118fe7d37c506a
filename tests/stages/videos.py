"""Small real video files for the tests of the stages, made with the same ffmpeg that reads them."""

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stages import video
from stages.errors import MediaError
from stages.video_command import H264, ClipConfig, Limits, ffmpeg_binary
from stages.video_decode import decode

CLIP = ClipConfig(num_frames=16, min_frames=4, size_px=32, encoding=H264(preset="ultrafast", crf=10), motion_vectors=False)


def cut(
    path: Path,
    clip: ClipConfig = CLIP,
    *,
    spans: Sequence[tuple[float, float]] | None = None,
    binary: Path | None = None,
    **limits: Any,
) -> video.Cut:
    """The clips of ``path``, in a scratch folder of their own beside it."""
    return video.cut(path, spans=spans, clip=clip, limits=Limits(**limits), scratch=fresh(path.parent), binary=binary)


def refusal(path: Path, clip: ClipConfig = CLIP, **arguments: Any) -> MediaError:
    """Why ``path`` makes no clip, which it must not."""
    with pytest.raises(MediaError) as raised:
        cut(path, clip, **arguments)
    assert str(path.parent) not in raised.value.detail, "a stored detail must not depend on where the source lies"
    return raised.value


def changed(clip: ClipConfig = CLIP, **values: Any) -> ClipConfig:
    """``clip`` with other values, validated."""
    return ClipConfig.model_validate({**clip.model_dump(), **values})


def shown(segment: video.Segment) -> npt.NDArray[np.uint8]:
    """The frames [T H W 3] of a segment."""
    return decode(segment.video.read_bytes())


def fresh(parent: Path) -> Path:
    """A new empty folder."""
    folder = next(path for number in itertools.count() if not (path := parent / f"scratch-{number}").exists())
    folder.mkdir()
    return folder


def script(path: Path, text: str) -> Path:
    """A program that can be run in the place of ffmpeg; gives ``path``."""
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_ffmpeg(*arguments: str | Path, data: bytes | None = None) -> None:
    """Run ffmpeg to its end; it must succeed."""
    argv = [str(ffmpeg_binary(None)), "-nostdin", "-v", "error", "-y", "-threads", "1", *map(str, arguments)]
    if data is not None:
        argv.remove("-nostdin")
    subprocess.run(argv, check=True, input=data, capture_output=True, timeout=60)


def ramp(num_frames: int, *, height_px: int = 48, width_px: int = 64) -> npt.NDArray[np.uint8]:
    """Frames [T H W 3] that each tell their number, at most 58: grey, brighter by four from one to the next."""
    levels = np.arange(num_frames, dtype=np.uint8) * 4 + 20
    return np.broadcast_to(levels[:, None, None, None], (num_frames, height_px, width_px, 3)).copy()


def numbers(frames: npt.NDArray[np.uint8]) -> list[int]:
    """The number that each frame of a ramp tells."""
    return [round((float(frame.mean()) - 20) / 4) for frame in frames]


def write_video(path: Path, frames: npt.NDArray[np.uint8], *, fps: float = 25.0, options: tuple[str, ...] = ()) -> Path:
    """``frames`` [T H W 3] as H.264 in the container that the name of ``path`` asks for; gives ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, height, width, _ = frames.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0")
    codec = ("-c:v", "libx264", "-preset", "ultrafast", "-crf", "10", "-pix_fmt", "yuv420p")
    run_ffmpeg(*raw, *codec, *options, path, data=frames.tobytes())
    return path


def write_ramp(path: Path, num_frames: int, *, fps: float = 25.0, options: tuple[str, ...] = ()) -> Path:
    """A ramp of ``num_frames`` as a video file; gives ``path``."""
    return write_video(path, ramp(num_frames), fps=fps, options=options)
