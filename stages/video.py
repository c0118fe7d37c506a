"""Video files to clips and back: one ffmpeg pass per source, and PyAV for the clips that come of it.

A source is decoded, made progressive, square in its pixels and upright, scaled, and cut into H.264 segments, all in one
child process under limits. Clips are addressed by frame order, never by timestamps.
"""

import contextlib
import io
import math
import os
import resource
import shutil
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import av
import av.error
import av.video.reformatter
import ffmpeg
import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from models import config
from stages import video_log
from stages.errors import ArtifactDamaged, ConfigError, MediaError, Reason
from stages.video_process import Finished, execute

FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mpegvideo,h264,hevc,gif"  # no playlist, no still image
)
_FRAME_TABLE = "frames.txt"
_FALLBACK_FPS = 25
_TIMESCALE = 90000
_CLAIM_TOLERANCE_S = 0.5


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


class Segment(NamedTuple):
    """One clip of a source."""

    start_frame: int
    num_frames: int
    data: bytes
    """An mp4 file."""


class Cut(NamedTuple):
    """What came of a source."""

    segments: tuple[Segment, ...]
    num_frames: int
    """Frames after resampling, those of a dropped tail included."""
    fps: float
    width_px: int
    height_px: int


def cut(path: Path, *, clip: ClipConfig, limits: Limits, scratch: Path, binary: Path | None = None) -> Cut:
    """The clips of a source: segments of exactly ``num_frames`` and a shorter tail of at least ``min_frames``.

    Args:
        path: the source, absolute.
        clip: what a clip is.
        limits: what the source may cost.
        scratch: an empty folder of the caller's; the caller removes it.
        binary: the ffmpeg to use; the one that was installed with the package otherwise.

    Raises:
        MediaError: the source makes no clip, and why.
    """
    check_file(path)
    argv = _cut_argv(path, clip=clip, limits=limits, binary=ffmpeg_binary(binary))
    finished = execute(argv, folder=scratch, timeout_s=limits.timeout_s, bounds=_bounds(limits))
    facts = video_log.read_log(finished.log)
    video_log.check_exit(finished, facts)
    times = video_log.frame_times((scratch / _FRAME_TABLE).read_text())
    video_log.check_content(
        facts, num_frames=len(times), min_frames=clip.min_frames, min_side_px=limits.min_side_px
    )
    video_log.check_times(times, max_duration_s=limits.max_duration_s)
    if len(times) > limits.max_frames:
        raise MediaError(Reason.LIMIT, f"more than max_frames={limits.max_frames} frames")
    _check_claim(path, times, claimed_s=facts.claimed_s, limits=limits, scratch=scratch, binary=binary)
    return _collect(scratch, times=times, clip=clip)


def check_file(path: Path) -> None:
    """Nothing, when ``path`` is a regular file with something in it.

    Raises:
        MediaError: it is not, or it is a link: what a link points at may change under its name.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError as error:
        raise MediaError(Reason.MISSING, "there is no such file") from error
    except OSError as error:
        raise MediaError(Reason.UNREADABLE, f"cannot be looked at: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(Reason.NOT_A_FILE, f"a {stat.filemode(status.st_mode)[0]} entry, not a regular file")
    if status.st_size == 0:
        raise MediaError(Reason.EMPTY, "0 bytes")


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """The frames [T H W 3] of a clip of our own making, as RGB.

    Only for bytes whose checksum was verified: they are parsed in this process.

    Raises:
        ArtifactDamaged: they do not hold the frames they claim.
    """
    reformatter = av.video.reformatter.VideoReformatter()
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            stream = container.streams.video[0]
            frames = np.empty((stream.frames, stream.height, stream.width, 3), dtype=np.uint8)
            num_decoded = 0
            for frame in container.decode(stream):
                if num_decoded < len(frames):
                    frames[num_decoded] = reformatter.reformat(frame, format="rgb24").to_ndarray()
                num_decoded += 1
    except (av.error.FFmpegError, IndexError) as error:
        raise ArtifactDamaged(f"a stored clip cannot be decoded: {error}; run `lvmae verify`") from error
    if num_decoded != len(frames):
        raise ArtifactDamaged(f"a stored clip holds {num_decoded} frames and claims {len(frames)}; run `lvmae verify`")
    return frames


def encode(
    frames: npt.NDArray[np.uint8],
    *,
    fps: float,
    crf: int,
    preset: str,
    scratch: Path,
    binary: Path | None = None,
) -> bytes:
    """An H.264 mp4 file of RGB frames [T H W 3]; equal frames give equal bytes.

    Raises:
        ConfigError: the encoder refuses the parameters.
    """
    _, height, width, _ = frames.shape
    source = ffmpeg.input("pipe:0", f="rawvideo", pix_fmt="rgb24", s=f"{width}x{height}", r=fps, threads=1)
    output = source.output(
        "encoded.mp4", **_codec(crf=crf, preset=preset, gop_frames=250), pix_fmt="yuv420p", movflags="+faststart"
    )
    argv = _compile(output, ffmpeg_binary(binary))
    finished = execute(argv, folder=scratch, timeout_s=Limits().timeout_s, bounds={}, data=frames.tobytes())
    if finished.exit_code:
        faults = "; ".join(video_log.read_log(finished.log).faults)
        raise ConfigError(f"cannot encode {frames.shape} frames with crf={crf} preset={preset!r}: {faults}")
    return (scratch / "encoded.mp4").read_bytes()


def ffmpeg_binary(binary: Path | None) -> Path:
    """The ffmpeg to run, spelled absolutely.

    Raises:
        ConfigError: it is not there.
    """
    found = shutil.which(binary) if binary else imageio_ffmpeg.get_ffmpeg_exe()
    if not found:
        raise ConfigError(f"ffmpeg {binary}: no such program; name another or leave it out for the one that comes installed")
    return Path(found).absolute()


def _cut_argv(path: Path, *, clip: ClipConfig, limits: Limits, binary: Path) -> list[str]:
    """The one pass; DATA.md says what each guard is for."""
    video = _source(path, limits)["V:0"].filter("bwdif", mode="send_frame", deint="interlaced")
    if clip.fps:
        video = video.filter("fps", fps=clip.fps, round="near")
    width = f"if(gte(iw*sar,ih),2*round({clip.size_px}*iw*sar/ih/2),{clip.size_px})"
    height = f"if(gte(iw*sar,ih),{clip.size_px},2*round({clip.size_px}*ih/(iw*sar)/2))"
    video = (
        video.filter("scale", w=width, h=height, flags="bicubic+accurate_rnd+bitexact", out_range="tv")
        .filter("setsar", "1")
        .filter("format", "yuv420p")
        .filter("settb", f"1/{_TIMESCALE}")
        .filter("setpts", f"N/(if(gt(FR,0),FR,{_FALLBACK_FPS})*TB)")
    )
    cuts = range(clip.num_frames, max(limits.max_frames, clip.num_frames) + 1, clip.num_frames)
    options = {
        "fps_mode": "passthrough",
        "frames:v": limits.max_frames + 1,
        "force_key_frames": f"expr:eq(mod(n,{clip.num_frames}),0)",
        "stats_enc_pre": _FRAME_TABLE,
        "stats_enc_pre_fmt": "{n} {ptsi} {tbi}",
        "f": "segment",
        "segment_frames": ",".join(str(cut) for cut in cuts),
        "reset_timestamps": 1,
        "segment_format": "mp4",
        "segment_format_options": "movflags=+faststart",
    }
    return _compile(
        video.output("%06d.mp4", **_codec(crf=clip.crf, preset=clip.preset, gop_frames=clip.gop_frames), **options), binary
    )


def _source(path: Path, limits: Limits) -> Any:
    """A source as ffmpeg's input: nothing but this file is opened, and any fault ends the pass."""
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


