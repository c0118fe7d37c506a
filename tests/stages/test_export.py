"""The stage ``export``: forms as units, what is said of each, and where the frames of an encoder come from."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from pydantic import ValidationError

from stages import export
from stages.backends import torch_export
from stages.backends._clip_encoder import ClipEncoder, Sampling
from stages.errors import ConfigError, ExportFailed
from stages.storage.artifact import Artifact, Outcome, damages
from stages.storage.publish import sha256_file
from stages.storage.workspace import Workspace
from stages.video_command import ClipConfig
from tests.stages.exporting import clips, pretrained, weights

TWO = ("safetensors", "torch_export")
DOCUMENTATION = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


@pytest.fixture(autouse=True)
def no_shape_checks() -> Iterator[None]:
    """The checks of the test run are Python that no graph can hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "root")


@pytest.fixture
def encoder(workspace: Workspace) -> Artifact:
    return pretrained(workspace)


def config(**values: Any) -> export.Config:
    return export.Config.model_validate({"backends": TWO, "speed_rounds": 1, **values})


def exported(encoder: Artifact, workspace: Workspace, **values: Any) -> Outcome:
    return export.run(config(**values), {"pretrain": encoder}, workspace)


def record(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.path("export.json").read_bytes())
    return found


def test_every_form_is_written_and_compared_and_its_files_are_named(encoder: Artifact, workspace: Workspace) -> None:
    outcome = exported(encoder, workspace, backends=(*TWO, "transformers"))
    made, found = outcome.artifact, record(outcome.artifact)
    assert (outcome.units_done, outcome.units_reused) == (3, 0)
    assert list(found["backends"]) == ["safetensors", "torch_export", "transformers"]
    listed = {f"{name}/{spelled}" for name, entry in found["backends"].items() for spelled in entry["files"]}
    assert {*listed, "export.json"} == set(made.manifest.files)
    for name, entry in found["backends"].items():
        for spelled, one in entry["files"].items():
            assert one["sha256"] == sha256_file(made.folder / name / spelled)
        if entry["unchecked"] is None:
            assert 0 <= entry["parity"]["max_absolute_error"] < 1e-5
            assert 0 <= entry["parity"]["max_relative_error"] < 1e-5
    assert found["encoder"]["sampling"] == {"fps": 10.0, "frame_stride": 2, "short_side_px": 40}
    assert (found["encoder"]["num_frames"], found["encoder"]["size_px"]) == (4, 32)
    assert damages(made) == {}


def test_times_are_in_the_metrics_and_in_no_file(encoder: Artifact, workspace: Workspace) -> None:
    outcome = exported(encoder, workspace)
    assert set(outcome.metrics) == {"torch_export_s_per_clip", "torch_export_vs_eager"}, "safetensors is the network itself"
    assert all(value > 0 for value in outcome.metrics.values())
    assert "s_per_clip" not in (outcome.artifact.folder / "export.json").read_text()


def test_a_rerun_reuses_and_an_export_that_is_made_again_has_the_same_bytes(encoder: Artifact, workspace: Workspace) -> None:
    first = exported(encoder, workspace).artifact
    assert exported(encoder, workspace, speed_rounds=0).units_done == 0, "how often it is timed changes nothing"
    shutil.rmtree(first.folder)
    again = exported(encoder, workspace)
    assert again.units_done == 2
    assert again.artifact.digest == first.digest


def test_one_form_that_fails_is_named_and_leaves_the_others_and_the_rerun_makes_that_one_alone(
    encoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, *arguments: object) -> None:
        raise KeyError("what a compiler says")

    with monkeypatch.context() as patch:
        patch.setattr(torch_export.Config, "write", broken)
        with pytest.raises(ExportFailed, match=r"1 of 2 forms .*kept are safetensors(?s:.*)torch_export: KeyError: 'what a"):
            exported(encoder, workspace, backends=("torch_export", "safetensors"))
    (folder,) = workspace.stage_folder("export").iterdir()
    kept = folder / "safetensors" / "encoder.safetensors"
    before = kept.stat().st_mtime_ns
    assert not (folder / "manifest.json").exists()
    outcome = exported(encoder, workspace, backends=("torch_export", "safetensors"))
    assert (outcome.units_done, outcome.units_reused) == (1, 1)
    assert kept.stat().st_mtime_ns == before
    assert list(record(outcome.artifact)["backends"]) == ["torch_export", "safetensors"]
    shutil.rmtree(outcome.artifact.folder)
    undisturbed = exported(encoder, workspace, backends=("torch_export", "safetensors"))
    assert undisturbed.artifact.digest == outcome.artifact.digest


