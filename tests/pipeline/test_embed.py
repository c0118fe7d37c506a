"""``lvmae embed``: a real video through every kind of encoder folder, messages for a person, JSON for a program, exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest

from stages import export
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.locks import exclusive, is_held
from stages.storage.tables import read_table
from stages.storage.workspace import Workspace
from tests.pipeline.test_command import invoke
from tests.stages.exporting import pretrained
from tests.stages.videos import write_ramp


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embed")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Artifact:
    return pretrained(Workspace(folder / "root"))


@pytest.fixture(scope="module")
def exported(folder: Path, encoder: Artifact) -> Iterator[Artifact]:
    """A form for every backend that runs everywhere."""
    jaxtyping.config.update("jaxtyping_disable", True)  # no graph can hold the checks of the test run
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    config = export.Config.model_validate({"backends": ["safetensors", "torch_export", "onnx"], "speed_rounds": 0})
    yield export.run(config, {"pretrain": encoder}, Workspace(folder / "root")).artifact
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def video(folder: Path) -> Path:
    return write_ramp(folder / "ramp.mp4", 50)


def test_every_backend_writes_the_same_embeddings(exported: Artifact, video: Path, tmp_path: Path) -> None:
    found = {}
    for backend in ("eager", "torch_export", "onnx"):
        out = tmp_path / f"{backend}.parquet"
        result = invoke("embed", str(video), "--encoder", str(exported.folder), "--backend", backend, "--out", str(out))
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"3 windows of 4 frames from 1 videos, in {out}\n"
        found[backend] = np.array([row["embedding"] for row in read_table(out)])
    assert found["eager"].std() > 0.1
    for other in ("torch_export", "onnx"):
        np.testing.assert_allclose(found[other], found["eager"], rtol=0, atol=1e-5)


def test_windows_overlap_and_tokens_are_kept_where_that_is_asked_for(encoder: Artifact, video: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    arguments = ("--window-frames", "6", "--stride-frames", "2", "--pooling", "none", "--batch-clips", "2", "--out", str(out))
    assert invoke("embed", str(video), "--encoder", str(encoder.folder), *arguments).exit_code == 0
    rows = read_table(out)
    assert [row["start_frame"] for row in rows] == [0, 2, 4]
    assert {row["num_tokens"] for row in rows} == {3 * 2 * 2}
    assert {len(row["embedding"]) for row in rows} == {3 * 2 * 2 * 32}


def test_a_damaged_video_gives_exit_code_1_and_the_others_their_rows(encoder: Artifact, video: Path, tmp_path: Path) -> None:
    bad, out = tmp_path / "bad.mp4", tmp_path / "out.parquet"
    bad.write_bytes(video.read_bytes()[:-400])
    result = invoke("embed", str(bad), str(video), "--encoder", str(encoder.folder), "--out", str(out), "--json")
    assert result.exit_code == 1
    first, second, summary = map(json.loads, result.stdout.splitlines())
    assert (first["path"], first["windows"]) == (str(bad), 0)
    assert set(first["error"]) == {"reason", "detail", "remedy"}
    assert second == {"path": str(video), "windows": 3, "error": None}
    assert summary == {"rows": 3, "videos": 1, "failed": 1, "out": str(out)}
    assert f"error: {bad}: {first['error']['reason']}: " in result.stderr
    assert first["error"]["remedy"] in result.stderr
    assert len(read_table(out)) == 3


def test_where_no_video_can_be_read_nothing_is_written(encoder: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    result = invoke("embed", str(tmp_path / "gone.mp4"), "--encoder", str(encoder.folder), "--out", str(out))
    assert result.exit_code == 1
    assert "0 windows of 4 frames from 0 videos, nothing was written; 1 videos failed" in result.stdout
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--encoder", "{folder}/nothing"), "no form 'safetensors' of an encoder"),
        (("--encoder", "{encoder}", "--backend", "onnx"), "is a pretrained encoder and not exported"),
        (("--encoder", "{encoder}", "--window-frames", "5"), "5 frames do not divide into tubelets"),
        (("--encoder", "{encoder}", "--out", "{folder}"), "is a folder; name a file in it"),
    ],
)
def test_a_wrong_request_gives_one_message_and_exit_code_2(
    encoder: Artifact, video: Path, folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    spelled = [part.format(folder=folder, encoder=encoder.folder) for part in arguments]
    result = invoke("embed", str(video), *spelled)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_an_encoder_is_kept_from_being_collected_while_it_embeds(encoder: Artifact, exported: Artifact, video: Path) -> None:
    for folder in (encoder.folder, exported.folder / "torch_export"):
        with artifact.kept(folder):
            assert is_held(encoder.manifest_path) == (folder == encoder.folder)
            assert is_held(exported.manifest_path) == (folder != encoder.folder)
        assert not is_held(encoder.manifest_path)
    with exclusive(encoder.manifest_path):
        refused = invoke("embed", str(video), "--encoder", str(encoder.folder))
    assert (refused.exit_code, "is being collected" in refused.stderr) == (2, True)
