"""The tokenizer's quantized latents: the vectors that the stored codes stand for."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from models.grid import Patching
from models.quantizers import QuantizerConfig
from models.shapes import Float, Shaped, Tensor
from models.targets import Target, TargetConfig


class Config(TargetConfig):
    """Predict the code vector of every token, one number per channel of the quantizer, in [-1, 1].

    Source: arXiv 2411.13683 regresses the tokenizer's latents; that they are the raw code vectors is our reading.
    """

    needs: ClassVar[tuple[str, ...]] = ("codes",)

    name: Literal["code_vectors"] = "code_vectors"
    """The name in a recipe."""

    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """A table look-up without a table: a code's digits are its vector."""
        return CodeVectors(quantizer)


class CodeVectors(Target):
    """The quantizer's vectors of ``products["codes"]``."""

    def __init__(self, quantizer: QuantizerConfig) -> None:
        super().__init__()
        self.quantizer = quantizer.build()
        self.dim = self.quantizer.dim

    def forward(
        self, patches: Float[Tensor, "B P patch_dim"], products: Mapping[str, Shaped[Tensor, "B P"]]
    ) -> Float[Tensor, "B P dim"]:
        """Code vectors in [-1, 1]."""
        return self.quantizer.vectors(products["codes"])
