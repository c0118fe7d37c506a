"""A package of machine code, by AOTInductor: for PyTorch in Python or C++, on machines like the one that it was made on.

Freezing lays the weights out for the processor's own matrix products, which is where the speed on a CPU comes from. The package
is native code: open only one that you made or trust. Its bytes depend on the compiler and the processor, and name where the
compiler and torch's headers were.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stages.backends import BF16_TOLERANCE, FP32_TOLERANCE, BackendConfig, Program
from stages.backends._clip_encoder import ClipEncoder, Description
from stages.backends._tracing import in_batches, placed, traced
from stages.device import Precision, device, warn_of_imitation
from stages.errors import ConfigError

PACKAGE = "encoder.pt2"


class Config(BackendConfig):
    """``encoder.pt2`` for ``torch._inductor.aoti_load_package``, and ``config.json``; for the GPU where there is one."""

    name: Literal["aot_inductor"] = "aot_inductor"
    """The name in a recipe."""
    precision: Precision = "fp32"
    """Of weights and arithmetic."""
    any_batch: bool = False
    """Whether the program takes any number of clips; else ``export.batch_clips`` at a time, which is faster."""
    freezing: bool = True
    """Whether weights become constants of the program, laid out for the processor."""

    @property
    def tolerance(self) -> float:
        """That of the precision."""
        return FP32_TOLERANCE if self.precision == "fp32" else BF16_TOLERANCE

    def require(self) -> None:
        """Compiling takes a C++ compiler.

        Raises:
            ConfigError: there is none.
        """
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ConfigError(
                "aot_inductor compiles C++ and finds no compiler; install g++ or clang++, name one with the variable CXX, or "
                "leave aot_inductor out of export.backends"
            ) from error
        warn_of_imitation(device(), self.precision, "export.backends.aot_inductor.precision")

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Trace and compile the encoder; takes a minute and more."""
        self.require()
        ready = placed(encoder, device(), self.precision)
        program = traced(ready, example.to(device()), any_batch=self.any_batch)
        options = {"freezing": self.freezing}
        with torch.no_grad():  # weights are frozen only where no gradient can ask for them
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / PACKAGE), inductor_configs=options)
        batch_clips = None if self.any_batch else len(example)
        encoder.description.model_copy(update={"batch_clips": batch_clips}).write(folder)

    def load(self, folder: Path) -> Program:
        """The compiled program, as one that takes any number of clips."""
        batch_clips = Description.read(folder).batch_clips
        run = torch._inductor.aoti_load_package(str(folder / PACKAGE))
        return Program(in_batches(run, batch_clips) if batch_clips else run, device())
