"""Small real video files for the tests of the stages, made with the same ffmpeg that reads them."""

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.video_command import ffmpeg_binary


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
