"""Bad and odd inputs, each with what must become of it.

They are made by hand or with the same ffmpeg that reads them; nothing is downloaded.
"""

import functools
import gzip
import io
import os
import socket
import stat
import subprocess
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from stages.errors import Reason
from stages.video_command import ffmpeg_binary

FRAMES = 20
"""Of a video, unless its case says otherwise."""

Make = Callable[[Path], None]


class Clips(NamedTuple):
    """The fate of a source that is committed: the frames cut from it, and the size of its clips."""

    num_frames: int = FRAMES
    width_px: int = 42
    height_px: int = 32


class Case(NamedTuple):
    """A source, and what must become of it."""

    name: str
    """Below the folder of sources."""
    make: Make
    """Writes it."""
    expected: Clips | Reason | None
    """None: it is no source at all."""
    why: str


def cases(outside: Path, port: int) -> Iterator[Case]:
    """All cases.

    Args:
        outside: a folder with ``canary.mp4``, which nothing may open.
        port: of this machine, to which nothing may connect.
    """
    canary = str(outside / "canary.mp4")
    yield from _cut_off()
    yield from _no_video()
    yield from _clocks()
    yield from _pictures()
    yield from _damaged()
    yield from _containers()
    yield from _lists_of_files(canary, f"http://127.0.0.1:{port}/canary.mp4")
    yield from _not_regular(canary)
    yield from _names()
    yield from _limits()


# what is cut off


def _cut_off() -> Iterator[Case]:
    fast = ("-movflags", "+faststart")
    yield Case("moov_at_end.mp4", cut(noise(), 0.6), Reason.TRUNCATED, "the index would have come last")
    yield Case("in_the_moov.mp4", cut(noise(), 0.995), Reason.TRUNCATED, "the index itself is cut")
    yield Case("faststart.mp4", cut(noise(*fast), 0.6), Reason.TRUNCATED, "fewer frames than the index names")
    yield Case("faststart_late.mp4", cut(noise(*fast), 0.9), Reason.TRUNCATED, "only the last frames are lacking")
    yield Case("faststart_early.mp4", cut(noise(*fast), 0.06), Reason.TRUNCATED, "the index and hardly a frame")
    yield Case("first_bytes.mp4", cut(noise(), 0.0005), Reason.TRUNCATED, "the type of the file and no more")
    yield Case("cut.mkv", cut(noise(), 0.6), Reason.TRUNCATED, "ends within a cluster")
    yield Case("cut.webm", cut(noise("-c:v", "libvpx", "-b:v", "2M"), 0.6), Reason.TRUNCATED, "ends within a cluster")
    yield Case(
        "cut.avi",
        cut(noise("-c:v", "mpeg4", "-q:v", "2"), 0.6),
        Reason.CORRUPT,
        "a packet is cut; without its index nothing says how long it was",
    )
    yield Case("cut.flv", cut(noise("-c:v", "flv", "-q:v", "2"), 0.6), Reason.TRUNCATED, "the header names a longer duration")
    yield Case("cut.ts", cut(noise(), 0.6), Reason.CORRUPT, "a packet is cut; nothing says how long it was")
    yield Case(
        "fragment.mp4",
        cut(noise("-movflags", "+frag_keyframe+empty_moov", "-g", "10"), 0.8),
        Reason.TRUNCATED,
        "the last fragment is cut",
    )


# what holds no video


