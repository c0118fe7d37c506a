"""Weights and architecture, as ``models`` loads them: the form that every other one can be made of again."""

from pathlib import Path
from typing import Literal

import safetensors.torch
from torch import Tensor

from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import WEIGHTS, ClipEncoder


class Config(BackendConfig):
    """``encoder.safetensors`` with the tensors of ``models.vit.Encoder``, and ``config.json``."""

    name: Literal["safetensors"] = "safetensors"
    """The name in a recipe."""

    @property
    def is_network(self) -> bool:
        """It is."""
        return True

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Write weights and description."""
        safetensors.torch.save_file(encoder.encoder.state_dict(), folder / WEIGHTS)
        encoder.description.write(folder)

    def load(self, folder: Path) -> Program:
        """The network itself."""
        return Program(ClipEncoder.read(folder))
