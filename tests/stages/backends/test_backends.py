"""Every form: what is written, loaded and run gives the tokens of the network, and says nothing of whose machine made it."""

import hashlib
import importlib.util
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import jaxtyping
import pytest
import torch

from models.extension import load, names
from stages.backends import BackendConfig, aot_inductor, torch_export, transformers
from stages.backends._clip_encoder import ClipEncoder, Description
from stages.backends._measuring import parity, seconds_per_clip
from stages.backends._tracing import in_batches
from stages.errors import ArtifactDamaged, ArtifactMissing, ConfigError
from tests.stages.exporting import clip_encoder, clips, description

ROOT = Path(__file__).parents[3]
NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "transformers": ("transformers",)}
PORTABLE = ("onnx", "safetensors", "torch_export", "transformers")
LIMITS = {"safetensors": 0.0, "torch_export": 0.0, "transformers": 1e-5, "onnx": 1e-5}
"""The largest absolute error; tokens lie between about -4 and 4."""


@pytest.fixture(autouse=True)
def no_shape_checks():
    """The checks of the test run are Python that no graph can hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def encoder() -> ClipEncoder:
    return clip_encoder()


@pytest.fixture(scope="module", params=PORTABLE)
def written(request: pytest.FixtureRequest, encoder: ClipEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of every form that is no compiled code."""
    for package in NEEDS.get(request.param, ()):
        pytest.importorskip(package)
    jaxtyping.config.update("jaxtyping_disable", True)
    folder = tmp_path_factory.mktemp(request.param) / request.param
    folder.mkdir()
    form(request.param).write(encoder, folder, clips())
    return folder


def form(name: str) -> BackendConfig:
    backend = load("stages.backends", name)
    assert isinstance(backend, BackendConfig)
    return backend


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_folder_offers_what_the_files_say() -> None:
    known = names("stages.backends")
    assert known == ["aot_inductor", "onnx", "safetensors", "tensorrt", "torch_export", "transformers"]
    assert [form(name).name for name in known] == known
    assert set(PORTABLE) | {"aot_inductor", "tensorrt"} == set(known)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_form_computes_the_tokens_of_the_network_for_any_number_of_clips(
    written: Path, encoder: ClipEncoder, count: int
) -> None:
    frames = clips(count, seed=count)
    expected = encoder(frames)
    assert expected.std() > 0.5, "numbers near zero would agree anyway"
    found = form(written.name).load(written)(frames)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=LIMITS[written.name])


def test_the_same_network_gives_the_same_bytes_without_a_trace_of_the_machine(
    written: Path, encoder: ClipEncoder, tmp_path: Path
) -> None:
    form(written.name).write(encoder, tmp_path, clips())
    assert digests(tmp_path) == digests(written)
    data = b"".join(path.read_bytes() for path in written.iterdir())
    assert not [place for place in (str(ROOT), str(Path.home()), str(tmp_path)) if place.encode() in data]


def test_other_weights_give_other_tokens(written: Path, encoder: ClipEncoder) -> None:
    changed = clip_encoder()
    with torch.no_grad():
        changed.encoder.blocks[0].attention.v_bias += 1
    found = form(written.name).load(written)(clips())
    assert parity(found, changed(clips())).max_absolute_error > 0.01


