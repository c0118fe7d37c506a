"""The ffmpeg commands of this project, and the parameters that shape them. Nothing here runs anything."""

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import ffmpeg
import imageio_ffmpeg
from pydantic import Field, model_validator

from models import config
from stages.errors import ConfigError
from stages.video_windows import Window, end_us, seek_us

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,h264,hevc,ivf,gif"
"""Containers that are read: no playlist, which could name other files, and no still image."""

FRAME_TABLE = "frames.txt"
"""Where the cutting pass leaves the time of every frame, in microseconds."""

FALLBACK_FPS = 25
"""The rate of a source that declares none, as ffmpeg itself assumes for raw H.264."""

MAX_SEGMENTS = 15_000
"""Clips of one source that a command line has room for."""

_STAND_IN = "file:source"
_GLOBAL = ("-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+verbose", "-filter_complex_threads", "1")
_RUN_OUT_S = 0.5
_MAX_FPS = 1000
"""A rate that no source has; one that has it anyway is refused, because its segments come out too long."""
_REFERENCE_WHITE_NITS = 203
"""The brightness of a white page in HDR. Source: ITU-R BT.2408."""


class H264(config.Config):
    """H.264 that decodes fast: no CABAC, closed groups, no scene cuts."""

    name: Literal["h264"] = "h264"
    crf: int = Field(default=20, ge=0, le=51)
    """Quality, lower is better. 20 gave 39 dB at 2.9 kB per frame."""
    preset: str = "medium"
    """The encoder's effort, one of x264's presets."""
    gop_frames: int = Field(default=16, gt=0)
    """Frames from one keyframe to the next."""


class Av1(config.Config):
    """AV1: about half the bytes of H.264, three times its cost to encode and twice its cost to decode."""

    name: Literal["av1"]
    crf: int = Field(default=30, ge=0, le=63)
    """Quality, lower is better. 30 gave 39 dB."""
    preset: int = Field(default=8, ge=0, le=13)
    """The encoder's effort, one of SVT-AV1's presets: lower tries harder."""
    gop_frames: int = Field(default=32, gt=0)
    """Frames from one keyframe to the next."""


class Jpeg(config.Config):
    """JPEG frames in an mp4: many times the bytes, and every frame decodes alone, which suits very sparse sampling."""

    name: Literal["jpeg"]
    quantizer: int = Field(default=3, ge=2, le=31)
    """Quality, lower is better: ffmpeg's ``q:v``."""


Encoding = Annotated[H264 | Av1 | Jpeg, Field(discriminator="name")]


class ClipConfig(config.Config):
    """What a stored clip is."""

    num_frames: int = Field(default=128, gt=0)
    """Frames of a clip. Source: arXiv 2411.13683, its longest setting."""
    slack_frames: int = Field(default=0, ge=0)
    """Frames that a clip holds beyond ``num_frames``, so that training may choose where in it to begin."""
    min_frames: int = Field(default=16, gt=0)
    """Frames below which a source, a span or the tail of one makes no clip: one window of the tokenizer."""
    size_px: int = Field(default=256, gt=0, multiple_of=2)
    """Short side of a clip in pixels; the long side follows from the source, rounded to even."""
    fps: float | None = Field(default=None, gt=0)
    """Frames per second to resample to; null keeps the source's own frames."""
    frame_stride: int = Field(default=1, gt=0)
    """Of the frames (after resampling) every how many-th is kept."""
    margin_s: float = Field(default=0.0, ge=0)
    """Seconds by which an annotated span is widened before and after."""
    encoding: Encoding = H264()
    """How frames become bytes: ``h264``, ``av1`` or ``jpeg``, each with its own parameters."""
    motion_vectors: bool = True
    """Whether the encoder's motion vectors are kept beside each clip; with ``h264`` alone. They make clips 16 % larger. Reading
    them takes 5 to 11 % of the time of a cut, and the simpler references that they need save about as much."""
    policy: Literal["strict", "tolerant"] = "strict"
    """``strict`` refuses a source with any fault; ``tolerant`` reads it a second time and accepts a few bad frames."""
    max_error_share: float = Field(default=0.01, ge=0, le=1)
    """Share of a source's frames that may fail to decode or come out damaged under ``tolerant``."""

    @model_validator(mode="after")
    def _short_clips_are_not_longer_than_clips(self) -> "ClipConfig":
        if self.min_frames > self.num_frames:
            raise ValueError(f"min_frames={self.min_frames} is more than num_frames={self.num_frames}")
        return self

    @model_validator(mode="after")
    def _only_h264_has_motion_vectors(self) -> "ClipConfig":
        if self.motion_vectors and not isinstance(self.encoding, H264):
            raise ValueError(f"motion_vectors needs encoding.name=h264, not {self.encoding.name}; set motion_vectors: false")
        return self

    @property
    def length_frames(self) -> int:
        """Frames of a full clip, slack included."""
        return self.num_frames + self.slack_frames


