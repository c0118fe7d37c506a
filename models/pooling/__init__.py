"""From the tokens of a clip to the one vector that a classifier reads. One file per form, named as in a recipe."""

from abc import ABC, abstractmethod

from torch import nn

from models.config import Config


class PoolingConfig(Config, ABC):
    """What every form offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def build(self, width: int, num_heads: int) -> nn.Module:
        """A module from tokens ``[B V D]`` and from which of them exist, ``bool [B V]`` or ``None``: all, to ``[B D]``.

        Args:
            width: features of a token.
            num_heads: attention heads of the encoder.
        """
