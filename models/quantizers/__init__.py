"""How a latent becomes one of K codes. One file per quantizer, named as in a recipe.

A quantizer learns nothing and keeps nothing: it rounds latents to fixed vectors, with a gradient, and numbers these vectors.
"""

from abc import ABC, abstractmethod

from torch import nn

from models.config import Config
from models.shapes import Float, Int, Tensor


class Quantizer(nn.Module, ABC):
    """Rounds latents of ``dim`` channels to vectors, and numbers the vectors 0 ... K-1.

    A subclass defines ``forward(latents: Float[*batch d]) -> Float[*batch d]``: the nearest vectors, in float32, with a
    gradient to the latents.
    """

    dim: int
    """Channels of a latent and of a vector."""
    codebook_size: int
    """Number of different codes, K."""
    zero_code: int
    """The code of the zero latent: what a token zeroed before quantization becomes."""

    @abstractmethod
    def codes(self, vectors: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The numbers of quantized vectors, 0 ... K-1."""

    @abstractmethod
    def vectors(self, codes: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch d"]:
        """The vectors of codes; the inverse of ``codes``."""

    @abstractmethod
    def nearest(self, points: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The code whose vector is closest to each point, wherever that lies: for predictions of vectors."""

    def penalty(self, latents: Float[Tensor, "*batch d"]) -> Float[Tensor, ""]:
        """What the quantizer adds to the loss of a training, already weighted; zero where it needs nothing."""
        return latents.new_zeros(())


class QuantizerConfig(Config, ABC):
    """What every quantizer offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def build(self) -> Quantizer:
        """The module, without parameters."""

    @property
    @abstractmethod
    def channel_levels(self) -> tuple[int, ...]:
        """How many values each channel of a vector takes; their product is the codebook size."""