def test_a_bare_folder_of_weights_is_loaded_by_the_models_alone(encoder: ClipEncoder, tmp_path: Path) -> None:
    form("safetensors").write(encoder, tmp_path, clips())
    script = """
import json, sys, torch
from safetensors.torch import load_file
from models import mae
from models.grid import patchify
described = json.load(open(sys.argv[1] + "/config.json"))
model = mae.Config.model_validate(described["model"])
grid = model.patching.grid(described["num_frames"], described["size_px"])
encoder = model.build_encoder(grid).eval()
encoder.load_state_dict(load_file(sys.argv[1] + "/encoder.safetensors"))
assert not [name for name in sys.modules if name.split(".")[0] in ("stages", "pipeline")]
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# transformers

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is missing")


@needs_transformers
def test_transformers_takes_the_folder_as_a_model_and_as_a_classifier_with_a_new_head(
    encoder: ClipEncoder, tmp_path: Path
) -> None:
    import transformers as library

    form("transformers").write(encoder, tmp_path, clips())
    model, report = library.VideoMAEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert {norm.eps for norm in model.modules() if isinstance(norm, torch.nn.LayerNorm)} == {1e-6}
    classifier, report = library.VideoMAEForVideoClassification.from_pretrained(
        tmp_path, num_labels=7, use_mean_pooling=True, output_loading_info=True
    )
    assert set(report["missing_keys"]) == {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
    assert classifier(torch.zeros(1, 4, 3, 32, 32)).logits.shape == (1, 7)


@needs_transformers
def test_the_preprocessor_makes_of_frames_what_the_program_does(encoder: ClipEncoder, tmp_path: Path) -> None:
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    form("transformers").write(encoder, tmp_path, clips())
    import transformers as library

    processor = VideoMAEImageProcessorPil.from_pretrained(tmp_path)
    frames = clips(1)[0].repeat(1, 2, 2, 1)[:, :40, :60]  # 40 px high: nothing to scale, a square of 32 px to cut out
    given = torch.as_tensor(processor(list(frames.numpy()), return_tensors="pt")["pixel_values"])
    tokens = library.VideoMAEModel.from_pretrained(tmp_path)(given).last_hidden_state
    torch.testing.assert_close(tokens, encoder(frames[None, :, 4:36, 14:46]), rtol=0, atol=1e-4)


def test_positions_that_transformers_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`flattened` alone, and this encoder has `separable`; leave transformers out"):
        transformers.Config().write(clip_encoder("separable"), tmp_path, clips())
    assert list(tmp_path.iterdir()) == []


def test_without_transformers_the_folder_is_written_and_said_to_be_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert transformers.Config().unchecked == "transformers is not installed"


# torch.export


def test_a_program_holds_no_pickle_and_one_that_does_is_refused(encoder: ClipEncoder, tmp_path: Path) -> None:
    form("torch_export").write(encoder, tmp_path, clips())
    path = tmp_path / torch_export.PROGRAM
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    configs = [json.loads(data)["config"] for name, data in members.items() if name.endswith("_config.json")]
    assert not [entry for config in configs for entry in config.values() if entry["use_pickle"]]
    (samples,) = [name for name in members if "/sample_inputs/" in name]
    assert members[samples] == b""
    weights_config = next(name for name in members if name.endswith("weights_config.json"))
    hostile = json.loads(members[weights_config])
    next(iter(hostile["config"].values()))["use_pickle"] = True
    for name, data in ((samples, b"\x80"), (weights_config, json.dumps(hostile).encode())):
        with zipfile.ZipFile(path, "w") as archive:
            for member, value in {**members, name: data}.items():
                archive.writestr(member, value)
        with pytest.raises(ArtifactDamaged, match="holds pickled values"):
            form("torch_export").load(tmp_path)
    path.write_bytes(b"no archive")
    with pytest.raises(ArtifactDamaged, match="no exported program"):
        form("torch_export").load(tmp_path)


# AOTInductor


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_a_package_of_machine_code_computes_the_tokens_of_the_network(encoder: ClipEncoder, tmp_path: Path) -> None:
    backend = aot_inductor.Config()
    try:
        backend.require()
    except ConfigError as error:
        pytest.skip(str(error))
    backend.write(encoder, tmp_path, clips())
    assert Description.read(tmp_path).batch_clips == 2
    program = backend.load(tmp_path)
    for count in (1, 2, 3):
        frames = clips(count, seed=count)
        torch.testing.assert_close(program(frames).cpu(), encoder(frames), rtol=0, atol=1e-5)


def test_without_a_compiler_the_package_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none_here() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none_here)
    with pytest.raises(ConfigError, match=r"finds no compiler; install g\+\+ or clang\+\+"):
        aot_inductor.Config().require()


# What they share


def test_a_program_for_two_clips_takes_any_number() -> None:
    seen = []

    def run(frames: torch.Tensor) -> torch.Tensor:
        seen.append(len(frames))
        return frames * 2

    frames = torch.arange(5.0)[:, None]
    assert torch.equal(in_batches(run, 2)(frames), frames * 2)
    assert seen == [2, 2, 2]


def test_errors_are_those_of_the_largest_number() -> None:
    expected = torch.tensor([[1.0, -4.0]])
    assert parity(expected + torch.tensor([[0.0, 0.02]]), expected) == pytest.approx((0.02, 0.005), rel=1e-2)
    with pytest.raises(ValueError, match="not finite"):
        parity(torch.tensor([[1.0, float("nan")]]), expected)
    with pytest.raises(ValueError, match="shape"):
        parity(expected[:, :1], expected)


def test_ways_take_turns_and_the_first_turn_is_not_timed() -> None:
    order: list[str] = []

    def way(name: str):
        return lambda frames: order.append(name) or frames

    spent = seconds_per_clip({"a": way("a"), "b": way("b")}, clips(), rounds=2, device=torch.device("cpu"))
    assert order == ["a", "b"] * 3
    assert set(spent) == {"a", "b"}
    seconds_per_clip({"c": way("c")}, clips(), rounds=9, device=torch.device("cpu"), limit_s=0)
    assert order[6:] == ["c", "c"], "once to warm up and once in any case"


def test_a_folder_that_describes_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing, match=r"config\.json: not there"):
        Description.read(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}}')
    with pytest.raises(ArtifactDamaged, match="describes no exported encoder"):
        Description.read(tmp_path)
    description().write(tmp_path)
    assert Description.read(tmp_path) == description()
