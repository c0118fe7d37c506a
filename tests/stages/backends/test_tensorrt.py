"""TensorRT: refused in words where it cannot work, before torch-tensorrt is imported; and called as its interface says.

Torch-tensorrt cannot be imported without a GPU, so that a stand-in takes its calls here: what is right with it is right as far
as the stand-in is like torch-tensorrt 2.13.
"""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch

from models import mae
from stages.backends import tensorrt
from stages.errors import ConfigError
from tests.stages.exporting import clip_encoder, clips, model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_shape_checks():
    """The checks of the test run are Python that no graph can hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class StandIn(ModuleType):
    """Takes the calls of torch-tensorrt's interface, writes down their arguments, and compiles nothing."""

    def __init__(self) -> None:
        super().__init__("torch_tensorrt")
        self.calls: dict[str, dict[str, Any]] = {}
        self.dynamo = SimpleNamespace(compile=self._compile)

    def Input(self, **shapes: Any) -> dict[str, Any]:  # noqa: N802
        self.calls["Input"] = shapes
        return shapes

    def _compile(self, program: torch.export.ExportedProgram, **options: Any) -> torch.export.ExportedProgram:
        self.calls["compile"] = options
        return program

    def save(self, program: torch.export.ExportedProgram, path: str, **options: Any) -> None:
        self.calls["save"] = options
        torch.export.save(program, path)

    def load(self, path: str) -> torch.export.ExportedProgram:
        return torch.export.load(path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    module = StandIn()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setattr(tensorrt, "_place", lambda: CPU)
    return module


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which torch-tensorrt may not even be looked for."""
    imported = importlib.import_module

    def watched(name: str) -> ModuleType:
        assert name != "torch_tensorrt", "it was imported"
        return imported(name)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(importlib, "import_module", watched)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_it_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    config = tensorrt.Config()
    for refused in (config.require, lambda: config.write(clip_encoder(), tmp_path, clips()), lambda: config.load(tmp_path)):
        with pytest.raises(ConfigError, match="needs a CUDA GPU, and torch sees none here"):
            refused()
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_cannot_be_imported_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    with pytest.raises(ConfigError, match=rf"torch-tensorrt cannot be imported .*goes with torch {torch.__version__[:4]}"):
        tensorrt.Config().require()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_is_asked_for_with_a_range_of_batches_and_the_precision(
    stand_in: StandIn, tmp_path: Path, precision: str
) -> None:
    config = tensorrt.Config.model_validate({"precision": precision, "max_batch_clips": 8})
    config.write(clip_encoder(), tmp_path, clips(3))
    rest = (4, 32, 32, 3)
    assert stand_in.calls["Input"] == {
        "min_shape": (1, *rest),
        "opt_shape": (3, *rest),
        "max_shape": (8, *rest),
        "dtype": torch.float32,
    }
    assert stand_in.calls["compile"] == {"arg_inputs": [stand_in.calls["Input"]], "disable_tf32": precision == "fp32"}
    assert stand_in.calls["save"]["output_format"] == "exported_program"
    assert stand_in.calls["save"]["arg_inputs"][0].shape == (3, *rest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "encoder.ep"]


def test_what_was_saved_takes_bytes(stand_in: StandIn, tmp_path: Path) -> None:
    encoder = clip_encoder()
    config = tensorrt.Config(precision="fp32")
    config.write(encoder, tmp_path, clips())
    program = config.load(tmp_path)
    assert program.device == CPU
    torch.testing.assert_close(program(clips(1)), encoder(clips(1)), rtol=0, atol=1e-5)


@pytest.mark.usefixtures("stand_in")
def test_a_batch_beyond_the_engines_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"export.batch_clips=3 is more than tensorrt's max_batch_clips=2"):
        tensorrt.Config(max_batch_clips=2).write(clip_encoder(), tmp_path, clips(3))


def test_every_architecture_may_be_tried() -> None:
    checked: mae.Config = model("separable")
    assert tensorrt.Config().check(checked) is None
