"""The pixels themselves, with the brightness and contrast of every tubelet taken out."""

from collections.abc import Mapping
from typing import Literal

from einops import rearrange

from models.grid import Patching
from models.quantizers import QuantizerConfig
from models.shapes import Float, Shaped, Tensor
from models.targets import Target, TargetConfig


class Config(TargetConfig):
    """Predict a token's pixels, standardised within the tubelet and per colour channel.

    Source: VideoMAE, arXiv 2203.12602.
    """

    name: Literal["pixels"] = "pixels"
    """The name in a recipe."""

    def build(self, patching: Patching, quantizer: QuantizerConfig) -> Target:
        """A module without parameters."""
        return StandardisedPixels(patching)


class StandardisedPixels(Target):
    """Patches with zero mean and unit variance in every channel."""

    def __init__(self, patching: Patching) -> None:
        super().__init__()
        self.dim = patching.patch_dim

    def forward(
        self, patches: Float[Tensor, "B P patch_dim"], products: Mapping[str, Shaped[Tensor, "B P"]]
    ) -> Float[Tensor, "B P patch_dim"]:
        """Standardised pixels, in the order of the patch."""
        pixels = rearrange(patches.float(), "B P (pixels C) -> B P pixels C", C=3)
        centred = pixels - pixels.mean(dim=2, keepdim=True)
        # The variance is the unbiased one, and a flat tubelet must not divide by zero.
        standardised = centred / (pixels.std(dim=2, keepdim=True, correction=1) + 1e-6)
        return rearrange(standardised, "B P pixels C -> B P (pixels C)")
