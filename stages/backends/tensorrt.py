"""A TensorRT engine in a PyTorch program, by torch-tensorrt: for the kind of GPU that it was made on.

Torch-tensorrt 2.11 to 2.14 asks for the current GPU while it is imported, and so cannot be imported where there is none: this
is seen to before. None of it was run on a GPU; the calls are held against torch-tensorrt 2.13's interface by a stand-in.
"""

import importlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from stages.backends import BF16_TOLERANCE, FP32_TOLERANCE, BackendConfig, Program
from stages.backends._clip_encoder import ClipEncoder
from stages.backends._tracing import placed, traced
from stages.device import Precision
from stages.errors import ConfigError

PROGRAM = "encoder.ep"


class Config(BackendConfig):
    """``encoder.ep`` for ``torch_tensorrt.load``, and ``config.json``."""

    name: Literal["tensorrt"] = "tensorrt"
    """The name in a recipe."""
    precision: Precision = "bf16"
    """Of weights and arithmetic; ``fp32`` is computed without TF32."""
    max_batch_clips: int = Field(default=16, ge=2)
    """The most clips that the engine takes at a time; it is tuned for ``export.batch_clips``."""

    @property
    def tolerance(self) -> float:
        """That of the precision."""
        return FP32_TOLERANCE if self.precision == "fp32" else BF16_TOLERANCE

    def require(self) -> None:
        """Building and running an engine take CUDA, TensorRT and torch-tensorrt.

        Raises:
            ConfigError: something is missing.
        """
        _place()
        _library()

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Trace the encoder and build its engine. Frames enter the engine as floats: it is no place for bytes."""
        place, library = _place(), _library()
        if len(example) > self.max_batch_clips:
            raise ConfigError(
                f"export.batch_clips={len(example)} is more than tensorrt's max_batch_clips={self.max_batch_clips}"
            )
        frames = example.to(place).float()
        program = traced(placed(encoder, place, self.precision), frames, any_batch=True)
        rest = tuple(frames.shape[1:])
        profile = library.Input(
            min_shape=(1, *rest),
            opt_shape=(len(example), *rest),
            max_shape=(self.max_batch_clips, *rest),
            dtype=torch.float32,
        )
        engine = library.dynamo.compile(program, arg_inputs=[profile], disable_tf32=self.precision == "fp32")
        library.save(
            engine,
            str(folder / PROGRAM),
            output_format="exported_program",
            arg_inputs=[frames],
            dynamic_shapes=program_shapes(self.max_batch_clips),
            retrace=True,
        )
        encoder.description.write(folder)

    def load(self, folder: Path) -> Program:
        """The engine, as a program that takes bytes."""
        place = _place()
        module = _library().load(str(folder / PROGRAM)).module()
        return Program(lambda frames: module(frames.float()), place)


def program_shapes(max_batch_clips: int) -> tuple[dict[int, Any], ...]:
    """The open sizes of the program's inputs, as ``torch.export`` takes them."""
    return ({0: torch.export.Dim("batch", min=1, max=max_batch_clips)},)


def _place() -> torch.device:
    """The GPU.

    Raises:
        ConfigError: there is none.
    """
    if not torch.cuda.is_available():
        raise ConfigError(
            "tensorrt needs a CUDA GPU, and torch sees none here; leave tensorrt out of export.backends (aot_inductor and onnx "
            "are for CPUs), or export on a machine with a GPU"
        )
    return torch.device("cuda")


def _library() -> Any:
    """Torch-tensorrt, imported only once there is a GPU.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module("torch_tensorrt")
    except (ImportError, RuntimeError, OSError) as error:
        raise ConfigError(
            f"torch-tensorrt cannot be imported ({error}); install the release that goes with torch {torch.__version__}, as "
            "`pip install 'lvmae[tensorrt]'` with NVIDIA's package index, or leave tensorrt out of export.backends"
        ) from error
