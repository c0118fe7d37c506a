"""Video files to clips and back: one ffmpeg pass per source, and PyAV for the clips that come of it.

A source is decoded, made progressive, upright and square in its pixels, scaled, brought into one colour space, and cut into
segments, all in one child process under limits. Where only spans of it are wanted, the same pass cuts them all. Clips are
addressed by frame order, never by timestamps.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import numpy.typing as npt

from stages import video_log
from stages.errors import ConfigError, MediaError, Reason
from stages.places import Place, check
from stages.video_command import ClipConfig, Limits, encode_command, ffmpeg_binary, segment_names
from stages.video_motion import motion_file
from stages.video_pass import Job, Pass, read
from stages.video_process import execute
from stages.video_windows import WHOLE, windows_of

_ENCODE_TIMEOUT_S = 600.0


class Segment(NamedTuple):
    """One clip of a source."""

    span: int
    """Which of the spans that were asked for; 0 for the whole."""
    start_frame: int
    """Its first frame within the span, counted in frames of the clips."""
    start_s: float
    """When that frame is shown in the source, from where its container starts."""
    num_frames: int
    video: Path
    """An mp4 file in the scratch folder, complete."""
    motion: bytes | None
    """Its motion vectors as an .npy file, see :mod:`stages.video_motion`; none if they are not wanted."""


class Probe(NamedTuple):
    """What reading a source showed of it."""

    container: str
    codec: str
    pixel_format: str
    width_px: int
    height_px: int
    """Size as it is stored, before rotation and pixel shape."""
    rotation_deg: int
    fps: float
    duration_s: float
    """As the container claims, or as was read where it claims nothing."""
    num_frames: int
    """Frames that were read, those between spans included."""
    variable_rate: bool
    interlaced: bool
    transfer: str
    """How numbers mean brightness, in ffmpeg's words: ``bt709``, ``smpte2084`` ...; empty if the source does not say."""
    decode_errors: int
    """Frames that failed to decode or came out damaged; more than 0 only under the policy ``tolerant``."""


class Cut(NamedTuple):
    """What came of a source."""

    segments: tuple[Segment, ...]
    num_frames: int
    """Frames after resampling, those of a dropped tail included."""
    short_spans: int
    """Spans that gave nothing: beyond the end of the source, empty, or with too few frames."""
    fps: float
    width_px: int
    height_px: int
    """Rate and size of the clips."""
    probe: Probe


def cut(
    path: Path,
    *,
    spans: Sequence[tuple[float, float]] | None = None,
    clip: ClipConfig,
    limits: Limits,
    scratch: Path,
    binary: Path | None = None,
) -> Cut:
    """The clips of a source or of its spans: of exactly ``length_frames`` each, and the rest if it has ``min_frames``.

    Args:
        path: the source, absolute.
        spans: start and end in seconds of the parts to cut, which may overlap, in any order; none cuts all of it.
        clip: what a clip is.
        limits: what the source may cost.
        scratch: an empty folder of the caller's, who takes the segments from it and removes it afterwards.
        binary: the ffmpeg to use; the one that came installed otherwise.

    Raises:
        MediaError: the source makes no clip, and why.
    """
    check(Place(str(path.absolute())))
    windows = [WHOLE] if spans is None else windows_of(spans, margin_s=clip.margin_s)
    done = tuple(read(windows, Job(path, clip, limits, scratch, ffmpeg_binary(binary))))
    segments = sorted(
        (segment for one in done for segment in _segments(one, clip=clip)),
        key=lambda segment: (segment.span, segment.start_frame),
    )
    if not segments:
        raise MediaError(Reason.TOO_SHORT, f"none of {len(spans or ())} spans has {clip.min_frames} frames (min_frames)")
    _, width, height = _look(segments[0].video)
    probe = _probe(done)
    return Cut(
        segments=tuple(segments),
        num_frames=sum(sum(one.facts.encoded) for one in done),
        short_spans=len(spans or ()) - len({segment.span for segment in segments} if spans else ()),
        fps=round((clip.fps or probe.fps) / clip.frame_stride, 6),
        width_px=width,
        height_px=height,
        probe=probe,
    )


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


def _segments(one: Pass, *, clip: ClipConfig) -> Iterator[Segment]:
    """The clips of one pass as they lie in its folder."""
    for number, window in enumerate(one.windows):
        encoded = one.facts.encoded[number]
        times = [time for time in one.times_us if window.holds(time)]
        if not clip.fps and encoded != math.ceil(len(times) / clip.frame_stride):
            raise MediaError(
                Reason.CORRUPT, f"{encoded} frames came of {len(times)}, every {clip.frame_stride} of which was asked"
            )
        for start, path in _held_against(encoded, one.folder, number, length=clip.length_frames):
            num_frames = min(clip.length_frames, encoded - start)
            if num_frames >= clip.min_frames:
                yield Segment(
                    span=window.span,
                    start_frame=start,
                    start_s=_moment_s(times, start, clip=clip, declared_fps=one.facts.declared_fps),
                    num_frames=num_frames,
                    video=path,
                    motion=motion_file(path) if clip.motion_vectors else None,
                )


def _held_against(num_frames: int, folder: Path, number: int, *, length: int) -> Iterator[tuple[int, Path]]:
    """The first frame and the file of every segment of a pass's k-th window, which must have the frames it should have."""
    starts = range(0, num_frames, length)
    paths = sorted(folder.glob(segment_names(number) % "*")) if num_frames else []
    lengths = [min(length, num_frames - start) for start in starts]
    found = [_look(path)[0] for path in paths]
    if found != lengths:
        raise MediaError(Reason.CORRUPT, f"{num_frames} frames came as segments of {found} instead of {lengths}")
    return zip(starts, paths, strict=True)


def _moment_s(times_us: Sequence[int | None], start_frame: int, *, clip: ClipConfig, declared_fps: float) -> float:
    """When the first frame of a clip is shown in the source, given the times of its window's frames."""
    first = start_frame * clip.frame_stride
    time_us = None if clip.fps else times_us[first]
    if time_us is not None:
        return time_us / 1e6
    begin_us = times_us[0] if times_us else None
    return round((begin_us or 0) / 1e6 + first / (clip.fps or declared_fps), 6)


def _look(path: Path) -> tuple[int, int, int]:
    """Frames, width and height that a segment's header states."""
    with contextlib.closing(av.open(str(path))) as container:
        stream = container.streams.video[0]
        return int(stream.frames), int(stream.width), int(stream.height)


def _probe(done: Sequence[Pass]) -> Probe:
    facts, times = done[0].facts, [one.times_us for one in done]
    source = facts.description
    width, height = facts.sizes_px[0]
    lasted_s = sum(video_log.duration_s(each) for each in times)
    return Probe(
        container=source.container,
        codec=source.codec,
        pixel_format=source.pixel_format,
        width_px=width,
        height_px=height,
        rotation_deg=source.rotation_deg,
        fps=video_log.measured_fps(times, facts.declared_fps),
        duration_s=facts.claimed_s if facts.claimed_s is not None else round(lasted_s, 6),
        num_frames=sum(len(each) for each in times),
        variable_rate=any(video_log.is_variable_rate(each) for each in times),
        interlaced=source.interlaced,
        transfer=source.colours.transfer.removeprefix("unknown"),
        decode_errors=sum(one.bad_frames for one in done),
    )
