"""What the decoder must predict at a position. One file per target, named as in a recipe."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from models.config import Config
from models.grid import Patching
from models.quantizers import QuantizerConfig


class Target(nn.Module):
    """Turns patches or precomputed products into the vectors a decoder is trained towards; it learns nothing.

    A subclass defines ``forward(patches: Float[B P patch_dim], products: Mapping[str, Shaped[B P]]) -> Float[B P dim]``:
    patches are pixels in [0, 1] and both arguments hold the predicted positions alone, in their order.
    """

    dim: int
    """Numbers per predicted token."""


class TargetConfig(Config, ABC):
    """What every target offers; a file in this folder holds one subclass named ``Config``."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the precomputed products the target reads, such as ``codes``."""

    @abstractmethod
    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """The module that makes the vectors.

        Args:
            patching: the pixels of one token.
            quantizer: the tokenizer's; a target made of pixels ignores it.
        """
