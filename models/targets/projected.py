"""The tokenizer's quantized latents, turned into a space of another size by a fixed random projection."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from models.grid import Patching
from models.quantizers import Quantizer, QuantizerConfig
from models.shapes import Float, Shaped, Tensor
from models.targets import Target, TargetConfig


class Config(TargetConfig):
    """Predict an orthogonal projection of every token's code vector.

    Source: our choice. arXiv 2411.13683 regresses "the latent embeddings from the tokenizer" and does not say whether these
    are the quantizer's few numbers (``code_vectors``) or a wider embedding of them. A trained embedding is not stored with the
    codes; a random one stands in for it, which keeps all distances and favours no channel.
    """

    needs: ClassVar[tuple[str, ...]] = ("codes",)

    name: Literal["projected"] = "projected"
    """The name in a recipe."""

    dim: int = Field(ge=1)
    """Numbers per token. With fewer than the quantizer has channels, some codes come to lie closer than others."""

    seed: int = 0
    """Seed of the projection."""

    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """A module without parameters; the same config always makes the same projection."""
        return Projected(quantizer.build(), self.dim, self.seed)


class Projected(Target):
    """Code vectors times a matrix with orthonormal columns, or rows where it narrows, and scaled.

    The scale makes the mean square of a target that of a code vector, so that the loss does not depend on ``dim``. The
    matrix is drawn in double precision and rounded, which leaves no room for another linear algebra library to change it
    by more than the last bit.

    Args:
        quantizer: whose vectors are projected.
        dim: numbers per token.
        seed: seed of the projection.
    """

    projection: Tensor

    def __init__(self, quantizer: Quantizer, dim: int, seed: int) -> None:
        super().__init__()
        self.quantizer, self.dim = quantizer, dim
        drawn = torch.empty(dim, quantizer.dim, dtype=torch.float64)
        gain = math.sqrt(max(1.0, dim / quantizer.dim))
        nn.init.orthogonal_(drawn, gain, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("projection", drawn.float(), persistent=False)

    def forward(
        self, patches: Float[Tensor, "B P patch_dim"], products: Mapping[str, Shaped[Tensor, "B P"]]
    ) -> Float[Tensor, "B P dim"]:
        """Projected code vectors, with the code vectors' mean square."""
        vectors = self.quantizer.vectors(products["codes"])
        with torch.autocast(vectors.device.type, enabled=False):  # bfloat16 would leave a target eight bits
            return vectors @ self.projection.T
