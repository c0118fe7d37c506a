"""Sources become clips of exactly the frames they hold, or are refused with a reason that fits."""

import os
import time
from pathlib import Path

import av
import numpy as np
import pytest

from stages import video
from stages.errors import ConfigError, Reason
from stages.video_command import H264, ClipConfig
from stages.video_decode import decode
from tests.stages.videos import (
    changed,
    cut,
    fresh,
    numbers,
    ramp,
    refusal,
    run_ffmpeg,
    script,
    shown,
    write_ramp,
    write_video,
)

HDR = ("-color_primaries", "bt2020", "-colorspace", "bt2020nc")
COLOURS = np.array(
    [[40, 40, 40], [128, 128, 128], [180, 180, 180], [200, 40, 40], [40, 180, 40], [40, 40, 200], [200, 160, 40], [30, 30, 30]],
    np.uint8,
)


def cut_off(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_segments_hold_exactly_the_frames_of_the_source_in_order(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 40))
    assert [(segment.start_frame, segment.num_frames) for segment in made.segments] == [(0, 16), (16, 16), (32, 8)]
    assert [number for segment in made.segments for number in numbers(shown(segment))] == list(range(40))


def test_a_tail_below_the_minimum_is_counted_and_dropped(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 35))
    assert [segment.num_frames for segment in made.segments] == [16, 16]
    assert made.num_frames == 35


def test_a_short_source_keeps_its_true_length(tmp_path: Path) -> None:
    assert [segment.num_frames for segment in cut(write_ramp(tmp_path / "a.mp4", 7)).segments] == [7]
    assert refusal(write_ramp(tmp_path / "b.mp4", 3)).reason == Reason.TOO_SHORT


