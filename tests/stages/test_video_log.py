"""What ffmpeg says is read as facts."""

import pytest

from stages import video_log
from stages.video_command import Colours
from stages.video_description import describe
from stages.video_process import Finished

LOG = """[info] Input #0, mov,mp4,m4a,3gp,3g2,mj2, from 'file:a, from b.mp4':
[info]   Metadata:
[info]     title           : Stream #0:1: Video: vp9, gray(pc), 1x1
[info]   Duration: 00:00:01.02, start: 0.000000, bitrate: 21142 kb/s
[info]   Stream #0:0[0x1](eng): Video: mjpeg (mp4v / 0x1), yuvj444p(pc), 10x10 (attached pic)
[info]     Side data:
[info]       Display Matrix: rotation of 180.00 degrees
[info]   Stream #0:1[0x2](und): Video: {video}
[info]     Metadata:
[info]       handler_name    : VideoHandler
[info]     Side data:
[info]       Display Matrix: rotation of -90.00 degrees
[info] Stream mapping:
[info]   Stream #0:1 (hevc) -> bwdif:default
[graph 0 input from stream 0:1 @ 0x7f] [verbose] w:1920 h:1080 pixfmt:yuv420p10le tb:1/90000 fr:30000/1001 sar:0/1
"""
HEVC = "hevc (Main 10), 1 reference frame (hev1 / 0x31766568), "


@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("yuv420p10le(tv, bt2020nc/bt2020/smpte2084, left), 1920x1080, 27 fps", Colours("bt2020nc", "bt2020", "smpte2084")),
        ("yuv420p10le(tv, bt709, top coded first (swapped), left), 1920x1080 [SAR 1:1]", Colours("bt709", "bt709", "bt709")),
        ("yuv420p10le(progressive), 1920x1080", Colours()),
        ("yuv420p10le, 1920x1080", Colours()),
    ],
)
def test_a_source_is_described_by_the_stream_that_was_read(video: str, expected: Colours) -> None:
    found = describe(LOG.format(video=HEVC + video))
    assert found.colours == expected
    assert (found.container, found.codec, found.pixel_format) == ("mov,mp4,m4a,3gp,3g2,mj2", "hevc", "yuv420p10le")
    assert (found.rotation_deg, found.interlaced) == (-90, "first" in video)
    assert found.colours.is_hdr == ("smpte2084" in video)


def test_the_rate_and_the_claim_are_read_from_the_log() -> None:
    facts = video_log.read_log(LOG.format(video=HEVC + "yuv420p10le, 1920x1080"))
    assert (facts.declared_fps, facts.claimed_s, facts.sizes_px) == (pytest.approx(29.97, abs=0.01), 1.02, ((1920, 1080),))
    assert video_log.read_log("").encoded == ()


def test_a_full_disk_is_no_fault_of_the_source() -> None:
    log = "[out#0/segment @ 0x55] [error] Error writing trailer: No space left on device\n"
    with pytest.raises(OSError, match="no space left"):
        video_log.check_end(Finished(exit_code=1, timed_out=False, log=log), video_log.read_log(log))


def test_a_rate_is_variable_where_steps_differ_beyond_rounding() -> None:
    even = [round(frame * 1e6 / 30, -3) for frame in range(200)]  # whole milliseconds: 33 and 34
    assert not video_log.is_variable_rate([int(time) for time in even])
    assert video_log.is_variable_rate([0, 40_000, 80_000, 160_000, 200_000])
    assert not video_log.is_variable_rate([0])
    assert not video_log.is_variable_rate([])
