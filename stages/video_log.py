"""What ffmpeg said, as facts, and what the facts mean for a source: pure functions on text and numbers.

A reason and its detail end up in stored tables, so they must not depend on how ffmpeg's threads happened to interleave:
where both passes over a source found faults, the copying pass is asked first, which has only one thread to find them.
"""

import itertools
import re
import signal
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from stages.errors import MediaError, Reason
from stages.video_command import FALLBACK_FPS
from stages.video_description import Description, describe
from stages.video_process import Finished

DAMAGED_FRAME = b"corrupt decoded frame"
"""What ffmpeg says of a frame that it had to patch up."""
EMPTY_OUTPUT = "Nothing was written into output file"
"""What ffmpeg says at the end of a window that no frame fell into."""

_CONTAINER = re.compile(r"^\[info\]\s+Duration: (\d+:\d\d:[\d.]+), start: (-?[\d.]+)", re.MULTILINE)
_DECODED = re.compile(r"\bw:(\d+) h:(\d+) pixfmt:\S+ tb:\S+ fr:(\d+)/(\d+)")
_COUNTS = re.compile(r"\(video\): (\d+) packets read \(\d+ bytes\);(?: (\d+) frames decoded; (\d+) decode errors;)?")
_ENCODED = re.compile(r"Output stream #(\d+):0 \(video\): (\d+) frames encoded;")
_REACHED = re.compile(r"\btime=(\d+:\d\d:[\d.]+)")
_FRAME = re.compile(r"^frame:\d+ +pts:(-?\d+|NOPTS)", re.MULTILINE)
_FAULT = re.compile(r"^(?:\[[^\]]* @ 0x[0-9a-f]+\] )*\[(?:error|fatal)\] (.+)$", re.MULTILINE)
_ECHO = re.compile(r"Task finished|Terminating thread|Error opening (?:in|out)put files?\b|Error submitting|Could not open enc")
"""Lines that only repeat that something went wrong, some of them with the path of the source."""
_GRAPH = re.compile(r" in filtergraph description .*(?= matches)")

_DETAIL_CHARS = 200
_CLAIM_TOLERANCE_S = 0.5
_CLAIM_TOLERANCE = 0.02
_GAP_S = 1.0
_GAP_RATIO = 10.0
_UNEVEN_S = 0.002
_UNEVEN_RATIO = 0.1
_UNEVEN_SHARE = 0.01
_MICROSECOND_S = 1e-6

_SAID = (
    (Reason.FORMAT_REFUSED, re.compile(r"not on whitelist|no decoder found|Decoder \(codec .* not found")),
    (Reason.NO_VIDEO_STREAM, re.compile(r"matches no streams|does not contain any stream")),
    (Reason.TOO_LARGE, re.compile(r"exceeds specified max pixel|Picture size \d+x\d+ is invalid")),
    (Reason.LIMIT, re.compile(r"(?:annot|ould not) allocate memory|max_streams")),
    (Reason.TRUNCATED, re.compile(r"partial file|ended prematurely")),
    (Reason.UNREADABLE, re.compile(r"Error opening input:")),
    (Reason.TIMESTAMPS, re.compile(r"non.monoton|invalid timestamps|time scale")),
    (Reason.NO_FRAMES, re.compile(r"Cannot determine format of input")),
)
"""What a line says about the cause, the more telling first."""


_NO_INDEX = "moov atom not found"
_UNWRITTEN = "Could not write header"
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"})
"""What an mp4 or mov file begins with: one without its index was cut off, and anything else was never such a file."""


class DecoderKilled(MediaError):
    """Somebody killed ffmpeg: the system for want of memory, or a person. The source may be sound."""


class Facts(NamedTuple):
    """What one pass over a source showed."""

    description: Description
    sizes_px: tuple[tuple[int, int], ...]
    """Every (width, height) that the decoder gave, rotation not yet applied."""
    declared_fps: float
    """The rate that the container or the codec states, or what ffmpeg assumes."""
    claimed_s: float | None
    """The duration that the container states."""
    start_s: float
    """The time at which the container starts."""
    reached_s: float
    """How far the stream that went furthest got, from the start."""
    packets: int
    """Pieces of the picture stream in the container."""
    decoded: int
    """Frames of the source."""
    decode_errors: int
    encoded: tuple[int, ...]
    """Frames of the clips of each window, after resampling."""
    faults: tuple[str, ...]
    """The lines that ffmpeg marked as errors, without those that only repeat it."""