class Limits(config.Config):
    """What one source may cost."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"timeout_s", "memory_bytes"})

    max_pixels: int = Field(default=8192 * 4320, gt=0)
    """Width times height of a frame."""
    min_side_px: int = Field(default=16, gt=0)
    """The shorter side of a frame in the source."""
    max_duration_s: float = Field(default=3600.0, gt=0)
    """Duration of a source, or of a single span of one."""
    max_frames: int = Field(default=216_000, gt=0)
    """Frames read in one pass: an hour at 60 per second."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Wall time, and processor time, of one pass over a source."""
    memory_bytes: int = Field(default=4 << 30, gt=0)
    """Address space of the process that reads a source. Ours: 1 GiB did for 4K, and 2 GiB for twelve spans of it at once."""


class Colours(NamedTuple):
    """How a source says that its numbers mean colours, in ffmpeg's words; ``unknown`` where it does not."""

    matrix: str = "unknown"
    primaries: str = "unknown"
    transfer: str = "unknown"

    @property
    def is_hdr(self) -> bool:
        """Whether they reach beyond what a clip can show."""
        return self.transfer in {"smpte2084", "arib-std-b67"}


class Way(NamedTuple):
    """How a source is read."""

    seek: bool = False
    """Whether a pass jumps to its first window, which takes a container with an index."""
    hdr: Colours | None = None
    """What to map to standard range from; none leaves brightness as it is."""
    tolerant: bool = False
    """Whether faults of the decoder are borne."""


def ffmpeg_binary(binary: Path | None) -> Path:
    """The ffmpeg to run, spelled absolutely: the one given, or the one that came installed with the package.

    Raises:
        ConfigError: it is not there.
        OSError: the one that came installed does not start.
    """
    found = shutil.which(binary) if binary else _installed_ffmpeg()
    if not found:
        raise ConfigError(f"ffmpeg {binary}: no such program; name another, or none for the one that comes installed")
    return Path(found).absolute()


def _installed_ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError as error:
        # The trial may have been killed; imageio-ffmpeg would remember that for as long as this process lives.
        imageio_ffmpeg._utils._get_ffmpeg_exe.cache_clear()
        raise OSError(
            "the ffmpeg that came with imageio-ffmpeg does not start; run `lvmae doctor`, or install it anew"
        ) from error


def cut_command(
    path: Path,
    *,
    windows: Sequence[Window],
    way: Way,
    clip: ClipConfig,
    limits: Limits,
    binary: Path,
) -> list[str]:
    """One pass from a source to the segments of every window, and the table of frame times.

    The k-th window's segments are called as :func:`segment_names` says. The table counts from ``seek_us(windows)`` if the
    pass jumps there. Frames keep their number (or are resampled to ``fps``) and are spaced evenly, so that a hole or a jump
    in the source's clock cannot multiply them. Only frames that are flagged as interlaced are deinterlaced.
    """
    origin_us = seek_us(windows) if way.seek else 0
    video = (
        _source(limits, stretch=_stretch(windows, origin_us=origin_us, limits=limits), tolerant=way.tolerant)["V:0"]
        .filter("bwdif", mode="send_frame", deint="interlaced")  # V, not v: cover art is no video
        .filter("settb", "1/1000000")
        .filter("metadata", mode="add", key="frame", value="seen")  # "print" passes over frames without metadata
        .filter("metadata", mode="print", file=FRAME_TABLE)
    )
    videos = _windows(video, windows, origin_us=origin_us)
    codec = _codec(clip.encoding, motion_vectors=clip.motion_vectors)
    outputs = [
        _pictures(videos[k], clip=clip, way=way).output(segment_names(k) % "%06d", **codec, **_cuts(window, clip, limits))
        for k, window in enumerate(windows)
    ]
    # What is left over is thrown away; if it were not read, how much of it is decoded would depend on which thread is faster.
    outputs += [rest.output("-", f="null", fps_mode="passthrough") for rest in videos[len(windows) :]]
    argv = _command(ffmpeg.merge_outputs(*outputs), binary, path=path)
    return argv if way.tolerant else [argv[0], "-xerror", *argv[1:]]


