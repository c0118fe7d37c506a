"""One source through ffmpeg: in as few passes as it takes, each judged before anything of it may become a clip.

A good source takes one pass. Another follows only on doubt: a container that was not sought in properly, a fault under the
policy ``tolerant``, brightness beyond what a clip can show, or a claim that was not kept.
"""

import itertools
import math
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from stages import video_log
from stages.errors import MediaError, Reason
from stages.video_command import FRAME_TABLE, ClipConfig, Limits, Way, copy_command, cut_command
from stages.video_process import Finished, execute
from stages.video_windows import WHOLE, Window, end_us, passes, seek_us

_FILE_BYTES = 1 << 32
_HEAD_BYTES = 8
_MATROSKA = b"\x1a\x45\xdf\xa3"
_MAX_BOXES = 10_000
_ANY_BOX = video_log.BOXES | {b"moof", b"mfra", b"sidx", b"styp", b"uuid"}
_REACH_S = 0.5
"""How much earlier than asked the last frame may be before the source must be asked whether it is cut off."""


class Job(NamedTuple):
    """One source and how it is to be cut."""

    path: Path
    clip: ClipConfig
    limits: Limits
    scratch: Path
    binary: Path


class Pass(NamedTuple):
    """One run of ffmpeg over a part of a source."""

    windows: tuple[Window, ...]
    way: Way
    folder: Path
    finished: Finished
    facts: video_log.Facts
    times_us: tuple[int | None, ...]
    """When the frames that were read are shown, on the source's clock."""

    @property
    def bad_frames(self) -> int:
        """Frames that failed to decode or came out damaged."""
        return self.facts.decode_errors + self.finished.num_marked

    @property
    def has_sought(self) -> bool:
        """Whether it began elsewhere than at the start of the source."""
        return self.way.seek and seek_us(self.windows) > 0

    @property
    def is_beyond_claim(self) -> bool:
        """Whether it looked for frames where its container claims none, and found none."""
        claimed_s = self.facts.claimed_s
        sought_in_vain = self.has_sought and not self.times_us
        return sought_in_vain and claimed_s is not None and self.windows[0].start_us >= claimed_s * 1e6

    @property
    def empty_windows(self) -> int:
        """Windows of a part of the source that no frame fell into."""
        found = sum(count > 0 for count in self.facts.encoded)
        return 0 if self.windows == (WHOLE,) else len(self.windows) - found


def read(windows: Sequence[Window], job: Job) -> Iterator[Pass]:
    """Every pass that the windows need, sound and checked.

    Raises:
        MediaError: the source makes no clip, and why.
    """
    folders = (job.scratch / f"pass-{number:04d}" for number in itertools.count())
    way = Way(seek=_has_index(job.path))
    for group in passes(windows, max_duration_s=job.limits.max_duration_s):
        one = _run(group, way, job, folder=next(folders))
        while other := _other_way(one, job.clip):
            one = _run(group, other, job, folder=next(folders))
        if not one.is_beyond_claim:
            _check(one, job)
            yield one
        way = one.way  # what one pass had to learn about the source the next one knows


def _run(windows: tuple[Window, ...], way: Way, job: Job, *, folder: Path) -> Pass:
    argv = cut_command(job.path, windows=windows, way=way, clip=job.clip, limits=job.limits, binary=job.binary)
    finished, facts = _execute(argv, job.limits, folder=folder)
    if facts.decoded > job.limits.max_frames:
        raise MediaError(Reason.LIMIT, f"more than max_frames={job.limits.max_frames}")
    table = folder / FRAME_TABLE
    times = video_log.frame_times_us(table.read_text()) if table.exists() else ()
    origin = seek_us(windows) if way.seek else 0
    on_the_clock = tuple(time + origin if time is not None else None for time in times)
    end = end_us(windows)
    if end is not None:  # the little that is read beyond tells nothing
        on_the_clock = tuple(time for time in on_the_clock if time is not None and time < end)
    encoded = (*facts.encoded, *[0] * len(windows))[: len(windows)]
    return Pass(windows, way, folder, finished, facts._replace(encoded=encoded), on_the_clock)


