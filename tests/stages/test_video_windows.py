"""Annotated spans become clips of exactly their frames, whatever container they are in and however many they are."""

from pathlib import Path

import numpy as np
import pytest

from stages.errors import Reason
from stages.video_windows import MAX_BRANCHES, Window, passes, seek_us, windows_of
from tests.stages.videos import changed, cut, numbers, refusal, run_ffmpeg, shown, write_ramp, write_video

LONG_FRAMES = 750
FPS = 25.0
BITS = 12


def told(frame: np.ndarray) -> int:
    """The number that a frame of ``write_long`` tells."""
    return sum(1 << bit for bit in range(BITS) if frame[:, bit * 8 + 2 : bit * 8 + 6].mean() > 128)


def write_long(path: Path, *options: str) -> Path:
    """Thirty seconds whose frames tell their number in black and white bars; gives ``path``."""
    bars = np.arange(LONG_FRAMES)[:, None] >> np.arange(BITS) & 1
    frames = np.repeat(bars.astype(np.uint8) * 255, 8, axis=1)[:, None, :, None]
    return write_video(path, np.broadcast_to(frames, (LONG_FRAMES, 32, BITS * 8, 3)), fps=FPS, options=options)


def test_spans_become_clips_of_their_frames_in_one_pass(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 50), spans=[(0.4, 1.2), (0.8, 1.0), (1.0, 9.0)])
    clips = [
        (segment.span, segment.start_frame, round(segment.start_s, 6), numbers(shown(segment))) for segment in made.segments
    ]
    assert clips == [
        (0, 0, 0.4, list(range(10, 26))),
        (0, 16, 1.04, list(range(26, 30))),
        (1, 0, 0.8, list(range(20, 25))),
        (2, 0, 1.0, list(range(25, 41))),
        (2, 16, 1.64, list(range(41, 50))),
    ]
    assert (made.num_frames, made.short_spans) == (20 + 5 + 25, 0)
    assert sorted(path.name for path in made.segments[0].video.parent.parent.iterdir()) == ["pass-0000"]
    again = cut(tmp_path / "a.mp4", spans=[(0.4, 1.2), (0.8, 1.0), (1.0, 9.0)])
    assert [one.video.read_bytes() for one in again.segments] == [one.video.read_bytes() for one in made.segments]
    assert again.probe == made.probe


def test_spans_that_hold_too_little_are_counted_and_give_nothing(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 50)
    made = cut(path, spans=[(5, 6), (0.4, 1.0), (1.0, 0.5), (1.0, 1.0), (1.2, 1.28), (float("nan"), 1.0), (-2, -1)])
    assert ([segment.span for segment in made.segments], made.short_spans) == ([1], 6)
    for spans in ([(5, 6)], [(1.0, 0.5)], []):
        assert refusal(path, spans=spans).reason == Reason.TOO_SHORT


def test_a_margin_widens_spans_within_the_source(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 40), changed(margin_s=0.2), spans=[(0.08, 0.2), (1.4, 1.6)])
    assert [numbers(shown(segment)) for segment in made.segments] == [list(range(10)), list(range(30, 40))]


def test_stride_and_rate_count_from_the_beginning_of_a_span(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 50)
    made = cut(path, changed(frame_stride=3), spans=[(0.4, 1.2)])
    assert (numbers(shown(made.segments[0])), made.fps) == (list(range(10, 30, 3)), pytest.approx(25 / 3))
    assert [segment.num_frames for segment in cut(path, changed(fps=12.5), spans=[(0.4, 1.2)]).segments] == [10]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", ("-g", "50", "-bf", "3")),
        ("b.mp4", ("-g", "50", "-x264-params", "open_gop=1:bframes=3", "-preset", "veryfast")),
        ("c.mkv", ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=50")),
        ("d.ts", ("-g", "50", "-bf", "3")),
        ("e.264", ("-g", "50")),
    ],
    ids=["mp4", "open groups", "hevc", "no index", "no container"],
)
def test_far_spans_are_found_to_the_frame(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    path = write_long(tmp_path / name, *options)
    made = cut(path, changed(num_frames=64), spans=[(26.0, 27.0), (13.4, 14.4), (28.0, 90.0)])
    found = {segment.span: [told(frame) for frame in shown(segment)] for segment in made.segments}
    assert found == {0: list(range(650, 675)), 1: list(range(335, 360)), 2: list(range(700, 750))}
    assert [segment.start_s for segment in made.segments] == pytest.approx([26.0, 13.4, 28.0])
    if path.suffix in {".mp4", ".mkv"}:
        assert made.probe.num_frames <= 500, "what lies before the first span need not be decoded"


def test_more_spans_than_one_pass_has_room_for_are_read_in_several(tmp_path: Path) -> None:
    path = write_long(tmp_path / "a.mp4", "-g", "25")
    spans = [(2 * number + 0.2, 2 * number + 0.6) for number in range(14)]
    made = cut(path, changed(num_frames=64), spans=spans)
    assert [told(shown(segment)[0]) for segment in made.segments] == [50 * number + 5 for number in range(14)]
    assert sorted(folder.name for folder in made.segments[0].video.parent.parent.iterdir()) == ["pass-0000", "pass-0001"]
    assert made.probe.num_frames < 1.1 * LONG_FRAMES


def test_a_span_far_beyond_the_end_costs_no_search(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 50), spans=[(0.0, 1.0), (500.0, 510.0)])
    assert ({segment.span for segment in made.segments}, made.short_spans) == ({0}, 1)
    assert made.probe.num_frames <= 50


def test_a_source_that_is_cut_off_within_a_span_is_truncated_and_before_it_is_not_seen(tmp_path: Path) -> None:
    path = write_long(tmp_path / "a.mp4", "-g", "25", "-movflags", "+faststart")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    assert refusal(path, spans=[(10.0, 25.0)]).reason == Reason.TRUNCATED
    assert cut(path, spans=[(2.0, 3.0)]).num_frames == 25


def test_a_source_that_starts_late_keeps_the_clock_of_a_player(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 50)
    run_ffmpeg("-i", tmp_path / "a.mp4", "-c", "copy", "-output_ts_offset", "7", tmp_path / "late.ts")
    made = cut(tmp_path / "late.ts", spans=[(0.4, 0.8)])
    assert numbers(shown(made.segments[0])) == list(range(10, 20))


def test_windows_are_grouped_so_that_about_everything_is_read_once() -> None:
    def groups(*spans: tuple[float, float]) -> list[list[int]]:
        windows = windows_of(spans, margin_s=0.0)
        return [[window.span for window in group] for group in passes(windows, max_duration_s=3600.0)]

    assert groups((40, 50), (0, 10), (12, 20)) == [[1, 2, 0]]
    assert groups((0, 10), (41, 50)) == [[0], [1]], "a long way to the next is not decoded"
    assert groups(*((i, i + 1) for i in range(MAX_BRANCHES + 1))) == [list(range(MAX_BRANCHES)), [MAX_BRANCHES]]
    assert groups((0, 2000), (2000, 3000), (3000, 3700)) == [[0, 1], [2]], "no pass lasts longer than a source may"
    assert seek_us([Window(0, 5_300_000, 6_000_000)]) == 4_000_000