def _no_video() -> Iterator[Case]:
    yield Case("empty.mp4", Path.touch, Reason.EMPTY, "no byte")
    yield Case("one_byte.mp4", data(b"\0"), Reason.UNREADABLE, "no container")
    yield Case("random.mp4", data(np.random.default_rng(3).bytes(50_000)), Reason.UNREADABLE, "no container")
    yield Case("zeros.mp4", sparse(1 << 20), Reason.UNREADABLE, "what a crashed download leaves")
    yield Case("text.mp4", data(b"no video, " * 500), Reason.UNREADABLE, "no container")
    yield Case(
        "page.mp4", data(b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n"), Reason.UNREADABLE, "an error page"
    )
    yield Case("zip.mp4", data(_zip()), Reason.UNREADABLE, "an archive")
    yield Case(
        "gzip.mp4", data(gzip.compress(b"video" * 1000, mtime=0)), Reason.FORMAT_REFUSED, "an archive; some music comes as one"
    )
    yield Case("pdf.mp4", data(b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n" * 20), Reason.UNREADABLE, "a document")
    yield Case(
        "png.mp4", ffmpeg(GREY, "-frames:v", "1", "-f", "image2", "-c:v", "png"), Reason.FORMAT_REFUSED, "a still picture"
    )
    yield Case(
        "jpg.mp4", ffmpeg(GREY, "-frames:v", "1", "-f", "image2", "-c:v", "mjpeg"), Reason.FORMAT_REFUSED, "a still picture"
    )
    yield Case("wav.mp4", ffmpeg(SINE, "-f", "wav"), Reason.FORMAT_REFUSED, "a container of sound")
    yield Case("sound.mp4", ffmpeg(SINE), Reason.NO_VIDEO_STREAM, "sound alone")
    yield Case("sound.mkv", ffmpeg(SINE), Reason.NO_VIDEO_STREAM, "sound alone")
    yield Case("subtitles.mkv", _subtitles, Reason.NO_VIDEO_STREAM, "subtitles alone")
    yield Case("cover.mp4", ffmpeg(SINE, *GREY, "-frames:v", "1", "-c:v", "mjpeg", *COVER), Reason.NO_VIDEO_STREAM, "cover art")
    yield Case("init.mp4", _init_segment, Reason.NO_FRAMES, "the head of a stream without its segments")


# clocks


def _clocks() -> Iterator[Case]:
    passthrough = ("-fps_mode", "passthrough")
    stream = ("-f", "mpegts")
    variable = ffmpeg(VIDEO, "-vf", r"select=lt(n\,8)+not(mod(n\,3))", *passthrough)
    yield Case("variable_rate.mkv", variable, Clips(), "every frame is kept, none is doubled")
    gap = ffmpeg(VIDEO, "-vf", r"setpts=PTS+gte(N\,10)*9/TB", *passthrough)
    yield Case("gap.mkv", gap, Reason.TIMESTAMPS, "a hole of 9 s, which a constant rate would fill with frames")
    clusters = ffmpeg(VIDEO, "-c:v", "mjpeg", "-cluster_time_limit", "400")
    back = patched(clusters, b"\xe7\x82\x01\xe0\xa3", b"\xe7\x82\x00\x10\xa3")
    yield Case("back.mkv", back, Reason.TIMESTAMPS, "a part in the middle says that it is shown at the beginning")
    again = twice(ffmpeg(VIDEO, *stream), ffmpeg(VIDEO, *stream))
    yield Case("again.ts", again, Reason.CORRUPT, "the clock starts anew in the middle: to the demuxer, packets are lost")
    told = (*stream, "-mpegts_flags", "+initial_discontinuity")
    restarts = twice(ffmpeg(VIDEO, *told), ffmpeg(VIDEO, *told))
    yield Case("restarts.ts", restarts, Clips(2 * FRAMES), "the clock starts anew and says so, as where recordings are joined")
    yield Case("late_start.mp4", ffmpeg(VIDEO, "-output_ts_offset", "100"), Clips(), "begins at 100 s")
    yield Case("late_start.ts", ffmpeg(VIDEO, "-output_ts_offset", "100"), Clips(), "begins at 100 s")
    yield Case("fast.mp4", ffmpeg(lavfi("testsrc2=s=64x48:r=1000")), Clips(), "1000 frames per second")
    yield Case("slow.mp4", ffmpeg(lavfi("testsrc2=s=64x48:r=0.5"), "-frames:v", "6"), Clips(6), "a frame every two seconds")
    yield Case("still.mp4", ffmpeg(GREY), Clips(), "nothing moves")
    yield Case("one_frame.mp4", ffmpeg(VIDEO, "-frames:v", "1"), Reason.TOO_SHORT, "a picture in a container of video")
    yield Case("three_frames.mp4", ffmpeg(VIDEO, "-frames:v", "3"), Reason.TOO_SHORT, "one less than min_frames")
    yield Case("longer_sound.mp4", ffmpeg((*VIDEO, *SINE), "-qp", "9"), Clips(), "the sound goes on")
    yield Case("edited.mp4", edited, Clips(10), "an edit list leaves out the first ten frames")


# pictures


def _pictures() -> Iterator[Case]:
    yield Case("rotated.mp4", turned(90), Clips(width_px=32, height_px=42), "held upright")
    yield Case("upside_down.mp4", turned(180), Clips(), "held upside down")
    yield Case("wide_pixels.mp4", ffmpeg(VIDEO, "-vf", "setsar=2"), Clips(width_px=86), "pixels twice as wide as high")
    yield Case("odd.mkv", ffmpeg(lavfi("testsrc2=s=65x49:r=25"), "-c:v", "ffv1"), Clips(), "odd sides")
    yield Case(
        "thin.mkv", ffmpeg(lavfi("testsrc2=s=640x16:r=25"), "-c:v", "ffv1"), Clips(width_px=1280), "forty times as wide as high"
    )
    yield Case("10_bit.mkv", ffmpeg(VIDEO, "-pix_fmt", "yuv420p10le"), Clips(), "10 bits per colour")
    yield Case("hdr.mkv", ffmpeg(VIDEO, "-pix_fmt", "yuv420p10le", *PQ), Clips(), "high dynamic range, PQ")
    yield Case("hlg.mkv", ffmpeg(VIDEO, "-pix_fmt", "yuv420p10le", *HLG), Clips(), "high dynamic range, HLG")
    yield Case("full_range.mp4", ffmpeg(VIDEO, "-pix_fmt", "yuvj420p", "-color_range", "pc"), Clips(), "0 to 255")
    yield Case("444.mp4", ffmpeg(VIDEO, "-pix_fmt", "yuv444p"), Clips(), "full colour")
    yield Case("gray.mkv", ffmpeg(VIDEO, "-c:v", "ffv1", "-pix_fmt", "gray"), Clips(), "no colour")
    yield Case("gray16.mkv", ffmpeg(VIDEO, "-c:v", "ffv1", "-pix_fmt", "gray16le"), Clips(), "no colour, 16 bits")
    yield Case("rgb.mkv", ffmpeg(VIDEO, "-c:v", "ffv1", "-pix_fmt", "bgr0"), Clips(), "red, green and blue")
    alpha = ffmpeg(
        VIDEO, "-vf", "format=yuva420p,colorchannelmixer=aa=0.5", "-pix_fmt", "yuva420p", "-c:v", "libvpx-vp9", "-cpu-used", "8"
    )
    yield Case("alpha.webm", alpha, Clips(), "half transparent")
    yield Case(
        "interlaced.mp4",
        ffmpeg(VIDEO, "-flags", "+ilme+ildct", "-vf", "setfield=tff", "-x264-params", "tff=1"),
        Clips(),
        "fields",
    )
    yield Case("palette.gif", ffmpeg(VIDEO), Clips(), "256 colours")
    yield Case("claims_huge.gif", _huge_gif, Reason.TOO_LARGE, "claims 65535 x 65535 pixels in a few bytes")
    yield Case("claims_huge_png.mp4", data(_huge_png()), Reason.FORMAT_REFUSED, "claims 60000 x 60000 pixels in a few bytes")
    large = ffmpeg(lavfi("color=gray:s=8192x4352:r=25"), "-frames:v", "1", "-c:v", "mjpeg", "-q:v", "31")
    yield Case("8k.avi", large, Reason.TOO_LARGE, "8192 x 4352 pixels")
    yield Case("tiny.mkv", ffmpeg(lavfi("testsrc2=s=8x8:r=25"), "-c:v", "ffv1"), Reason.LIMIT, "8 x 8 pixels")
    small, other = (ffmpeg(lavfi(f"testsrc2=s={size}:r=25"), "-f", "mpegts") for size in ("64x48", "96x64"))
    yield Case("size_changes.ts", twice(small, other), Reason.CORRUPT, "64 x 48 and then 96 x 64 pixels")


# what is damaged within


def _damaged() -> Iterator[Case]:
    fast = noise("-movflags", "+faststart")
    yield Case("bit_rot.mp4", rotten(fast), Reason.CORRUPT, "a few bytes per kilobyte flipped")
    yield Case("hole.mp4", hole(fast), Reason.CORRUPT, "a block of zeros, as a lost sector leaves it")
    yield Case("bit_rot.mkv", rotten(noise(), every_bytes=5000), Reason.CORRUPT, "a few bytes flipped")
    yield Case(
        "noise.mkv", copied(noise(), "-bsf:v", "noise=amount=20"), Reason.CORRUPT, "coded pictures damaged, container whole"
    )
    key = "76a6c65c5ea762046bd749a2e632ccbb"
    secret = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", key, "-encryption_kid", key)
    yield Case("encrypted.mp4", noise(*secret), Reason.CORRUPT, "encrypted")
    yield Case("unknown_codec.mp4", patched(noise(), b"avc1", b"zz01"), Reason.FORMAT_REFUSED, "a codec that nobody knows")
    yield Case("wrong_codec.mp4", patched(noise(), b"avc1", b"mp4v"), Reason.CORRUPT, "another codec than it says")
    yield Case(
        "garbage_before.mp4", around(noise(), before=b"garbage " * 200), Reason.UNREADABLE, "no container at the beginning"
    )
    yield Case("garbage_after.mp4", around(noise(), after=b"garbage " * 200), Clips(52), "the index names all frames")


# containers and codecs


def _containers() -> Iterator[Case]:
    yield Case("matroska.mp4", ffmpeg(VIDEO, "-f", "matroska"), Clips(), "not what its name says")
    yield Case("UPPER.MP4", ffmpeg((*VIDEO,), "-f", "mp4", "-qp", "1"), Clips(), "a name in capitals")
    yield Case("raw.h264", ffmpeg(VIDEO, "-qp", "2"), Clips(), "no container, no clock")
    yield Case(
        "raw.hevc", ffmpeg(VIDEO, "-c:v", "libx265", "-x265-params", "log-level=none"), Clips(), "no container, no clock"
    )
    yield Case("fragmented.mp4", ffmpeg(VIDEO, "-movflags", "+frag_keyframe+empty_moov"), Clips(), "an index per fragment")
    yield Case("two_videos.mkv", ffmpeg((*VIDEO, *GREY), "-map", "1", "-map", "0"), Clips(), "the first of two is taken")
    yield Case("many_streams.mkv", ffmpeg(VIDEO, *(("-map", "0") * 33), "-c:v", "mjpeg"), Reason.LIMIT, "33 streams")
    yield Case("sound_and_cover.mp4", ffmpeg((*VIDEO, *SINE), "-qp", "3"), Clips(), "video with sound")
    for name, codec in (
        ("mpeg4.avi", "mpeg4"), ("mpeg2.mpg", "mpeg2video"), ("mpeg1.mpg", "mpeg1video"), ("motion.avi", "mjpeg"),
        ("old.wmv", "wmv2"), ("old.flv", "flv"), ("old.3gp", "h263"), ("free.ogv", "libtheora"), ("web.webm", "libvpx"),
        ("film.mov", "prores"), ("new.mkv", "libsvtav1"), ("lossless.mkv", "huffyuv"), ("raw.avi", "rawvideo"),
    ):  # fmt: skip
        size = "176x144" if codec == "h263" else "64x48"
        expected = Clips(width_px=40) if codec == "h263" else Clips()
        yield Case(
            name, ffmpeg(lavfi(f"testsrc2=s={size}:r=25,{GRAIN}"), "-c:v", codec, "-q:v", "4"), expected, f"codec {codec}"
        )


# what names other files


def _lists_of_files(canary: str, url: str) -> Iterator[Case]:
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\n{canary}\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n"
    relative = os.path.join("..", Path(canary).parent.name, Path(canary).name)
    mpd = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
        "<Period>"
        f'<AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{url}</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>"
    )
    sdp = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    refused = Reason.FORMAT_REFUSED
    yield Case("playlist.m3u8", data(hls.encode()), refused, "HLS; listed because its labels name it")
    yield Case("playlist.mp4", data(hls.encode() + b"# again\n"), Reason.UNREADABLE, "HLS under another name")
    yield Case("concat.mp4", data(f"ffconcat version 1.0\nfile '{relative}'\n".encode()), refused, "a list of relative paths")
    yield Case("concat_url.mp4", data(f"ffconcat version 1.0\nfile '{url}'\n".encode()), refused, "a list of URLs")
    yield Case("dash.mp4", data(mpd.encode()), Reason.UNREADABLE, "DASH, which this ffmpeg does not know")
    yield Case("session.mp4", data(sdp.encode()), refused, "SDP, which opens ports")
    yield Case("wrapped.mp4", data(f"{relative}\n{url}\n".encode()), Reason.UNREADABLE, "a list in no format")


# what is no regular file


def _not_regular(canary: str) -> Iterator[Case]:
    no = Reason.NOT_A_FILE
    yield Case("pipe.mp4", os.mkfifo, no, "a pipe, which would be waited for forever")
    yield Case("link.mp4", lambda path: path.symlink_to(canary), no, "a link to a video: what it points at may change")
    yield Case("dangling.mp4", lambda path: path.symlink_to("nowhere"), no, "a link to nothing")
    yield Case("loop.mp4", lambda path: path.symlink_to(path), no, "a link to itself")
    yield Case("folder_link.mp4", lambda path: path.symlink_to(Path(canary).parent), no, "a link to a folder")
    yield Case("socket.mp4", _socket, no, "a socket")
    yield Case("folder.mp4/inner.mp4", ffmpeg(VIDEO, "-qp", "4"), Clips(), "a folder that is called like a video")
    yield Case("gone.mp4", lambda path: None, Reason.MISSING, "named in the labels, and not there")
    if os.geteuid() == 0:
        yield Case(
            "device.mp4", lambda path: os.mknod(path, stat.S_IFCHR | 0o644, os.makedev(1, 5)), no, "a device that never ends"
        )
    else:
        yield Case("closed.mp4", _closed, Reason.UNREADABLE, "nobody may read it")


# names


def _names() -> Iterator[Case]:
    names = (
        "a:b.mp4", "-i.mp4", "new\nline.mp4", "quote'\".mp4", "concat:a|b.mp4", "%06d.mp4", " space .mp4", "back\\slash.mp4",
        "*?[a].mp4", "$(touch x);&.mp4", "\u65e5\u672c\U0001f3ac.mp4", os.fsdecode(b"latin \xe9\xff.mp4"), "n" * 251 + ".mp4",
        "http:__127.0.0.1_x.mp4", "\x01\x7f.mp4",
    )  # fmt: skip
    for number, name in enumerate(names):
        yield Case(name, ffmpeg(VIDEO, "-qp", str(10 + number)), Clips(), "only a name")
    yield Case("first.mp4", ffmpeg(VIDEO, "-qp", "5"), Clips(), "the first of two files with the same bytes")
    yield Case("same.mp4", ffmpeg(VIDEO, "-qp", "5"), Reason.DUPLICATE, "the second of two files with the same bytes")
    yield Case(".hidden.mp4", ffmpeg(VIDEO), None, "a hidden file")
    yield Case(".hidden/video.mp4", ffmpeg(VIDEO), None, "a file in a hidden folder")
    yield Case("video.mp4.part", ffmpeg(VIDEO, "-f", "mp4"), None, "not called like a video")


# limits


MAX_FRAMES = 100
MAX_DURATION_S = 30.0


def _limits() -> Iterator[Case]:
    short = ffmpeg(lavfi("testsrc2=s=64x48:r=25"), "-frames:v", "101")
    yield Case("many_frames.mp4", short, Reason.LIMIT, "one frame more than max_frames")
    yield Case("long.mp4", ffmpeg(lavfi("testsrc2=s=64x48:r=1"), "-frames:v", "35"), Reason.LIMIT, "longer than max_duration_s")
    yield Case("all_frames.mp4", ffmpeg(lavfi("testsrc2=s=64x48:r=25"), "-frames:v", "100"), Clips(100), "exactly max_frames")


# how they are made


def lavfi(source: str) -> tuple[str, ...]:
    return ("-f", "lavfi", "-i", source)


VIDEO = lavfi("testsrc2=s=64x48:r=25")
GRAIN = "noise=alls=60:allf=t:all_seed=1"
NOISE = lavfi(f"testsrc2=s=64x48:r=25,{GRAIN}")
GREY = lavfi("color=gray:s=64x48:r=25")
SINE = lavfi("sine=duration=3")
COVER = ("-disposition:v", "attached_pic")
PQ = ("-vf", "setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc")
HLG = ("-vf", "setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc")

_ENCODERS = {".mp4": "libx264", ".MP4": "libx264", ".mkv": "libx264", ".ts": "libx264", ".h264": "libx264"}


def ffmpeg(inputs: tuple[str, ...], *options: str) -> Make:
    """A file that ffmpeg writes from ``inputs``."""
    return functools.partial(_ffmpeg, inputs, options)


def _ffmpeg(inputs: tuple[str, ...], options: tuple[str, ...], path: Path) -> None:
    codec = _ENCODERS.get(path.suffix)
    given = options if "-c:v" in options or codec is None or "-i" not in inputs else ("-c:v", codec, *options)
    fast = ("-preset", "ultrafast") if codec and not {"-c:v", "-c"} & set(options) else ()
    frames = () if "-frames:v" in options or "-t" in options else ("-frames:v", str(FRAMES))
    binary = [str(ffmpeg_binary(None)), "-nostdin", "-v", "error", "-y"]
    argv = [*binary, *inputs, *given, *fast, *frames, "-threads", "1", "-fflags", "+bitexact", f"file:{path}"]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, (path, done.stderr)


def noise(*options: str) -> Make:
    """A video that does not compress, so that a cut or a flipped byte hits a picture."""
    return ffmpeg(NOISE, "-frames:v", "52", *options)


def data(content: bytes) -> Make:
    return lambda path: _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def sparse(size_bytes: int) -> Make:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size_bytes)

    return make


def changed(make: Make, change: Callable[[bytes], bytes]) -> Make:
    """The file that ``make`` writes, with other bytes."""

    def made(path: Path) -> None:
        make(path)
        _write(path, change(path.read_bytes()))

    return made


def cut(make: Make, share: float) -> Make:
    return changed(make, lambda content: content[: max(16, int(len(content) * share))])


def patched(make: Make, old: bytes, new: bytes) -> Make:
    return changed(make, lambda content: content.replace(old, new))


def around(make: Make, *, before: bytes = b"", after: bytes = b"") -> Make:
    return changed(make, lambda content: before + content + after)


def rotten(make: Make, *, every_bytes: int = 300) -> Make:
    """One byte of so many flipped, in the middle of the file."""

    def rot(content: bytes) -> bytes:
        values = np.frombuffer(content, dtype=np.uint8).copy()
        at = np.random.default_rng(0).integers(len(values) // 3, len(values) * 2 // 3, len(values) // every_bytes)
        values[at] ^= 0x55
        return values.tobytes()

    return changed(make, rot)


def hole(make: Make) -> Make:
    def lose(content: bytes) -> bytes:
        middle = len(content) // 2
        return content[:middle] + bytes(4096) + content[middle + 4096 :]

    return changed(make, lose)


def twice(first: Make, second: Make) -> Make:
    """Two files one after the other in one."""

    def made(path: Path) -> None:
        first(path)
        head = path.read_bytes()
        second(path)
        _write(path, head + path.read_bytes())

    return made


def copied(make: Make, *options: str) -> Make:
    """The file that ``make`` writes, passed through ffmpeg without being encoded again."""

    def made(path: Path) -> None:
        whole = path.with_name(f".{path.name}.whole{path.suffix}")
        make(whole)
        _ffmpeg(("-i", f"file:{whole}"), ("-c", "copy", "-c:v", "copy", *options), path)
        whole.unlink()

    return made


def turned(degrees: int) -> Make:
    def made(path: Path) -> None:
        whole = path.with_name(f".{path.name}.whole{path.suffix}")
        _ffmpeg(VIDEO, ("-qp", "6"), whole)
        _ffmpeg(("-display_rotation", str(degrees), "-i", f"file:{whole}"), ("-c", "copy", "-c:v", "copy"), path)
        whole.unlink()

    return made


def edited(path: Path) -> None:
    whole = path.with_name(f".{path.name}.whole{path.suffix}")
    _ffmpeg(VIDEO, ("-qp", "7", "-g", "100", "-bf", "0"), whole)
    _ffmpeg(("-ss", "0.4", "-i", f"file:{whole}"), ("-c", "copy", "-c:v", "copy"), path)
    whole.unlink()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("video.mp4", b"not really")
    return file.getvalue()


def _huge_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    side = (60_000).to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", side + side + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def _huge_gif(path: Path) -> None:
    _ffmpeg(VIDEO, (), path)
    content = path.read_bytes()
    _write(path, content[:6] + b"\xff\xff\xff\xff" + content[10:])


def _init_segment(path: Path) -> None:
    _ffmpeg(VIDEO, ("-movflags", "+frag_keyframe+empty_moov"), path)
    content = path.read_bytes()
    _write(path, content[: content.index(b"moof") - 4])


def _subtitles(path: Path) -> None:
    text = path.with_name(".text.srt")
    text.write_text("1\n00:00:00,000 --> 00:00:02,000\nhello\n")
    argv = [str(ffmpeg_binary(None)), "-nostdin", "-v", "error", "-y", "-i", f"file:{text}", f"file:{path}"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    text.unlink()


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)  # the address of a socket is at most 108 bytes long
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def _closed(path: Path) -> None:
    _ffmpeg(VIDEO, ("-qp", "8"), path)
    path.chmod(0)


class Growing:
    """A file that somebody writes to for as long as the block lasts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> None:
        self._path.write_bytes(b"\0\0\0\x18ftypmp42")
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _write(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            while not self._done.wait(0.01):
                file.write(bytes(100))
