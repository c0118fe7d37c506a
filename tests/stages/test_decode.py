"""A decoded window is exactly the frames and the crop that were asked for, in the colours that were stored."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from stages.errors import ArtifactDamaged
from stages.video_decode import Crop, decode
from tests.stages import clip_files
from tests.stages.clip_files import AV1, COLOURS, H264, H264_444, JPEG_FULL, JPEG_LIMITED, encoded, patches, told

NUM_FRAMES = 40
CODECS = {"h264": H264, "av1": AV1, "jpeg full": JPEG_FULL, "jpeg limited": JPEG_LIMITED, "4:4:4": H264_444}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return {name: encoded(tmp_path_factory.mktemp("c"), patches(NUM_FRAMES), codec) for name, codec in CODECS.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_all_frames_come_in_order_and_in_their_colours(clips: dict[str, bytes], codec: str) -> None:
    frames = decode(clips[codec])
    assert frames.shape == (NUM_FRAMES, 48, 72, 3)
    assert told(frames) == list(range(NUM_FRAMES))
    shown = [frames[:, 4:20, 12 * number + 3 : 12 * number + 9].mean(axis=(0, 1, 2)) for number in range(len(COLOURS))]
    assert np.abs(np.array(shown) - COLOURS).max() < 6


@pytest.mark.parametrize("codec", CODECS)
def test_a_window_is_a_part_of_the_whole(clips: dict[str, bytes], codec: str) -> None:
    whole = decode(clips[codec])
    for start, count in [(0, 1), (1, 15), (15, 2), (16, 16), (17, 20), (31, 9), (39, 1), (0, 40)]:
        assert (decode(clips[codec], start_frame=start, num_frames=count) == whole[start : start + count]).all(), (start, count)


@pytest.mark.parametrize("codec", CODECS)
def test_a_crop_shows_the_very_pixels_of_the_whole(clips: dict[str, bytes], codec: str) -> None:
    whole = decode(clips[codec])
    for crop in [Crop(0, 0, 48, 72), Crop(2, 4, 32, 32), Crop(7, 11, 19, 23), Crop(47, 71, 1, 1), Crop(1, 0, 46, 72)]:
        y, x, height, width = crop
        part = decode(clips[codec], start_frame=18, num_frames=3, box=crop)
        assert part.flags["C_CONTIGUOUS"]
        assert (part == whole[18:21, y : y + height, x : x + width]).all(), crop


def test_noise_is_converted_as_swscale_does(tmp_path: Path) -> None:
    data = encoded(tmp_path, np.random.default_rng(0).integers(0, 256, (3, 48, 72, 3)).astype(np.uint8))
    with av.open(io.BytesIO(data)) as container:
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert (decode(data) == np.stack(expected)).all()


def test_frames_outside_the_window_are_not_decoded(clips: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    packets: list[int] = []
    open_container = av.open

    class Counting:
        def __init__(self, container: av.container.InputContainer) -> None:
            self.container, self.streams, self.seek = container, container.streams, container.seek

        def __enter__(self) -> "Counting":
            return self

        def __exit__(self, *fault: object) -> None:
            self.container.close()

        def demux(self, stream: av.VideoStream) -> object:
            for packet in self.container.demux(stream):
                packets.append(packet.pos)
                yield packet

    monkeypatch.setattr(av, "open", lambda *args, **options: Counting(open_container(*args, **options)))
    decode(clips["h264"], start_frame=17, num_frames=10)
    assert 0 < len(packets) <= 17, "the 16 frames of the second group, and the look that ends them"


@pytest.mark.parametrize("cut", [0, 100, -500])
def test_a_damaged_clip_is_never_decoded_in_part(clips: dict[str, bytes], cut: int) -> None:
    with pytest.raises(ArtifactDamaged, match="lvmae verify"):
        decode(clips["h264"][:cut])


@pytest.mark.parametrize(
    ("start", "count", "crop"),
    [(-1, 2, None), (39, 2, None), (0, 41, None), (5, 0, None), (0, 1, Crop(0, 0, 49, 10)), (0, 1, Crop(-2, 0, 9, 9))],
)
def test_what_a_clip_does_not_hold_is_refused(clips: dict[str, bytes], start: int, count: int, crop: Crop | None) -> None:
    with pytest.raises(ArtifactDamaged, match="a stored clip"):
        decode(clips["h264"], start_frame=start, num_frames=count, box=crop)


def test_sound_alone_is_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    clip_files.run_ffmpeg("-f", "lavfi", "-i", "sine=duration=0.2", path)
    with pytest.raises(ArtifactDamaged):
        decode(path.read_bytes())
