"""Video files to clips and back: one ffmpeg pass per source, and PyAV for the clips that come of it.

A source is decoded, made progressive, upright and square in its pixels, scaled, and cut into H.264 segments, all in one
child process under limits. Clips are addressed by frame order, never by timestamps.
"""

import contextlib
import io
import math
import os
import resource
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import av.error
import av.video.reformatter
import numpy as np
import numpy.typing as npt

from stages import video_log
from stages.errors import ArtifactDamaged, ConfigError, MediaError, Reason
from stages.video_command import (
    FALLBACK_FPS,
    FRAME_TABLE,
    ClipConfig,
    Limits,
    copy_command,
    cut_command,
    encode_command,
    ffmpeg_binary,
)
from stages.video_process import execute

_ENCODE_TIMEOUT_S = 600.0
_FILE_BYTES = 1 << 32


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
    """The clips of a source: segments of exactly ``num_frames``, and the rest if it has at least ``min_frames``.

    Args:
        path: the source, absolute.
        clip: what a clip is.
        limits: what the source may cost.
        scratch: an empty folder of the caller's, who removes it afterwards.
        binary: the ffmpeg to use; the one that came installed otherwise.

    Raises:
        MediaError: the source makes no clip, and why.
    """
    check_file(path)
    argv = cut_command(path, clip=clip, limits=limits, binary=ffmpeg_binary(binary))
    finished = execute(argv, folder=scratch, timeout_s=limits.timeout_s, bounds=_bounds(limits))
    facts = video_log.read_log(finished.log)
    video_log.check_end(finished, facts)
    if facts.sizes_px:
        video_log.check_size(facts, min_side_px=limits.min_side_px)
    if finished.exit_code or facts.faults or facts.decode_errors or not facts.encoded:
        copying = _copied(path, limits=limits, scratch=scratch, binary=binary)
        raise video_log.diagnosis(facts, copying, head=_head(path))
    if facts.encoded > limits.max_frames:
        raise MediaError(Reason.LIMIT, f"more than max_frames={limits.max_frames}")
    if facts.encoded < clip.min_frames:
        raise MediaError(Reason.TOO_SHORT, f"{facts.encoded} frames; min_frames={clip.min_frames}")
    times = video_log.frame_times((scratch / FRAME_TABLE).read_text())
    video_log.check_times(times, max_duration_s=limits.max_duration_s)
    if not video_log.keeps_claim(facts, video_log.duration_s(times)):
        copying = _copied(path, limits=limits, scratch=scratch, binary=binary)
        if not video_log.keeps_claim(copying, copying.reached_s):  # a longer sound track explains a shorter picture
            raise video_log.diagnosis(facts, copying, head=_head(path))
    return _collect(scratch, facts.encoded, times=times, clip=clip)


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
        raise MediaError(Reason.NOT_A_FILE, f"an entry of kind {stat.filemode(status.st_mode)[0]!r}, not a regular file")
    if status.st_size == 0:
        raise MediaError(Reason.EMPTY, "0 bytes")


def decode(data: bytes) -> npt.NDArray[np.uint8]:
    """The frames [T H W 3] of a clip of our own making, as RGB.

    Only for bytes whose checksum was verified: they are parsed in this process.

    Raises:
        ArtifactDamaged: they do not hold the frames they claim.
    """
    reformatter = av.video.reformatter.VideoReformatter()
    num_decoded = 0
    try:
        with av.open(io.BytesIO(data), format="mp4") as container:
            stream = container.streams.video[0]
            frames = np.empty((stream.frames, stream.height, stream.width, 3), dtype=np.uint8)
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
    frames: npt.NDArray[np.uint8], *, fps: float, crf: int, preset: str, scratch: Path, binary: Path | None = None
) -> bytes:
    """An H.264 mp4 file of RGB frames [T H W 3]; equal frames give equal bytes.

    Raises:
        ConfigError: the encoder refuses the parameters.
    """
    _, height, width, _ = frames.shape
    name = "encoded.mp4"
    argv = encode_command(
        width_px=width, height_px=height, fps=fps, crf=crf, preset=preset, name=name, binary=ffmpeg_binary(binary)
    )
    (scratch / name).unlink(missing_ok=True)  # an earlier call's file would pass for this one's
    finished = execute(argv, folder=scratch, timeout_s=_ENCODE_TIMEOUT_S, bounds={}, data=frames.tobytes())
    if finished.exit_code:
        faults = "; ".join(video_log.read_log(finished.log).faults)
        raise ConfigError(f"cannot encode frames of shape {frames.shape} with crf={crf} preset={preset!r}: {faults}")
    return (scratch / name).read_bytes()


def _bounds(limits: Limits) -> dict[int, int]:
    return {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s),
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }


def _copied(path: Path, *, limits: Limits, scratch: Path, binary: Path | None) -> video_log.Facts:
    """What a pass shows that only takes the container apart."""
    folder = scratch / "copying"
    folder.mkdir()
    argv = copy_command(path, limits=limits, binary=ffmpeg_binary(binary))
    finished = execute(argv, folder=folder, timeout_s=limits.timeout_s, bounds=_bounds(limits))
    facts = video_log.read_log(finished.log)
    video_log.check_end(finished, facts)
    return facts


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _collect(scratch: Path, num_frames: int, *, times: Sequence[float | None], clip: ClipConfig) -> Cut:
    """The segments as they lie in ``scratch``, each held against the number of frames it must have."""
    starts = range(0, num_frames, clip.num_frames)
    paths = sorted(scratch.glob("[0-9]*.mp4"))
    lengths = [min(clip.num_frames, num_frames - start) for start in starts]
    found = [_frames_claimed(path) for path in paths]
    if found != lengths:
        raise MediaError(Reason.CORRUPT, f"{num_frames} frames came as segments of {found} instead of {lengths}")
    segments = [
        Segment(start_frame=start, num_frames=length, data=path.read_bytes())
        for start, length, path in zip(starts, lengths, paths, strict=True)
        if length >= clip.min_frames
    ]
    with contextlib.closing(av.open(str(paths[0]))) as container:
        stream = container.streams.video[0]
        width, height, rate = stream.width, stream.height, float(stream.average_rate or FALLBACK_FPS)
    fps = clip.fps or video_log.measured_fps(times, rate)
    return Cut(segments=tuple(segments), num_frames=num_frames, fps=fps, width_px=width, height_px=height)


def _frames_claimed(path: Path) -> int:
    with contextlib.closing(av.open(str(path))) as container:
        return int(container.streams.video[0].frames)
