"""What the decoder must predict at a position, and how wrong it is. One file per target, named as in a recipe.

A target does not know which positions count: it says how wrong every single one is, and ``models.mae`` takes the mean.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from models.config import Config
from models.grid import Patching
from models.quantizers import QuantizerConfig
from models.shapes import Float, Shaped, Tensor


class Target(nn.Module):
    """Turns patches or precomputed products into what a decoder is trained towards, and owns the error; it learns nothing.

    A subclass defines ``forward(patches: Float[B P patch_dim], products: Mapping[str, Shaped[B P]]) -> Shaped[B P Y]``:
    patches are pixels in [0, 1] and both arguments hold the predicted positions alone, in their order. Where the answer is
    not made of ``dim`` real numbers to come close to, it defines ``error`` and ``best_constant`` as well.
    """

    dim: int
    """Numbers that the decoder predicts of a token."""

    def error(self, predictions: Float[Tensor, "B P X"], targets: Shaped[Tensor, "B P Y"]) -> Float[Tensor, "B P"]:
        """How wrong the prediction of every token is, 0 or more, in single precision: by itself the mean squared error.

        Args:
            predictions: what the decoder says, ``dim`` numbers per token.
            targets: what ``forward`` says.
        """
        return (predictions.float() - targets.float()).square().mean(dim=-1)

    def best_constant(self, targets: Shaped[Tensor, "B P Y"], weight: Float[Tensor, "B P"]) -> Float[Tensor, " X"]:
        """The one prediction for all tokens with the least weighted error, finite even where no token has weight.

        A decoder that does no better has learnt nothing of single tokens; its error is the yardstick of every loss. By
        itself it is the mean of the targets.

        Args:
            targets: what ``forward`` says.
            weight: how much each token counts, 0 or 1.
        """
        return (targets.float() * weight[..., None]).sum(dim=(0, 1)) / weight.sum().clamp(min=1.0)


class TargetConfig(Config, ABC):
    """What every target offers; a file in this folder holds one subclass named ``Config``."""

    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the precomputed products the target reads, such as ``codes``."""

    @abstractmethod
    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """The module that makes the targets.

        Args:
            patching: the pixels of one token.
            quantizer: the tokenizer's; a target made of pixels ignores it.
        """
