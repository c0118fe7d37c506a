"""What ffmpeg said, as facts, and what the facts mean for a source: pure functions on text and numbers."""

import re
import signal
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from stages.errors import MediaError, Reason
from stages.video_process import Finished

_DURATION = re.compile(r"^\[info\]\s+Duration: (\d+):(\d\d):(\d\d\.\d+),", re.MULTILINE)
_DECODED = re.compile(r"\bw:(\d+) h:(\d+) pixfmt:\S+ tb:\S+ fr:(\d+)/(\d+)")
_COUNTS = re.compile(r"\(video\): (\d+) packets read \(\d+ bytes\); (\d+) frames decoded; (\d+) decode errors")
_REACHED = re.compile(r"\bLsize=\S+ +time=(\d+):(\d\d):(\d\d\.\d+)")
_FAULT = re.compile(r"^(?:\[[^\]]* @ [^\]]*\] )*\[(?:error|fatal)\] (.+)$", re.MULTILINE)
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")

_DETAIL_CHARS = 300
_GAP_S = 1.0
_GAP_RATIO = 10.0

_SAID = (
    (Reason.FORMAT_REFUSED, re.compile(r"not on whitelist|not in allowed|whitelist", re.IGNORECASE)),
    (Reason.NO_VIDEO_STREAM, re.compile(r"matches no streams|does not contain any stream", re.IGNORECASE)),
    (Reason.TOO_LARGE, re.compile(r"exceeds specified max pixel|Picture size \d+x\d+ is invalid", re.IGNORECASE)),
    (Reason.LIMIT, re.compile(r"Cannot allocate memory|Too many streams|max_streams", re.IGNORECASE)),
    (Reason.TRUNCATED, re.compile(r"moov atom not found|partial file|ended prematurely|truncated file", re.IGNORECASE)),
    (Reason.TRUNCATED, re.compile(r"corrupt input packet", re.IGNORECASE)),
    (Reason.UNREADABLE, re.compile(r"Error opening input", re.IGNORECASE)),
    (Reason.TIMESTAMPS, re.compile(r"monoton|invalid timestamps|time ?scale", re.IGNORECASE)),
)
"""What a fault line says about the cause, the more telling first."""


class Facts(NamedTuple):
    """What one pass over a source showed."""

    sizes_px: tuple[tuple[int, int], ...]
    """Every (width, height) that the decoder gave, rotation not yet applied."""
    rate: float
    """Frames per second as declared; 0 when nothing is declared."""
    claimed_s: float | None
    """The duration that the container states."""
    packets: int
    frames: int
    decode_errors: int
    faults: tuple[str, ...]
    """The lines that ffmpeg marked as errors."""


def read_log(log: str) -> Facts:
    """What a log at level ``level+verbose`` shows."""
    decoded = [(int(width), int(height), int(num), int(den)) for width, height, num, den in _DECODED.findall(log)]
    counts = _COUNTS.findall(log)
    packets, frames, errors = (int(value) for value in counts[-1]) if counts else (0, 0, 0)
    return Facts(
        sizes_px=tuple(dict.fromkeys((width, height) for width, height, _, _ in decoded)),
        rate=decoded[0][2] / decoded[0][3] if decoded and decoded[0][3] else 0.0,
        claimed_s=_seconds(_DURATION.search(log)),
        packets=packets,
        frames=frames,
        decode_errors=errors,
        faults=tuple(_ADDRESS.sub("", line) for line in _FAULT.findall(log)),
    )


def reached_s(log: str) -> float:
    """How far the furthest stream of a copying pass went, in seconds."""
    return _seconds(_REACHED.search(log)) or 0.0


def frame_times(table: str) -> tuple[float | None, ...]:
    """When each frame is shown in the source, in seconds, from lines of ``number timestamp time-base``."""
    rows = [line.split() for line in table.splitlines()]
    return tuple(_shown_s(timestamp, base) for _, timestamp, base in rows)