def test_a_writer_that_says_nothing_of_the_disk_is_no_failed_form_when_the_disk_is_full(
    encoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object, *arguments: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch_export.Config, "write", broken)
    monkeypatch.setattr(export, "free", lambda folder: 0)
    with pytest.raises(OSError, match="No space left on device"):
        exported(encoder, workspace, backends=("torch_export",))


def test_what_an_interrupted_run_left_is_made_again_where_it_is_damaged(
    encoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_export.Config, "write", lambda self, *arguments: pytest.fail("killed here"))
    with pytest.raises(BaseException, match="killed here"):
        exported(encoder, workspace)
    monkeypatch.undo()
    jaxtyping.config.update("jaxtyping_disable", True)
    (folder,) = workspace.stage_folder("export").iterdir()
    (folder / "safetensors" / "encoder.safetensors").write_bytes(b"half")
    outcome = exported(encoder, workspace)
    assert (outcome.units_done, outcome.units_reused) == (2, 0)
    assert damages(outcome.artifact) == {}


def test_a_form_that_computes_something_else_is_not_published(
    encoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = torch_export.Config.load

    def wrong(self: torch_export.Config, folder: Path) -> Any:
        program = load(self, folder)
        return type(program)(lambda frames: program.run(frames) * 1.01, program.device)

    monkeypatch.setattr(torch_export.Config, "load", wrong)
    with pytest.raises(ExportFailed, match=r"torch_export: its tokens differ by 0.01 of the largest"):
        exported(encoder, workspace)


def test_positions_that_a_form_lacks_are_refused_and_the_others_are_made(workspace: Workspace) -> None:
    encoder = pretrained(workspace, positions="separable")
    with pytest.raises(ExportFailed, match=r"kept are safetensors(?s:.*)transformers: transformers' VideoMAE knows"):
        exported(encoder, workspace, backends=("safetensors", "transformers"))


def test_an_encoder_is_exported_for_longer_and_larger_clips(encoder: Artifact, workspace: Workspace) -> None:
    outcome = exported(encoder, workspace, backends=("safetensors",), num_frames=8, size_px=64)
    read = ClipEncoder.read(outcome.artifact.folder / "safetensors")
    assert read(torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)).shape == (1, 4 * 4 * 4, 32)
    assert read.description.sampling.short_side_px == 80, "the same margin around the square"
    assert torch.equal(read.encoder.embed.weight, weights(read.description)["embed.weight"])
    short = torch.cat([clips(1)] * 2, dim=1)
    assert short.shape[1] == 8


def test_frames_that_do_not_fill_tokens_are_refused(encoder: Artifact, workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"num_frames=5 and size_px=32 do not fit the encoder: 5 frames"):
        exported(encoder, workspace, num_frames=5)


def test_frames_are_taken_as_for_the_pretraining_or_as_they_are_where_its_clips_are_gone(
    workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = pretrained(workspace, clip=ClipConfig(size_px=36, fps=None, frame_stride=3, num_frames=16))
    assert export.describe(encoder).sampling == Sampling(fps=None, frame_stride=3, short_side_px=36)
    shutil.rmtree(workspace.stage_folder("shard"))
    assert export.describe(encoder).sampling == Sampling(short_side_px=32)
    assert "its clips are gone" in caplog.text


@pytest.mark.parametrize("form", ["safetensors", "torch_export", "onnx"])
def test_the_code_in_the_documentation_gives_the_tokens(
    encoder: Artifact, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    if form == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    made = exported(encoder, workspace, backends=("safetensors", form) if form != "safetensors" else (form,)).artifact
    monkeypatch.chdir(made.folder)
    found: dict[str, Any] = {}
    exec(re.search(rf"## {form}\n\n```python\n(.*?)```", DOCUMENTATION, re.DOTALL)[1], found)
    expected = ClipEncoder.read(made.folder / "safetensors")(torch.zeros(1, 4, 32, 32, 3, dtype=torch.uint8))
    torch.testing.assert_close(torch.as_tensor(found["tokens"])[:1], expected, rtol=0, atol=1e-5)


def test_names_must_tell_apart_and_a_probe_has_two_clips() -> None:
    with pytest.raises(ValidationError, match="backends name something twice: safetensors, safetensors"):
        config(backends=("safetensors", {"name": "safetensors"}))
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        config(batch_clips=1)
    assert [backend.name for backend in export.Config().backends] == ["safetensors", "transformers", "torch_export"]
