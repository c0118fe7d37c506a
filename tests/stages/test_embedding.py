"""Embeddings of whole videos: which frames are in which window, and that a window's row is the encoder's answer to it."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from stages import export, video
from stages.backends._clip_encoder import ClipEncoder, Sampling
from stages.embedding import Failure, Opened, Windowing, clip_config, embed, open_encoder, window_starts, windows_of
from stages.errors import ArtifactDamaged, ArtifactMissing, ConfigError, Reason
from stages.storage.artifact import Artifact
from stages.storage.tables import read_table
from stages.storage.workspace import Workspace
from stages.video_command import Limits
from stages.video_decode import decode
from tests.stages.exporting import clip_encoder, description, pretrained
from tests.stages.videos import fresh, numbers, write_ramp

WINDOW = 4


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("embedding") / "root")


@pytest.fixture(scope="module")
def encoder(workspace: Workspace) -> Artifact:
    """Pretrained on every second frame of 10 per second, 40 px high."""
    return pretrained(workspace)


@pytest.fixture(scope="module")
def safetensors(encoder: Artifact, workspace: Workspace) -> Artifact:
    config = export.Config.model_validate({"backends": ["safetensors"], "speed_rounds": 0})
    return export.run(config, {"pretrain": encoder}, workspace).artifact


def plain() -> Opened:
    """An encoder that takes every frame of a video of 48 px."""
    network = clip_encoder()
    described = description(sampling=Sampling(short_side_px=48))
    return Opened(Whole(network), described, {"encoder": "tiny"})


class Whole:
    """The network as what embedding takes, without any of the code under test."""

    tubelet_frames = 2

    def __init__(self, network: ClipEncoder) -> None:
        self.network = network

    def tokens(self, frames: torch.Tensor, *, layer: int | None) -> torch.Tensor:
        assert layer is None
        tokens: torch.Tensor = self.network(frames)
        return tokens.unflatten(1, (2, 2, 2))


def embedded(
    paths: Sequence[Path], opened: Opened, out: Path, **windowing: Any
) -> tuple[list[dict[str, Any]], list[Failure | None]]:
    told: list[Failure | None] = []
    asked = Windowing(**{"stride_frames": WINDOW, **windowing})
    embed(paths, opened, asked, out=out, finished=lambda path, count, failure: told.append(failure))
    return (read_table(out) if out.exists() else []), told


def pixels(path: Path, start: int, stop: int, *, repeat: int = 1) -> torch.Tensor:
    """Frames of a video of 48 px as the encoder should see them, by the shard stage's own means."""
    made = video.cut(
        path, clip=clip_config(Sampling(short_side_px=48), min_frames=2), limits=Limits(), scratch=fresh(path.parent)
    )
    frames = np.concatenate([decode(segment.video.read_bytes()) for segment in made.segments])
    middle = frames[start:stop, 8:40, (made.width_px - 32) // 2 :][:, :, :32]
    return torch.from_numpy(np.concatenate([middle] * repeat))[None]


@pytest.mark.parametrize(
    ("num_frames", "window", "stride", "starts"),
    [
        (10, 4, 4, [0, 4, 6]),
        (12, 4, 4, [0, 4, 8]),
        (4, 4, 4, [0]),
        (3, 4, 4, [0]),
        (9, 4, 2, [0, 2, 4, 5]),
        (20, 4, 10, [0, 10, 16]),
        (5, 4, 9, [0, 1]),
    ],
)
def test_windows_begin_every_stride_and_the_last_ends_with_the_last_frame(
    num_frames: int, window: int, stride: int, starts: list[int]
) -> None:
    assert window_starts(num_frames, window, stride) == starts


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 1), (30, 30), (6, 45)])
def test_a_window_shows_the_frames_that_its_row_says_also_across_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, stride: int
) -> None:
    monkeypatch.setattr("stages.embedding._SEGMENT_FRAMES", 8)
    path = write_ramp(tmp_path / "ramp.mp4", 57)
    clip = clip_config(Sampling(short_side_px=48), min_frames=2).model_copy(update={"num_frames": 16})
    made = video.cut(path, clip=clip, limits=Limits(), scratch=fresh(tmp_path))
    assert len(made.segments) == 4
    described = description(num_frames=window)
    found = list(windows_of(path, made, described, stride_frames=stride))
    assert [one.start_frame for one in found] == window_starts(57, window, stride)
    for one in found:
        assert one.frames.shape == (window, 32, 32, 3)
        assert numbers(one.frames) == list(range(one.start_frame, one.start_frame + window))
        assert one.start_s == pytest.approx(one.start_frame / 25, abs=1e-6)
        assert one.end_s == pytest.approx((one.start_frame + window) / 25, abs=1e-6)


def test_a_row_is_the_mean_of_the_encoders_tokens_of_that_window(tmp_path: Path) -> None:
    path, opened = write_ramp(tmp_path / "ramp.mp4", 10), plain()
    rows, told = embedded([path], opened, tmp_path / "out.parquet", batch_clips=2)
    assert told == [None]
    assert [(row["start_frame"], row["num_frames"], row["num_tokens"]) for row in rows] == [(0, 4, 1), (4, 4, 1), (6, 4, 1)]
    for row in rows:
        expected = Whole.tokens(opened.encoder, pixels(path, row["start_frame"], row["start_frame"] + 4), layer=None)
        np.testing.assert_allclose(row["embedding"], expected.mean((0, 1, 2, 3)), rtol=0, atol=1e-5)
        assert row["path"] == str(path)