def read_log(log: str) -> Facts:
    """What a log at level ``level+verbose`` shows."""
    decoded = list(_DECODED.finditer(log))
    sizes = [(int(found[1]), int(found[2])) for found in decoded]
    container, reached = _CONTAINER.search(log), _last(_REACHED, log)
    counts = max(_COUNTS.finditer(log), key=lambda found: found[2] is not None, default=None)  # others are not decoded
    encoded = {int(found[1]): int(found[2]) for found in _ENCODED.finditer(log)}
    lines = (_GRAPH.sub("", found[1].strip()) for found in _FAULT.finditer(log))
    return Facts(
        description=describe(log),
        sizes_px=tuple(dict.fromkeys(sizes)),
        declared_fps=_rate(decoded[0]) if decoded else FALLBACK_FPS,
        claimed_s=_seconds(container[1]) if container else None,
        start_s=float(container[2]) if container else 0.0,
        reached_s=_seconds(reached[1]) if reached else 0.0,
        packets=int(counts[1]) if counts else 0,
        decoded=int(counts[2] or 0) if counts else 0,
        decode_errors=int(counts[3] or 0) if counts else 0,
        encoded=tuple(encoded.get(number, 0) for number in range(max(encoded, default=-1) + 1)),
        faults=tuple(dict.fromkeys(line for line in lines if not _ECHO.match(line))),
    )


def frame_times_us(table: str) -> tuple[int | None, ...]:
    """When each frame of the source is shown, from the table that ``print`` of the filter ``metadata`` writes."""
    return tuple(int(timestamp) if timestamp != "NOPTS" else None for timestamp in _FRAME.findall(table))


def check_end(finished: Finished, facts: Facts) -> None:
    """Nothing, when ffmpeg ended by itself.

    Raises:
        MediaError: the source made it run or grow too long, or crash.
        DecoderKilled: it was killed.
        OSError: the disk is full, which is no fault of the source.
    """
    if finished.timed_out or finished.exit_code == -signal.SIGXCPU:
        raise MediaError(Reason.TIMEOUT, "not done in the time it may take")
    if finished.exit_code == -signal.SIGXFSZ:
        raise MediaError(Reason.LIMIT, "wrote more bytes than it may")
    if finished.exit_code == -signal.SIGKILL:
        raise DecoderKilled(Reason.DECODER_CRASH, "ffmpeg was killed, again and again")
    if finished.exit_code < 0:
        raise MediaError(Reason.DECODER_CRASH, f"ffmpeg was ended by {signal.Signals(-finished.exit_code).name}")
    full = [line for line in facts.faults if "No space left on device" in line]
    if full:
        raise OSError(f"no space left for the clips of a source: {full[0]}; free some and run again")


def check_size(facts: Facts, *, min_side_px: int) -> None:
    """Nothing, when the frames have one size that is large enough.

    Raises:
        MediaError: they have not.
    """
    if min(facts.sizes_px[0]) < min_side_px:
        raise MediaError(Reason.LIMIT, f"{facts.sizes_px[0]} pixels; min_side_px={min_side_px}")
    if len(facts.sizes_px) > 1:
        raise MediaError(Reason.CORRUPT, f"the picture changes its size from {facts.sizes_px[0]} to {facts.sizes_px[1]} pixels")


def check_times(times_us: Sequence[int | None], *, max_duration_s: float) -> None:
    """Nothing, when frames are shown in order, without a hole, and within the allowed duration.

    Raises:
        MediaError: they are not.
    """
    steps_s = _steps_s(times_us)
    if steps_s and min(steps_s) < 0:
        raise MediaError(Reason.TIMESTAMPS, f"time goes back by {-min(steps_s):.3f} s")
    if steps_s and max(steps_s) > max(_GAP_S, _GAP_RATIO * statistics.median(steps_s)):
        raise MediaError(Reason.TIMESTAMPS, f"a gap of {max(steps_s):.3f} s between two frames")
    if duration_s(times_us) >= max_duration_s - 1:
        raise MediaError(Reason.LIMIT, f"longer than max_duration_s={max_duration_s}")


