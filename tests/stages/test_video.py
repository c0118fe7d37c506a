"""Sources become clips of exactly the frames they hold, or are refused with a reason that fits."""

import os
import time
from pathlib import Path

import numpy as np
import pytest

from stages import video, video_log
from stages.errors import ArtifactDamaged, ConfigError, MediaError, Reason
from stages.video import Cut
from stages.video_command import ClipConfig, Limits
from stages.video_process import Finished, execute
from tests.stages.videos import numbers, ramp, run_ffmpeg, write_ramp, write_video

CLIP = ClipConfig(num_frames=16, min_frames=4, size_px=32, preset="ultrafast", crf=10)


def cut(path: Path, clip: ClipConfig = CLIP, limits: Limits | None = None, binary: Path | None = None) -> Cut:
    scratch = path.parent / "scratch" / str(time.monotonic_ns())
    scratch.mkdir(parents=True)
    return video.cut(path, clip=clip, limits=limits or Limits(), scratch=scratch, binary=binary)


def refusal(path: Path, clip: ClipConfig = CLIP, limits: Limits | None = None, binary: Path | None = None) -> MediaError:
    with pytest.raises(MediaError) as raised:
        cut(path, clip, limits, binary)
    assert str(path.parent) not in raised.value.detail, "a stored detail must not depend on where the source lies"
    return raised.value


def cut_off(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_segments_hold_exactly_the_frames_of_the_source_in_order(tmp_path: Path) -> None:
    made = cut(write_ramp(tmp_path / "a.mp4", 40))
    assert [(segment.start_frame, segment.num_frames) for segment in made.segments] == [(0, 16), (16, 16), (32, 8)]
    shown = [number for segment in made.segments for number in numbers(video.decode(segment.data))]
    assert shown == list(range(40))


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
    assert cut(path) == cut(path)


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
    assert video.decode(made.segments[0].data).shape == (5, size[1], size[0], 3)


def test_rotation_is_applied(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 5)
    run_ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "turned.mp4")
    made = cut(tmp_path / "turned.mp4")
    assert (made.width_px, made.height_px) == (32, 42)


def test_only_frames_flagged_as_interlaced_lose_their_combs(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).integers(40, 200, (12, 2, 1, 1), dtype=np.uint8)
    frames = np.broadcast_to(np.tile(fields, (1, 24, 64, 3)), (12, 48, 64, 3))
    clip = ClipConfig(num_frames=16, min_frames=4, size_px=48, crf=5)

    def combs(name: str, options: tuple[str, ...]) -> float:
        path = write_video(tmp_path / name, frames, options=("-qp", "0", *options))
        shown = video.decode(cut(path, clip).segments[0].data).astype(float)
        return float(np.abs(np.diff(shown, axis=1)).mean())

    progressive = combs("progressive.mp4", ())
    assert progressive > 20
    assert combs("interlaced.mp4", ("-flags", "+ilme+ildct", "-vf", "setfield=tff", "-x264-params", "tff=1")) < progressive / 3


def test_native_rate_keeps_every_frame_and_another_rate_resamples(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 20, fps=30)
    assert (cut(path).num_frames, cut(path).fps) == (20, 30.0)
    resampled = cut(path, CLIP.model_copy(update={"fps": 15.0}))
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
    assert refusal(path, CLIP.model_copy(update={"fps": 25.0})).reason == Reason.TIMESTAMPS


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
    assert refusal(path, limits=Limits(max_pixels=1000)).reason == Reason.TOO_LARGE
    assert refusal(path, limits=Limits(min_side_px=50)).reason == Reason.LIMIT
    assert refusal(path, limits=Limits(max_frames=30)).reason == Reason.LIMIT
    assert refusal(path, limits=Limits(max_duration_s=1.5)).reason == Reason.LIMIT


def test_a_decoder_that_hangs_or_crashes_costs_one_source(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 5)
    hanging, crashing = tmp_path / "hanging", tmp_path / "crashing"
    hanging.write_text("#!/bin/sh\n/bin/sleep 60 &\n/bin/sleep 60\n")
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    hanging.chmod(0o755)
    crashing.chmod(0o755)
    began = time.monotonic()
    assert refusal(path, limits=Limits(timeout_s=0.2), binary=hanging).reason == Reason.TIMEOUT
    assert time.monotonic() - began < 5
    assert refusal(path, binary=crashing).reason == Reason.DECODER_CRASH


def test_an_unknown_ffmpeg_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such program"):
        cut(write_ramp(tmp_path / "a.mp4", 5), binary=tmp_path / "nowhere")


def test_a_full_disk_is_no_fault_of_the_source() -> None:
    log = "[out#0/segment @ 0x55] [error] Error writing trailer: No space left on device\n"
    with pytest.raises(OSError, match="no space left"):
        video_log.check_end(Finished(exit_code=1, timed_out=False, log=log), video_log.read_log(log))


def test_a_killed_child_takes_its_own_children_along(tmp_path: Path) -> None:
    script = "/bin/sleep 60 & echo $! > child; wait"
    finished = execute(["/bin/sh", "-c", script], folder=tmp_path, timeout_s=0.3, bounds={})
    child = int((tmp_path / "child").read_text())
    assert finished.timed_out
    deadline = time.monotonic() + 5
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _lives(child)


def test_a_long_log_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    loop = "i=0; while [ $i -lt 9000 ]; do echo 'a line of thirty two characters..'; i=$((i+1)); done"
    script = f"exec >&2; echo first; {loop}; echo last"
    finished = execute(["/bin/sh", "-c", script], folder=tmp_path, timeout_s=30, bounds={})
    assert finished.log.startswith("first\n")
    assert finished.log.endswith("last\n")
    assert len(finished.log) < 150_000


def test_encoded_frames_come_back_in_order_and_with_the_same_bytes(tmp_path: Path) -> None:
    first, second = (
        video.encode(ramp(12), fps=25, crf=10, preset="ultrafast", scratch=_folder(tmp_path, name)) for name in "ab"
    )
    assert first == second
    assert numbers(video.decode(first)) == list(range(12))
    with pytest.raises(ConfigError, match="unheard_of"):
        video.encode(ramp(2), fps=25, crf=10, preset="unheard_of", scratch=_folder(tmp_path, "c"))


def test_a_damaged_clip_is_never_decoded_in_part(tmp_path: Path) -> None:
    data = video.encode(ramp(12), fps=25, crf=10, preset="ultrafast", scratch=_folder(tmp_path, "a"))
    for broken in (b"", data[:100], data[:-500]):
        with pytest.raises(ArtifactDamaged):
            video.decode(broken)


def _folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def _lives(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().split(")")[1].split()[0] != "Z"
