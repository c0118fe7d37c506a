"""Weights that a person supplies: a local safetensors file, pinned by its sha256, so that a recipe means the same bytes."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field
from safetensors import SafetensorError
from torch import Tensor

from models.config import Config
from stages.errors import ConfigError
from stages.storage.checkpoints import read_tensors
from stages.storage.publish import sha256_file


class WeightsFile(Config):
    """One file of weights; where it lies does not matter, what is in it does."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})

    path: str
    """A local ``.safetensors`` file. No other format is read: a pickle could run code."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of its bytes, in hex."""

    def read(self) -> dict[str, Tensor]:
        """The tensors of the file.

        Raises:
            ConfigError: it is not there, is no safetensors file, or has another digest.
        """
        path = Path(self.path).expanduser()
        if path.suffix != ".safetensors" or not path.is_file():
            raise ConfigError(f"{path}: weights must be a local .safetensors file; convert them, or correct the path")
        found = sha256_file(path)
        if found != self.sha256:
            raise ConfigError(
                f"{path}: its sha256 is {found}, the recipe says {self.sha256}; if this is the file that you mean, "
                "put its sha256 into the recipe"
            )
        try:
            return read_tensors(path)
        except SafetensorError as error:
            raise ConfigError(f"{path}: not a safetensors file ({error}); convert the weights, or correct the path") from error