def segment_names(number: int) -> str:
    """What the segments of a pass's k-th window are called, with ``%s`` for which of them, from zero in six digits."""
    return f"S{number:04d}-%s.mp4"


def copy_command(path: Path, *, whole: bool, limits: Limits, binary: Path) -> list[str]:
    """A pass that only takes a source's container apart: how far its pictures and sounds go, and what is wrong with it.

    A source of which all is wanted is not followed beyond the duration it may have.
    """
    source = _source(limits, stretch={"t": limits.max_duration_s} if whole else {})
    return _command(ffmpeg.output(source["V?"], source["a?"], "-", c="copy", f="null"), binary, path=path)


def encode_command(*, width_px: int, height_px: int, fps: float, crf: int, preset: str, name: str, binary: Path) -> list[str]:
    """Raw RGB frames on standard input to an mp4 file called ``name``."""
    source = ffmpeg.input("pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{width_px}x{height_px}", r=fps, threads=1)
    codec = _codec(H264(crf=crf, preset=preset, gop_frames=250), motion_vectors=False)
    return _command(source.output(name, **codec, pix_fmt="yuv420p", movflags="+faststart"), binary)


def _source(limits: Limits, *, stretch: Mapping[str, float], tolerant: bool = False) -> Any:
    """A source as ffmpeg's input: it may open this one file, and unless borne any fault of the decoder is an error."""
    guards = {
        "protocol_whitelist": "file",
        "format_whitelist": FORMATS,
        "probesize": "20M",
        "analyzeduration": "20M",
        "max_streams": 32,
        "max_pixels": limits.max_pixels,
        "threads": 1,
    }
    if not tolerant:
        guards["err_detect"] = "+crccheck+bitstream+buffer+explode"
    return ffmpeg.input(_STAND_IN, **guards, **stretch)


def _stretch(windows: Sequence[Window], *, origin_us: int, limits: Limits) -> Mapping[str, float]:
    """Which part of a source ffmpeg reads: a little more than is asked for, for frames that are stored out of order."""
    end = end_us(windows)
    length_s = limits.max_duration_s if end is None else min(limits.max_duration_s, (end - origin_us) / 1e6 + _RUN_OUT_S)
    return {"t": length_s, **({"ss": origin_us / 1e6} if origin_us else {})}


def _windows(video: Any, windows: Sequence[Window], *, origin_us: int) -> list[Any]:
    """The frames of every window, and all frames once more if windows are parts of a source."""
    bounds = [
        {"start_pts": window.start_us - origin_us, "end_pts": window.end_us - origin_us}
        for window in windows
        if window.end_us is not None
    ]
    if not bounds:
        return [video]
    copies = video.filter_multi_output("split", len(bounds) + 1)
    return [*(copies[k].filter("trim", **bound) for k, bound in enumerate(bounds)), copies[len(bounds)]]