def duration_s(times_us: Sequence[int | None]) -> float:
    """From the first frame to the last, in seconds."""
    known = [time for time in times_us if time is not None]
    return (known[-1] - known[0]) * _MICROSECOND_S if known else 0.0


def is_variable_rate(times_us: Sequence[int | None]) -> bool:
    """Whether more than one step in a hundred differs from the usual one, by more than coarse timestamps explain."""
    steps_s = _steps_s(times_us)
    usual = statistics.median(steps_s) if steps_s else 0.0
    uneven = sum(abs(step - usual) > _UNEVEN_S + _UNEVEN_RATIO * usual for step in steps_s)
    return uneven > _UNEVEN_SHARE * len(steps_s)


def keeps_claim(facts: Facts, reached_s: float) -> bool:
    """Whether something that got to ``reached_s`` is as long as its container claims.

    Some containers count the claim from zero and some from where they start: either will do.
    """
    if facts.claimed_s is None:
        return True
    tolerance_s = max(_CLAIM_TOLERANCE_S, _CLAIM_TOLERANCE * facts.claimed_s)
    return reached_s + max(facts.start_s, 0.0) >= facts.claimed_s - tolerance_s


def diagnosis(decoding: Facts, copying: Facts, *, head: bytes, missing_bytes: int) -> MediaError:
    """Why a source makes no clip.

    Args:
        decoding: what the decoding pass showed.
        copying: what the copying pass showed.
        head: the first eight bytes of the source.
        missing_bytes: how much longer the boxes of an mp4 or mov file say that it is.
    """
    if _NO_INDEX in copying.faults and head[4:8] in BOXES:
        return MediaError(Reason.TRUNCATED, _NO_INDEX)
    if missing_bytes:
        return _fault(Reason.TRUNCATED, f"{missing_bytes} bytes are missing", *copying.faults)
    for reason, pattern in _SAID:
        for line in (*copying.faults, *decoding.faults):
            if pattern.search(line):
                return _fault(reason, line, *copying.faults)
    unwritten = any(_UNWRITTEN in line for line in copying.faults)  # then how far it got says nothing
    if not unwritten and not keeps_claim(copying, copying.reached_s):
        claim = f"goes to {copying.reached_s:.2f} s where the container claims {copying.claimed_s:.2f} s"
        return _fault(Reason.TRUNCATED, claim, *copying.faults)
    if not unwritten and copying.packets == 0:
        return _fault(Reason.NO_FRAMES, "a video stream without frames", *copying.faults)
    return _fault(Reason.CORRUPT, *(copying.faults or decoding.faults[:1] or ("the decoder failed without a word",)))


def measured_fps(passes_us: Sequence[Sequence[int | None]], declared: float) -> float:
    """Frames per second: what is declared where the frame times of all passes agree within 2 %, otherwise their mean rate."""
    steps = sum(len(_steps_s(times)) for times in passes_us)
    lasted_s = sum(duration_s(times) for times in passes_us)
    if lasted_s <= 0 or abs(declared * lasted_s - steps) <= 0.02 * steps:
        return round(declared, 6)
    return round(steps / lasted_s, 6)


def _steps_s(times_us: Sequence[int | None]) -> list[float]:
    known = [time for time in times_us if time is not None]
    return [(later - earlier) * _MICROSECOND_S for earlier, later in itertools.pairwise(known)]


def _fault(reason: Reason, *lines: str) -> MediaError:
    return MediaError(reason, "; ".join(dict.fromkeys(lines))[:_DETAIL_CHARS])


def _rate(decoded: re.Match[str]) -> float:
    frames, seconds = int(decoded[3]), int(decoded[4])
    return frames / seconds if frames and seconds else FALLBACK_FPS


def _last(pattern: re.Pattern[str], log: str) -> re.Match[str] | None:
    return next(reversed(list(pattern.finditer(log))), None)


def _seconds(clock: str) -> float:
    hours, minutes, seconds = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