def _execute(argv: Sequence[str], limits: Limits, *, folder: Path) -> tuple[Finished, video_log.Facts]:
    bounds = {
        resource.RLIMIT_AS: limits.memory_bytes,
        resource.RLIMIT_CPU: math.ceil(limits.timeout_s),
        resource.RLIMIT_FSIZE: _FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    folder.mkdir()
    finished = execute(argv, folder=folder, timeout_s=limits.timeout_s, bounds=bounds, mark=video_log.DAMAGED_FRAME)
    facts = video_log.read_log(finished.log)
    video_log.check_end(finished, facts)
    return finished, facts


def _other_way(one: Pass, clip: ClipConfig) -> Way | None:
    """How the same part must be read again, if it must.

    A decoder that begins in the middle of an open group of pictures stumbles over references that it never saw. So a pass
    that has sought bears faults the second time, as long as no frame is bad, and only the third time starts at the beginning.
    """
    way, sound = one.way, _is_sound(one, clip)
    if one.is_beyond_claim:
        return None
    if one.has_sought and (way.tolerant or sound) and not (sound and _begins_in_time(one)):
        return way._replace(seek=False, tolerant=False)
    if not sound and not way.tolerant and (clip.policy == "tolerant" or one.has_sought):
        return way._replace(tolerant=True)
    colours = one.facts.description.colours
    if sound and colours.is_hdr and way.hdr is None:
        return way._replace(hdr=colours)
    return None


def _is_sound(one: Pass, clip: ClipConfig) -> bool:
    """Whether ffmpeg found no fault, or none that is not borne. It calls a window without frames one; that is none."""
    facts = one.facts
    faults = [line for line in facts.faults if not line.startswith(video_log.EMPTY_OUTPUT)]
    ended_well = one.finished.exit_code == 0 or (one.empty_windows > 0 and len(faults) < len(facts.faults))
    if not ended_well or not (any(facts.encoded) or (one.empty_windows and facts.decoded)):
        return False
    return not _has_too_many_bad_frames(one, clip) and (one.way.tolerant or not faults)


def _has_too_many_bad_frames(one: Pass, clip: ClipConfig) -> bool:
    share = clip.max_error_share if clip.policy == "tolerant" and one.way.tolerant else 0.0
    return one.bad_frames > share * one.facts.decoded


def _begins_in_time(one: Pass) -> bool:
    first = next((time for time in one.times_us if time is not None), None)
    return first is not None and first <= one.windows[0].start_us


def _check(one: Pass, job: Job) -> None:
    """Nothing, when what came of a pass may become clips.

    Raises:
        MediaError: it may not.
    """
    facts, clip, limits = one.facts, job.clip, job.limits
    if facts.sizes_px:
        video_log.check_size(facts, min_side_px=limits.min_side_px)
    if not _is_sound(one, clip):
        raise _diagnosis(one, _copied(one, job), job)
    if max(facts.encoded, default=0) > limits.max_frames:
        raise MediaError(Reason.LIMIT, f"more than max_frames={limits.max_frames}")
    if one.windows == (WHOLE,) and facts.encoded[0] < clip.min_frames:
        raise MediaError(Reason.TOO_SHORT, f"{facts.encoded[0]} frames; min_frames={clip.min_frames}")
    video_log.check_times(one.times_us, max_duration_s=limits.max_duration_s)
    _check_claim(one, job)


def _check_claim(one: Pass, job: Job) -> None:
    """Nothing, when the frames go as far as was asked, or as far as the source claims to go.

    Raises:
        MediaError: they do not, and a longer sound track does not explain it.
    """
    end = end_us(one.windows)
    reached_s = video_log.duration_s(one.times_us)
    if end is not None:
        reached_s = max((time for time in one.times_us if time is not None), default=0) / 1e6
        if reached_s >= end / 1e6 - _REACH_S:
            return
    if not video_log.keeps_claim(one.facts, reached_s):
        copying = _copied(one, job)
        if not video_log.keeps_claim(copying, copying.reached_s):
            raise _diagnosis(one, copying, job)


def _copied(one: Pass, job: Job) -> video_log.Facts:
    """What a pass shows that only takes the container apart."""
    argv = copy_command(job.path, whole=one.windows == (WHOLE,), limits=job.limits, binary=job.binary)
    return _execute(argv, job.limits, folder=one.folder / "copying")[1]


def _diagnosis(one: Pass, copying: video_log.Facts, job: Job) -> MediaError:
    return video_log.diagnosis(one.facts, copying, head=_head(job.path), missing_bytes=_missing_bytes(job.path))


def _missing_bytes(path: Path) -> int:
    """How much longer the boxes of an mp4 or mov file say that it is; 0 for whatever is no such file."""
    size, end = path.stat().st_size, 0
    with path.open("rb") as file:
        for _ in range(_MAX_BOXES):
            file.seek(end)
            head = file.read(2 * _HEAD_BYTES)
            if head[4:_HEAD_BYTES] not in _ANY_BOX:
                break
            short = int.from_bytes(head[:4], "big")
            length = short if short != 1 else int.from_bytes(head[_HEAD_BYTES:], "big")
            if length < _HEAD_BYTES:  # 0: to wherever the file ends
                return 0
            end += length
            if end >= size:
                break
    return max(0, end - size)


def _has_index(path: Path) -> bool:
    """Whether a container tells where its pictures are: mov, mp4 and Matroska do, others are searched, and badly."""
    head = _head(path)
    return head[4:] in video_log.BOXES or head[:4] == _MATROSKA


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