def _compile(output: Any, binary: Path) -> list[str]:
    argv: list[str] = ffmpeg.compile(output, cmd=str(binary))
    first = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+verbose", "-xerror", "-filter_complex_threads", "1"]
    return [argv[0], *first, *argv[1:]]


def _bounds(limits: Limits) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s),
        resource.RLIMIT_FSIZE: 1 << 32,
        resource.RLIMIT_CORE: 0,
    }


def _check_claim(
    path: Path,
    times: Sequence[float | None],
    *,
    claimed_s: float | None,
    limits: Limits,
    scratch: Path,
    binary: Path | None,
) -> None:
    """Hold the frames against the duration that the container claims; a longer sound track explains a shorter picture."""
    known = [time for time in times if time is not None]
    if claimed_s is None or not known:
        return
    tolerance_s = max(_CLAIM_TOLERANCE_S, 0.02 * claimed_s)
    shown_s = known[-1] - known[0]
    if shown_s >= claimed_s - tolerance_s:
        return
    folder = scratch / "claim"
    folder.mkdir()
    source = _source(path, limits)
    copied = ffmpeg.output(source["V"], source["a?"], "-", c="copy", f="null")
    finished: Finished = execute(
        _compile(copied, ffmpeg_binary(binary)), folder=folder, timeout_s=limits.timeout_s, bounds=_bounds(limits)
    )
    reached_s = video_log.reached_s(finished.log)
    if reached_s < claimed_s - tolerance_s:
        raise MediaError(Reason.TRUNCATED, f"{shown_s:.2f} s of pictures where the container claims {claimed_s:.2f} s")


def _collect(scratch: Path, *, times: Sequence[float | None], clip: ClipConfig) -> Cut:
    """The segments as they lie in ``scratch``, each held against the number of frames it must have."""
    num_frames = len(times)
    starts = range(0, num_frames, clip.num_frames)
    paths = sorted(scratch.glob("[0-9]*.mp4"))
    if len(paths) != len(starts):
        raise MediaError(Reason.CORRUPT, f"{num_frames} frames came as {len(paths)} segments instead of {len(starts)}")
    segments = []
    for start, path in zip(starts, paths, strict=True):
        length = min(clip.num_frames, num_frames - start)
        if length >= clip.min_frames:
            segments.append(Segment(start_frame=start, num_frames=length, data=path.read_bytes()))
    with contextlib.closing(av.open(io.BytesIO(segments[0].data), format="mp4")) as container:
        stream = container.streams.video[0]
        width, height, rate = stream.width, stream.height, float(stream.average_rate or _FALLBACK_FPS)
    return Cut(
        segments=tuple(segments),
        num_frames=num_frames,
        fps=clip.fps or video_log.measured_fps(times, rate),
        width_px=width,
        height_px=height,
    )
