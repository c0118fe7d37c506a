"""An ONNX graph for any number of clips, by torch's exporter, run by ONNX Runtime: for CPUs, and without torch."""

import contextlib
import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import ClipEncoder
from stages.backends._tracing import INPUT, traced
from stages.errors import ConfigError

GRAPH, OUTPUT = "encoder.onnx", "tokens"


class Config(BackendConfig):
    """``encoder.onnx`` with its weights in ``encoder.onnx.data``, and ``config.json``."""

    name: Literal["onnx"] = "onnx"
    """The name in a recipe."""
    opset: int = Field(default=20, ge=18)
    """The version of ONNX's operators."""

    def require(self) -> None:
        """Writing takes onnx and onnxscript, comparing takes onnxruntime.

        Raises:
            ConfigError: one is missing.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _imported(package)

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Translate the encoder's graph."""
        self.require()
        program = traced(encoder, example, any_batch=True)
        with _quiet():
            made = torch.onnx.export(
                program, input_names=[INPUT], output_names=[OUTPUT], opset_version=self.opset, dynamo=True, verbose=False
            )
        assert made is not None  # only the old exporter gives nothing
        made.save(folder / GRAPH, external_data=True)
        encoder.description.write(folder)

    def load(self, folder: Path) -> Program:
        """A session of ONNX Runtime on the CPU, with as many threads as torch has."""
        runtime = _imported("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = runtime.InferenceSession(folder / GRAPH, options, providers=["CPUExecutionProvider"])

        def run(frames: Tensor) -> Tensor:
            (tokens,) = session.run([OUTPUT], {INPUT: frames.numpy()})
            return torch.from_numpy(tokens)

        return Program(run)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on what it deprecates in itself, and on packages that this project does not use."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        log.setLevel(level)


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"the form onnx needs {package}, which is not installed ({error}); pip install 'lvmae[onnx]', or leave onnx out of "
            "export.backends"
        ) from error
