"""Forms in which an encoder leaves the project. One file per form, named as in a recipe.

A form is a folder that works without this project, or at least without training code. Programs take RGB frames in the order in
which they were recorded, ``uint8 [B T H W C]``, and return one vector per token, ``float32 [B N D]``, after the final norm;
scaling and normalisation are inside. What a form needs beyond torch is imported when it is used, never before.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models import mae
from models.config import Config
from stages.backends._clip_encoder import ClipEncoder

CPU = torch.device("cpu")
FP32_TOLERANCE = 1e-4
BF16_TOLERANCE = 5e-2
"""The largest error over the largest number that a program may have. Ours: ten times what was measured of any, and more."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A form that was loaded: frames ``uint8 [B T H W C]`` to tokens ``float32 [B N D]``.

    Args:
        run: computes the tokens of frames that lie on the device.
        device: where.
    """

    run: Callable[[Tensor], Tensor]
    device: torch.device = CPU

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """The tokens of some clips, on the program's device."""
        return self.run(frames.to(self.device))


class BackendConfig(Config, ABC):
    """What every form offers; a file in this folder holds one subclass named ``Config``."""

    name: str
    """The name in a recipe and of the form's folder."""

    @property
    def tolerance(self) -> float:
        """The largest error, over the largest number of the right answer, with which the form may be published."""
        return FP32_TOLERANCE

    @property
    def unchecked(self) -> str | None:
        """Why what was written cannot be loaded here and compared; by itself a form can be."""
        return None

    @property
    def is_network(self) -> bool:
        """Whether what is loaded is the network itself, which need not be timed beside itself."""
        return False

    def check(self, model: mae.Config) -> None:
        """Nothing, when the form can hold such an encoder.

        Raises:
            ConfigError: it cannot; the message says why and what to do.
        """
        return

    def require(self) -> None:
        """Nothing, when this machine and this installation can write the form.

        Raises:
            ConfigError: something is missing; the message says what.
        """
        return

    @abstractmethod
    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Write the form into an empty folder; where it is no compiled code, equal encoders give equal bytes.

        Args:
            encoder: on the CPU, ready to infer.
            folder: of the form alone.
            example: two or more clips, ``uint8 [B T H W C]``.
        """

    @abstractmethod
    def load(self, folder: Path) -> Program:
        """The form in a folder, ready to run; what is in the folder decides, not this config.

        Raises:
            ConfigError: this machine or this installation cannot run it.
        """