def test_the_same_source_gives_the_same_bytes(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", noise)
    first, second = ([segment.video.read_bytes() for segment in cut(path).segments] for _ in range(2))
    assert first == second


def test_names_that_look_like_options_protocols_or_patterns_are_only_names(tmp_path: Path) -> None:
    assert cut(write_ramp(tmp_path / "a.mp4", 5).rename(tmp_path / "-i http:x%d 'q\".mp4")).num_frames == 5


@pytest.mark.parametrize(
    ("options", "size"),
    [((), (42, 32)), (("-vf", "setsar=2"), (86, 32)), (("-vf", "scale=33:77"), (32, 74))],
    ids=["landscape", "wide pixels", "portrait"],
)
def test_the_short_side_is_scaled_and_sides_are_even(tmp_path: Path, options: tuple[str, ...], size: tuple[int, int]) -> None:
    made = cut(write_ramp(tmp_path / "a.mkv", 5, options=("-pix_fmt", "yuv444p", *options)))
    assert (made.width_px, made.height_px) == size
    assert shown(made.segments[0]).shape == (5, size[1], size[0], 3)


def test_rotation_is_applied(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 5)
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    made = cut(tmp_path / "turned.mp4")
    assert (made.width_px, made.height_px) == (32, 42)


def test_only_frames_flagged_as_interlaced_lose_their_combs(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).integers(40, 200, (12, 2, 1, 1), dtype=np.uint8)
    frames = np.broadcast_to(np.tile(fields, (1, 24, 64, 3)), (12, 48, 64, 3))
    clip = changed(size_px=48, encoding=H264(crf=5))

    def combs(name: str, options: tuple[str, ...]) -> float:
        path = write_video(tmp_path / name, frames, options=("-qp", "0", *options))
        return float(np.abs(np.diff(shown(cut(path, clip).segments[0]).astype(float), axis=1)).mean())

    progressive = combs("progressive.mp4", ())
    assert progressive > 20
    assert combs("interlaced.mp4", ("-flags", "+ilme+ildct", "-vf", "setfield=tff", "-x264-params", "tff=1")) < progressive / 3


def test_native_rate_keeps_every_frame_and_another_rate_resamples(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 20, fps=30)
    assert (cut(path).num_frames, cut(path).fps) == (20, 30.0)
    resampled = cut(path, changed(fps=15.0))
    assert (resampled.num_frames, resampled.fps) == (10, 15.0)


def test_a_variable_rate_keeps_every_frame_and_gives_the_mean_rate(tmp_path: Path) -> None:
    uneven = ("-vf", "select=lt(n\\,10)+not(mod(n\\,4))", "-fps_mode", "passthrough")
    made = cut(write_ramp(tmp_path / "a.mkv", 50, options=uneven))
    assert made.num_frames == 20
    assert made.fps == pytest.approx(19 / 48 * 25, rel=0.01)  # the last frame kept is number 48


@pytest.mark.parametrize(
    ("name", "options"), [("a.mp4", ("-movflags", "+faststart")), ("b.mp4", ()), ("c.mkv", ()), ("d.flv", ())]
)
def test_a_source_that_was_cut_off_is_truncated(tmp_path: Path, name: str, options: tuple[str, ...]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / name, noise, options=("-g", "10", *options))
    assert cut(path).num_frames == 100
    assert refusal(cut_off(path)).reason == Reason.TRUNCATED


def test_a_file_that_claims_more_bytes_than_any_disk_has_is_truncated(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 5)
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") - 4] + b"\0\0\0\1mdat" + b"\xff" * 8 + bytes(100))
    assert refusal(path).reason == Reason.TRUNCATED


def test_a_longer_sound_track_is_no_truncation(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 10)
    sound = ("-f", "lavfi", "-i", "sine=duration=3")
    run_ffmpeg("-i", tmp_path / "a.mp4", *sound, "-c:v", "copy", tmp_path / "long.mp4")
    assert cut(tmp_path / "long.mp4").num_frames == 10


def test_damaged_bytes_are_corrupt_and_never_become_a_clip(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", noise, options=("-movflags", "+faststart"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4000] = os.urandom(4000)
    path.write_bytes(data)
    assert refusal(path).reason == Reason.CORRUPT


def test_a_hole_in_time_is_refused_instead_of_filled(tmp_path: Path) -> None:
    hole = ("-vf", "setpts=PTS+gte(N\\,10)*90/TB", "-fps_mode", "passthrough")
    path = write_ramp(tmp_path / "a.mkv", 20, options=hole)
    assert refusal(path).reason == Reason.TIMESTAMPS
    assert refusal(path, changed(fps=25.0)).reason == Reason.TIMESTAMPS


def test_a_change_of_size_within_a_source_is_refused(tmp_path: Path) -> None:
    small = write_ramp(tmp_path / "a.264", 10).read_bytes()
    large = write_video(tmp_path / "b.264", ramp(10, height_px=96, width_px=96)).read_bytes()
    (tmp_path / "c.264").write_bytes(small + large)
    error = refusal(tmp_path / "c.264")
    assert (error.reason, "changes its size" in error.detail) == (Reason.CORRUPT, True)


def test_sound_and_cover_art_are_no_video(tmp_path: Path) -> None:
    sound = ("-f", "lavfi", "-i", "sine=duration=1")
    run_ffmpeg(*sound, tmp_path / "sound.mp4")
    assert refusal(tmp_path / "sound.mp4").reason == Reason.NO_VIDEO_STREAM
    cover = (
        "-f",
        "lavfi",
        "-i",
        "color=red:s=32x32:d=0.04",
        "-frames:v",
        "1",
        "-c:v",
        "mjpeg",
        "-disposition:v",
        "attached_pic",
    )
    run_ffmpeg(*sound, *cover, tmp_path / "cover.mp4")
    assert refusal(tmp_path / "cover.mp4").reason == Reason.NO_VIDEO_STREAM


def test_lists_of_other_files_are_never_followed(tmp_path: Path) -> None:
    write_ramp(tmp_path / "secret.mp4", 10)
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile 'secret.mp4'\n")
    assert refusal(tmp_path / "list.mp4").reason == Reason.FORMAT_REFUSED
    (tmp_path / "live.m3u8").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    assert refusal(tmp_path / "live.m3u8").reason == Reason.FORMAT_REFUSED


def test_what_is_no_video_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    write_ramp(tmp_path / "a.mp4", 5)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    (tmp_path / "folder.mp4").mkdir()
    reasons = {name: refusal(tmp_path / f"{name}.mp4").reason for name in ("empty", "pipe", "link", "folder", "absent")}
    assert reasons == {
        "empty": Reason.EMPTY,
        "pipe": Reason.NOT_A_FILE,
        "link": Reason.NOT_A_FILE,
        "folder": Reason.NOT_A_FILE,
        "absent": Reason.MISSING,
    }


def test_text_and_pictures_under_a_video_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("not a video, " * 100)
    assert refusal(tmp_path / "text.mp4").reason == Reason.UNREADABLE
    run_ffmpeg("-f", "lavfi", "-i", "color=red:s=32x32:d=0.04", "-frames:v", "1", tmp_path / "a.png")
    assert refusal((tmp_path / "a.png").rename(tmp_path / "a.mp4")).reason == Reason.FORMAT_REFUSED


def test_every_limit_has_its_reason(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 50)
    assert refusal(path, max_pixels=1000).reason == Reason.TOO_LARGE
    assert refusal(path, min_side_px=50).reason == Reason.LIMIT
    assert refusal(path, max_frames=30).reason == Reason.LIMIT
    assert refusal(path, max_duration_s=1.5).reason == Reason.LIMIT


def test_a_decoder_that_hangs_or_crashes_costs_one_source(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 5)
    hanging = script(tmp_path / "hanging", "#!/bin/sh\n/bin/sleep 60 &\n/bin/sleep 60\n")
    crashing = script(tmp_path / "crashing", "#!/bin/sh\nkill -SEGV $$\n")
    began = time.monotonic()
    assert refusal(path, timeout_s=0.2, binary=hanging).reason == Reason.TIMEOUT
    assert time.monotonic() - began < 5
    assert refusal(path, binary=crashing).reason == Reason.DECODER_CRASH


def test_an_unknown_ffmpeg_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such program"):
        cut(write_ramp(tmp_path / "a.mp4", 5), binary=tmp_path / "nowhere")


def test_encoded_frames_come_back_in_order_and_with_the_same_bytes(tmp_path: Path) -> None:
    first, second = (video.encode(ramp(12), fps=25, crf=10, preset="ultrafast", scratch=fresh(tmp_path)) for _ in range(2))
    assert first == second
    assert numbers(decode(first)) == list(range(12))
    with pytest.raises(ConfigError, match="unheard_of"):
        video.encode(ramp(2), fps=25, crf=10, preset="unheard_of", scratch=fresh(tmp_path))


def test_slack_lengthens_clips_and_a_tail_shorter_than_a_clip_is_kept(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 50), changed(slack_frames=4))
    assert [(segment.start_frame, segment.num_frames) for segment in made.segments] == [(0, 20), (20, 20), (40, 10)]
    assert [segment.start_s for segment in made.segments] == pytest.approx([0.0, 0.8, 1.6])


def test_a_stride_keeps_every_nth_frame_by_number_and_divides_the_rate(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 50)
    made = cut(path, changed(frame_stride=3))
    assert [numbers(shown(segment)) for segment in made.segments] == [list(range(0, 48, 3))]
    assert (made.num_frames, made.fps, made.probe.fps) == (17, pytest.approx(25 / 3), 25.0)
    again = cut(path, changed(frame_stride=3, min_frames=1))
    assert (again.segments[1].start_frame, again.segments[1].start_s) == (16, pytest.approx(48 / 25))
    resampled = cut(path, changed(fps=12.5, frame_stride=2))
    assert (resampled.num_frames, resampled.fps) == (13, 6.25)


@pytest.mark.parametrize(
    "encoding",
    [{"name": "h264", "preset": "veryfast"}, {"name": "av1", "preset": 12}, {"name": "jpeg"}],
    ids=lambda encoding: encoding["name"],
)
def test_every_encoding_gives_the_same_clips_in_one_colour_space(tmp_path: Path, encoding: dict[str, object]) -> None:
    patches = np.repeat(np.repeat(COLOURS.reshape(2, 4, 3), 32, 0), 32, 1)
    frames = np.broadcast_to(patches, (20, *patches.shape))
    as_bt709 = "scale=out_color_matrix=bt709:out_range=full,format=yuvj444p,setparams=colorspace=bt709:range=pc"
    path = write_video(tmp_path / "a.mkv", frames, options=("-vf", as_bt709, "-pix_fmt", "yuvj444p", "-colorspace", "bt709"))
    clip = changed(encoding=encoding, size_px=64)
    first, second = cut(path, clip), cut(path, clip)
    assert [segment.num_frames for segment in first.segments] == [16, 4]
    assert [one.video.read_bytes() for one in first.segments] == [one.video.read_bytes() for one in second.segments]
    for segment in first.segments:
        got = shown(segment)[:, 16::32, 16::32].reshape(-1, 8, 3).astype(int)
        assert np.abs(got - COLOURS).max() <= 6
        assert _tags(segment.video) in {("yuv420p", 1, 5), ("yuv420p", 1, 6)}  # limited range, BT.601 by either name


def test_a_source_without_tags_is_taken_as_bt601(tmp_path: Path) -> None:
    frames = np.broadcast_to(np.array([200, 40, 40], np.uint8), (16, 48, 64, 3))
    made = cut(write_video(tmp_path / "a.mp4", frames, options=("-vf", "scale=out_color_matrix=bt601")))
    assert np.abs(shown(made.segments[0])[0, 24, 20].astype(int) - (200, 40, 40)).max() <= 4


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_high_dynamic_range_is_mapped_to_the_colours_it_stands_for(tmp_path: Path, transfer: str) -> None:
    patches = np.repeat(np.repeat(COLOURS.reshape(2, 4, 3), 32, 0), 32, 1)
    frames = np.broadcast_to(patches, (16, *patches.shape))
    light = "format=gbrp,setparams=color_primaries=bt709:color_trc=bt709:colorspace=gbr:range=pc,zscale=transfer=linear:npl=203"
    coded = f"zscale=transfer={transfer}:matrix=2020_ncl:range=limited:npl=203,format=yuv420p10le"
    filters = f"{light},format=gbrpf32le,zscale=primaries=2020,{coded}"
    tags = ("-c:v", "ffv1", "-pix_fmt", "yuv420p10le", "-color_trc", transfer, *HDR)
    made = cut(write_video(tmp_path / "a.mkv", frames, options=("-vf", filters, *tags)), changed(size_px=64))
    got = shown(made.segments[0])[0, 16::32, 16::32].reshape(8, 3).astype(int)
    assert np.abs(got - COLOURS).max() <= 14  # what is bright is compressed
    assert np.abs(got[:2] - COLOURS[:2]).max() <= 4
    assert (made.probe.transfer, made.probe.pixel_format) == (transfer, "yuv420p10le")


def test_ten_bits_of_standard_range_are_only_rounded(tmp_path: Path) -> None:
    frames = np.broadcast_to(np.array([180, 90, 40], np.uint8), (16, 48, 64, 3))
    made = cut(write_video(tmp_path / "a.mkv", frames, options=("-c:v", "ffv1", "-pix_fmt", "yuv422p10le")))
    assert np.abs(shown(made.segments[0])[0, 24, 20].astype(int) - (180, 90, 40)).max() <= 4
    assert made.probe.transfer == ""


def test_the_probe_tells_what_the_source_is(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 20, options=("-vf", "setfield=tff", "-flags", "+ilme+ildct", "-x264-params", "tff=1"))
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    probe = cut(tmp_path / "turned.mp4").probe
    assert (probe.codec, probe.pixel_format, probe.width_px, probe.height_px) == ("h264", "yuv420p", 64, 48)
    assert "mp4" in probe.container.split(",")
    assert (probe.rotation_deg, probe.interlaced, probe.variable_rate) == (90, True, False)
    assert (probe.fps, probe.duration_s, probe.num_frames, probe.decode_errors) == (25.0, pytest.approx(0.8), 20, 0)
    uneven = ("-vf", "select=lt(n\\,10)+not(mod(n\\,4))", "-fps_mode", "passthrough")
    assert cut(write_ramp(tmp_path / "b.mkv", 50, options=uneven)).probe.variable_rate


def test_a_tolerant_policy_accepts_a_few_bad_frames_and_counts_them(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (58, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", noise, options=("-g", "1"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    path.write_bytes(data)
    assert refusal(path).reason == Reason.CORRUPT
    made = cut(path, changed(policy="tolerant", max_error_share=0.1))
    assert 1 <= made.probe.decode_errors <= 3
    assert made.probe.num_frames >= 56
    assert refusal(path, changed(policy="tolerant", max_error_share=0.001)).reason == Reason.CORRUPT
    assert refusal(cut_off(path), changed(policy="tolerant", max_error_share=1.0)).reason == Reason.TRUNCATED


def test_only_h264_clips_can_have_motion_vectors() -> None:
    with pytest.raises(ValueError, match="motion_vectors: false"):
        ClipConfig.model_validate({"encoding": {"name": "jpeg"}})


def _tags(path: Path) -> tuple[str, int, int]:
    """Pixel format, range and matrix of a clip's first frame, as PyAV numbers them."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        return frame.format.name, int(frame.color_range), int(frame.colorspace)
