"""A container is closed when everything that its headers promise is there, wherever a copy of it has stopped."""

import io
import random
import struct
from pathlib import Path

import pytest

from stages.containers import unclosed
from tests.stages.videos import write_ramp

FORMS = {
    "index_last.mp4": (),
    "index_first.mp4": ("-movflags", "+faststart"),
    "quicktime.mov": (),
    "matroska.mkv": (),
    "web.webm": ("-c:v", "libvpx", "-deadline", "realtime"),
    "riff.avi": ("-c:v", "mpeg4"),
}


def said(data: bytes) -> str:
    return unclosed(io.BytesIO(data), len(data))


@pytest.fixture(scope="module", params=FORMS, ids=list(FORMS))
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_ramp(tmp_path_factory.mktemp("closed") / request.param, 12, options=FORMS[request.param])
    return path.read_bytes()


def test_a_whole_file_is_closed(video: bytes) -> None:
    assert said(video) == ""


def test_no_part_of_a_file_is_closed(video: bytes) -> None:
    draw = random.Random(7)
    places = {1, 8, 15, 16, 40, len(video) - 1, *(draw.randrange(1, len(video)) for _ in range(200))}
    assert [place for place in sorted(places) if not said(video[:place])] == []


def test_space_that_was_set_aside_before_a_copy_is_not_closed() -> None:
    assert said(bytes(4096)).startswith("begins with zeros")


def test_a_file_without_bytes_is_not_closed() -> None:
    assert said(b"") == "holds no byte"


def test_what_follows_a_whole_file_does_not_open_it_again(tmp_path: Path) -> None:
    video = write_ramp(tmp_path / "a.mp4", 12).read_bytes()
    assert said(video + b"\0" * 64) == ""
    assert said(video + struct.pack(">I4s", 8, b"free")) == ""
    assert "promises a box free" in said(video + struct.pack(">I4s", 80, b"free"))


def test_boxes_of_64_bits_and_up_to_the_end_are_understood() -> None:
    moov = struct.pack(">I4s", 16, b"moov") + bytes(8)
    large = struct.pack(">I4sQ", 1, b"mdat", 24) + bytes(8)
    last = struct.pack(">I4s", 0, b"mdat") + bytes(100)
    assert said(moov + large) == said(moov + last) == ""
    assert "promises a box mdat" in said(moov + large[:-1])
    assert said(large) == "has no moov"
    assert said(moov) == "has no mdat"


def test_matroska_of_unknown_length_is_believed() -> None:
    head = b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67"
    assert said(head + b"\xff" + bytes(100)) == said(head + b"\x01" + b"\xff" * 7 + bytes(100)) == ""
    assert said(head + b"\xc0" + bytes(100)) == ""
    assert "promises a segment" in said(head + b"\x4e\x20" + bytes(100))


def test_a_recording_whose_header_is_filled_in_at_its_end_is_not_closed() -> None:
    assert said(b"RIFF" + bytes(4) + b"AVI LIST" + bytes(100)).startswith("has a header that was not filled in")


@pytest.mark.parametrize("data", [b"\x47" + bytes(range(1, 188)), b"GIF89a" + bytes(range(50)), b"#EXTM3U\nclip.mp4\n" * 9])
def test_of_other_formats_nothing_is_said(data: bytes) -> None:
    assert said(data) == ""
