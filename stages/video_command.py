"""The ffmpeg commands of this project, and the parameters that shape them. Nothing here runs anything."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import ffmpeg
import imageio_ffmpeg
from pydantic import Field, model_validator

from models import config
from stages.errors import ConfigError

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,h264,hevc,gif"
"""Containers that are read: no playlist, which could name other files, and no still image."""

FRAME_TABLE = "frames.txt"
"""Where the cutting pass leaves the time of every frame, in microseconds."""

FALLBACK_FPS = 25
"""The rate of a source that declares none, as ffmpeg itself assumes for raw H.264."""

MAX_SEGMENTS = 15_000
"""Clips of one source that a command line has room for."""

_GLOBAL = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+verbose", "-filter_complex_threads", "1")


class ClipConfig(config.Config):
    """What a stored clip is."""

    num_frames: int = Field(default=128, gt=0)
    """Frames of a clip. Source: arXiv 2411.13683, its longest setting."""
    min_frames: int = Field(default=16, gt=0)
    """Frames below which a source, or the tail of one, makes no clip: one window of the tokenizer."""
    size_px: int = Field(default=256, gt=0, multiple_of=2)
    """Short side of a clip in pixels; the long side follows from the source, rounded to even."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second to resample to; null keeps the source's own frames."""
    crf: int = Field(default=20, ge=0, le=51)
    """Quality of H.264, lower is better. 20 gave 39 dB at 2.9 kB per frame."""
    gop_frames: int = Field(default=16, gt=0)
    """Frames from one keyframe to the next."""
    preset: str = "medium"
    """The encoder's effort, one of x264's presets."""

    @model_validator(mode="after")
    def _short_clips_are_not_longer_than_clips(self) -> "ClipConfig":
        if self.min_frames > self.num_frames:
            raise ValueError(f"min_frames={self.min_frames} is more than num_frames={self.num_frames}")
        return self


class Limits(config.Config):
    """What one source may cost."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"timeout_s", "memory_bytes"})

    max_pixels: int = Field(default=8192 * 4320, gt=0)
    """Width times height of a frame."""
    min_side_px: int = Field(default=16, gt=0)
    """The shorter side of a frame in the source."""
    max_duration_s: float = Field(default=3600.0, gt=0)
    """Duration of a source."""
    max_frames: int = Field(default=216_000, gt=0)
    """Frames of a source: an hour at 60 per second."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Wall time, and processor time, of one pass over a source."""
    memory_bytes: int = Field(default=4 << 30, gt=0)
    """Address space of the process that reads a source."""


def ffmpeg_binary(binary: Path | None) -> Path:
    """The ffmpeg to run, spelled absolutely: the one given, or the one that came installed with the package.

    Raises:
        ConfigError: it is not there.
    """
    found = shutil.which(binary) if binary else imageio_ffmpeg.get_ffmpeg_exe()
    if not found:
        raise ConfigError(f"ffmpeg {binary}: no such program; name another, or none for the one that comes installed")
    return Path(found).absolute()


def cut_command(path: Path, *, clip: ClipConfig, limits: Limits, binary: Path) -> list[str]:
    """One pass from a source to segments ``000000.mp4`` ... of ``num_frames`` each, and the table of frame times.

    Frames keep their number (or are resampled to ``fps``) and are spaced evenly, so that a hole or a jump in the source's
    clock cannot multiply them. Only frames that are flagged as interlaced are deinterlaced.
    """
    video = (
        _source(path, limits)["V:0"]  # not v: cover art is no video
        .filter("bwdif", mode="send_frame", deint="interlaced")
        .filter("settb", "1/1000000")
        .filter("metadata", mode="add", key="frame", value="seen")  # "print" passes over frames without metadata
        .filter("metadata", mode="print", file=FRAME_TABLE)
    )
    if clip.fps:
        video = video.filter("fps", fps=clip.fps, round="near")
    width = f"if(gte(iw*sar,ih),2*round({clip.size_px}*iw*sar/ih/2),{clip.size_px})"
    height = f"if(gte(iw*sar,ih),{clip.size_px},2*round({clip.size_px}*ih/(iw*sar)/2))"
    video = (
        video.filter("scale", w=width, h=height, flags="bicubic+accurate_rnd+bitexact", out_range="tv")
        .filter("setsar", "1")
        .filter("format", "yuv420p")
        .filter("setpts", f"N/(if(gt(FR,0),FR,{FALLBACK_FPS})*TB)")
    )
    cuts = range(clip.num_frames, max(limits.max_frames, clip.num_frames) + 1, clip.num_frames)
    options = {
        "fps_mode": "passthrough",
        "frames:v": limits.max_frames + 1,
        "force_key_frames": f"expr:eq(mod(n,{clip.num_frames}),0)",
        "f": "segment",
        "segment_frames": ",".join(str(cut) for cut in cuts),
        "reset_timestamps": 1,
        "segment_format": "mp4",
        "segment_format_options": "movflags=+faststart",
    }
    codec = _codec(crf=clip.crf, preset=clip.preset, gop_frames=clip.gop_frames)
    argv = _command(video.output("%06d.mp4", **codec, **options), binary)
    return [argv[0], "-xerror", *argv[1:]]


def copy_command(path: Path, *, limits: Limits, binary: Path) -> list[str]:
    """A pass that only takes a source's container apart: how far its pictures and sounds go, and what is wrong with it."""
    source = _source(path, limits)
    return _command(ffmpeg.output(source["V?"], source["a?"], "-", c="copy", f="null"), binary)


def encode_command(*, width_px: int, height_px: int, fps: float, crf: int, preset: str, name: str, binary: Path) -> list[str]:
    """Raw RGB frames on standard input to an mp4 file called ``name``."""
    source = ffmpeg.input("pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{width_px}x{height_px}", r=fps, threads=1)
    codec = _codec(crf=crf, preset=preset, gop_frames=250)
    return _command(source.output(name, **codec, pix_fmt="yuv420p", movflags="+faststart"), binary)


def _source(path: Path, limits: Limits) -> Any:
    """A source as ffmpeg's input: it may open this one file, and any fault of the decoder is an error."""
    guards = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "err_detect": "+crccheck+bitstream+buffer+explode",
        "probesize": "20M",
        "analyzeduration": "20M",
        "max_streams": 32,
        "max_pixels": limits.max_pixels,
        "threads": 1,
        "t": limits.max_duration_s,
    }
    return ffmpeg.input(f"file:{path.absolute()}", **guards)


def _codec(*, crf: int, preset: str, gop_frames: int) -> Mapping[str, Any]:
    """H.264 that decodes fast (no CABAC, closed groups, no scene cuts) and depends on nothing but the frames."""
    return {
        "c:v": "libx264",
        "preset": preset,
        "crf": crf,
        "g": gop_frames,
        "keyint_min": gop_frames,
        "x264-params": "cabac=0:scenecut=0:open_gop=0:threads=1",
        "threads:v": 1,
        "map_metadata": -1,
        "fflags": "+bitexact",
        "flags:v": "+bitexact",
    }


def _command(output: Any, binary: Path) -> list[str]:
    argv: list[str] = ffmpeg.compile(output, cmd=str(binary))
    return [argv[0], *_GLOBAL, *argv[1:]]