def test_without_pooling_a_row_has_all_tokens_of_the_frames_that_were_recorded(tmp_path: Path) -> None:
    opened = plain()
    long, short = write_ramp(tmp_path / "long.mp4", 4), write_ramp(tmp_path / "short.mp4", 3)
    rows, _ = embedded([long, short], opened, tmp_path / "out.parquet", pooling="none")
    assert [(row["num_frames"], row["num_tokens"]) for row in rows] == [(4, 8), (3, 4)]
    whole = opened.encoder.tokens(pixels(long, 0, 4), layer=None).reshape(8, 32)
    np.testing.assert_allclose(np.reshape(rows[0]["embedding"], (8, 32)), whole, rtol=0, atol=1e-5)
    looped = opened.encoder.tokens(pixels(short, 0, 3, repeat=2)[:, :4], layer=None).reshape(8, 32)
    np.testing.assert_allclose(np.reshape(rows[1]["embedding"], (4, 32)), looped[:4], rtol=0, atol=1e-5)


def test_a_bad_video_is_named_with_a_remedy_and_the_others_are_written(tmp_path: Path) -> None:
    good = [write_ramp(tmp_path / f"{number}.mp4", 8) for number in range(2)]
    cut_off, single, gone = tmp_path / "cut.mp4", write_ramp(tmp_path / "single.mp4", 1), tmp_path / "gone.mp4"
    whole = good[0].read_bytes()
    cut_off.write_bytes(whole[: len(whole) // 2])
    rows, told = embedded([good[0], cut_off, single, gone, good[1]], plain(), tmp_path / "out.parquet")
    assert [row["path"] for row in rows] == [str(path) for path in good for _ in range(2)]
    failures = {one.path.name: (one.error.reason, one.remedy) for one in told if one}
    assert failures["cut.mp4"][0] in (Reason.TRUNCATED, Reason.CORRUPT)
    assert failures["single.mp4"] == (Reason.TOO_SHORT, "it has fewer frames than a token spans; leave it out")
    assert set(failures) == {"cut.mp4", "single.mp4", "gone.mp4"}
    assert not list(tmp_path.glob(".embed-*")), "nothing is left behind"


def test_no_file_is_written_where_no_video_gives_a_row_and_an_earlier_one_stays(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    embedded([tmp_path / "bad.mp4"], plain(), out)
    assert not out.exists()
    out.write_bytes(b"earlier")
    embed([tmp_path / "bad.mp4"], plain(), Windowing(4), out=out, finished=lambda *said: None)
    assert out.read_bytes() == b"earlier"


def test_the_file_says_what_it_was_made_by(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "ramp.mp4", 4)
    embedded([path], plain(), tmp_path / "out.parquet")
    facts = pq.read_schema(tmp_path / "out.parquet").metadata[b"lvmae"].decode()
    for part in ('"encoder": "tiny"', '"window_frames": 4', '"pooling": "mean"', '"width": 32', '"short_side_px": 48'):
        assert part in facts


# Which encoder


def test_an_artifact_an_export_and_a_bare_folder_give_the_same_rows(
    encoder: Artifact, safetensors: Artifact, tmp_path: Path
) -> None:
    path = write_ramp(tmp_path / "ramp.mp4", 50)
    folders = [encoder.folder, safetensors.folder, safetensors.folder / "safetensors"]
    found = [embedded([path], open_encoder(folder), tmp_path / f"{number}.parquet")[0] for number, folder in enumerate(folders)]
    assert [row["num_frames"] for row in found[0]] == [4, 4, 4], "ten frames of every second one of 10 per second"
    assert found[0][1]["start_s"] == pytest.approx(0.8, abs=0.05)
    assert all(one == other for one, other in itertools.pairwise(found))


def test_windows_of_another_length_are_embedded_by_the_encoder_itself(encoder: Artifact, safetensors: Artifact) -> None:
    for folder in (encoder.folder, safetensors.folder):
        opened = open_encoder(folder, num_frames=8)
        assert opened.encoder.tokens(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8), layer=None).shape == (1, 4, 2, 2, 32)
        with pytest.raises(ConfigError, match="5 frames do not divide into tubelets of 2 frames"):
            open_encoder(folder, num_frames=5)


def test_a_folder_that_holds_no_such_encoder_is_refused(encoder: Artifact, safetensors: Artifact, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"no form 'onnx' of an encoder; it holds safetensors"):
        open_encoder(safetensors.folder, "onnx")
    with pytest.raises(ConfigError, match=r"is a pretrained encoder and not exported; run `lvmae export`"):
        open_encoder(encoder.folder, "onnx")
    with pytest.raises(ArtifactMissing, match="it holds none"):
        open_encoder(tmp_path)


def test_a_damaged_file_of_an_export_is_refused(encoder: Artifact, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "root")
    config = export.Config.model_validate({"backends": ["safetensors"], "speed_rounds": 0})
    made = export.run(config, {"pretrain": pretrained(workspace)}, workspace).artifact
    path = made.folder / "safetensors" / "encoder.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactDamaged, match="sha256 differs"):
        open_encoder(made.folder)