def check_exit(finished: Finished, facts: Facts) -> None:
    """Nothing, when ffmpeg came to the end of the source.

    Raises:
        MediaError: the source made it stop; the reason follows from the signal or from what it said.
        OSError: the disk is full, which is no fault of the source.
    """
    if finished.timed_out:
        raise MediaError(Reason.TIMEOUT, f"not done in time; {facts.frames} frames so far")
    if finished.exit_code < 0:
        raise _killed(-finished.exit_code)
    said = "; ".join(facts.faults)
    if "No space left on device" in said:
        raise OSError(f"no space left for the segments of a source: {said[:_DETAIL_CHARS]}")
    if finished.exit_code:
        raise MediaError(_reason(facts), said[:_DETAIL_CHARS] or f"ffmpeg ended with {finished.exit_code} and said nothing")


def check_content(facts: Facts, *, num_frames: int, min_frames: int, min_side_px: int) -> None:
    """Nothing, when the pass gave one uninterrupted picture of one size without a fault.

    Raises:
        MediaError: it did not.
    """
    if facts.frames == 0 or num_frames == 0:
        raise MediaError(Reason.NO_FRAMES, "; ".join(facts.faults)[:_DETAIL_CHARS] or f"{facts.packets} packets, no frame")
    if facts.faults or facts.decode_errors:
        raise MediaError(_reason(facts), "; ".join(facts.faults)[:_DETAIL_CHARS] or f"{facts.decode_errors} decode errors")
    if len(facts.sizes_px) > 1:
        raise MediaError(Reason.CORRUPT, f"the picture changes its size: {facts.sizes_px}")
    if min(facts.sizes_px[0]) < min_side_px:
        raise MediaError(Reason.LIMIT, f"{facts.sizes_px[0]} pixels; min_side_px={min_side_px}")
    if num_frames < min_frames:
        raise MediaError(Reason.TOO_SHORT, f"{num_frames} frames; min_frames={min_frames}")


def check_times(times: Sequence[float | None], *, max_duration_s: float) -> None:
    """Nothing, when frames are shown in order, without a hole, and within the allowed duration.

    Raises:
        MediaError: they are not.
    """
    known = [time for time in times if time is not None]
    steps = [later - earlier for earlier, later in zip(known, known[1:], strict=False)]
    if steps and min(steps) < 0:
        raise MediaError(Reason.TIMESTAMPS, f"time goes back by {-min(steps):.3f} s")
    if steps and max(steps) > max(_GAP_S, _GAP_RATIO * statistics.median(steps)):
        raise MediaError(Reason.TIMESTAMPS, f"a gap of {max(steps):.3f} s between two frames")
    if known and known[-1] - known[0] >= max_duration_s:
        raise MediaError(Reason.LIMIT, f"{known[-1] - known[0]:.0f} s; max_duration_s={max_duration_s:.0f}")


def measured_fps(times: Sequence[float | None], declared: float) -> float:
    """Frames per second: what is declared where the frame times agree within 2 %, otherwise their mean rate."""
    known = [time for time in times if time is not None]
    if len(known) < 2 or known[-1] <= known[0]:
        return round(declared, 6)
    mean = (len(known) - 1) / (known[-1] - known[0])
    return round(declared if abs(declared - mean) <= 0.02 * mean else mean, 6)


def _shown_s(timestamp: str, base: str) -> float | None:
    if not timestamp.lstrip("-").isdigit() or abs(int(timestamp)) >= 2**62:
        return None
    numerator, denominator = base.split("/")
    return int(timestamp) * int(numerator) / int(denominator) if int(denominator) else None


def _seconds(found: re.Match[str] | None) -> float | None:
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3]) if found else None


def _reason(facts: Facts) -> Reason:
    for reason, pattern in _SAID:
        if any(pattern.search(line) for line in facts.faults):
            return reason
    return Reason.CORRUPT if facts.frames else Reason.NO_FRAMES


def _killed(number: int) -> MediaError:
    name = signal.Signals(number).name
    if number == signal.SIGXCPU:
        return MediaError(Reason.TIMEOUT, "used more processor time than it may")
    if number == signal.SIGXFSZ:
        return MediaError(Reason.LIMIT, "wrote more bytes than it may")
    return MediaError(Reason.DECODER_CRASH, f"ffmpeg was ended by {name}")