def _pictures(video: Any, *, clip: ClipConfig, way: Way) -> Any:
    """Frames as clips hold them: chosen, upright, square in their pixels, scaled, in one colour space, evenly spaced."""
    if clip.fps:
        video = video.filter("fps", fps=clip.fps, round="near")
    if clip.frame_stride > 1:
        video = video.filter("framestep", clip.frame_stride)
    scale = {
        "w": f"if(gte(iw*sar,ih),2*round({clip.size_px}*iw*sar/ih/2),{clip.size_px})",
        "h": f"if(gte(iw*sar,ih),{clip.size_px},2*round({clip.size_px}*ih/(iw*sar)/2))",
        "flags": "bicubic+accurate_rnd+bitexact",
    }
    if way.hdr:
        video = _mapped_to_standard_range(video.filter("scale", **scale), way.hdr)
    else:
        video = video.filter("scale", **scale, out_color_matrix="bt601", out_range="tv")
    return (
        video.filter("setsar", "1")
        .filter("format", "yuv420p")
        .filter("setparams", range="tv", colorspace="smpte170m", color_primaries="unknown", color_trc="unknown")
        .filter("setpts", f"N/(if(gt(FR,0),FR,{FALLBACK_FPS})*TB)")
    )


def _mapped_to_standard_range(video: Any, colours: Colours) -> Any:
    """HDR as BT.709 light in a BT.601 matrix: bright parts are compressed, the rest keeps its brightness."""
    assumed = {
        **({"colorspace": "bt2020nc"} if colours.matrix == "unknown" else {}),
        **({"color_primaries": "bt2020"} if colours.primaries == "unknown" else {}),
    }
    return (
        video.filter("format", "yuv444p10le|gbrp10le")
        .filter("setparams", color_trc=colours.transfer, **assumed)
        .filter("zscale", transfer="linear", npl=_REFERENCE_WHITE_NITS)
        .filter("format", "gbrpf32le")
        .filter("zscale", primaries="bt709")
        .filter("tonemap", "mobius", desat=0)
        .filter("zscale", transfer="bt709", matrix="170m", range="limited")
    )


def _cuts(window: Window, clip: ClipConfig, limits: Limits) -> Mapping[str, Any]:
    """Output options that cut a stream of frames into segments of exactly ``length_frames``."""
    length = clip.length_frames
    most = limits.max_frames
    if window.end_us is not None:
        most = min(most, math.ceil((window.end_us - window.start_us) / 1e6 * (clip.fps or _MAX_FPS)))
    cuts = range(length, max(most, length) + 1, length)
    return {
        "fps_mode": "passthrough",
        "frames:v": limits.max_frames + 1,
        "force_key_frames": f"expr:eq(mod(n,{length}),0)",
        "f": "segment",
        "segment_frames": ",".join(str(cut) for cut in cuts),
        "reset_timestamps": 1,
        "segment_format": "mp4",
        "segment_format_options": "movflags=+faststart",
    }


def _codec(encoding: H264 | Av1 | Jpeg, *, motion_vectors: bool) -> Mapping[str, Any]:
    """Output options of an encoder that depends on nothing but the frames."""
    exact = {"map_metadata": -1, "fflags": "+bitexact", "flags:v": "+bitexact"}
    if isinstance(encoding, Jpeg):  # unofficial: JPEG of limited range, which ffmpeg marks as such
        return {"c:v": "mjpeg", "q:v": encoding.quantizer, "strict": "unofficial", "threads:v": 1, **exact}
    rate = {"preset": encoding.preset, "crf": encoding.crf, "g": encoding.gop_frames}
    if isinstance(encoding, Av1):
        return {"c:v": "libsvtav1", **rate, "svtav1-params": "lp=1", **exact}
    parameters = "cabac=0:scenecut=0:open_gop=0:threads=1"
    if motion_vectors:  # one reference on each side: otherwise a vector does not tell how many frames it spans
        parameters += ":ref=1:b-pyramid=none"
    return {
        "c:v": "libx264",
        **rate,
        "keyint_min": encoding.gop_frames,
        "x264-params": parameters,
        "threads:v": 1,
        **exact,
    }


def _command(output: Any, binary: Path, *, path: Path | None = None) -> list[str]:
    """The arguments, with ``path`` in the place of the source: ffmpeg-python only takes names that are UTF-8."""
    argv: list[str] = ffmpeg.compile(output, cmd=str(binary))
    named = (f"file:{path.absolute()}" if path and part == _STAND_IN else part for part in argv[1:])
    return [argv[0], *_GLOBAL, *named]
