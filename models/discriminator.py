"""The opponent of the tokenizer: a 3D residual network that tells recorded windows from rebuilt ones.

It holds the network alone; what it is trained towards is in ``models.adversarial``. Everything in it can be differentiated
twice, because the penalty on its gradient is itself followed downhill, and nothing mixes the clips of a batch.
Source of the form: MAGVIT, arXiv 2212.05199, and its published configuration.
"""

import itertools
import math
from typing import Annotated

import torch
from einops import reduce
from pydantic import Field
from torch import nn

from models.config import Config as BaseConfig
from models.convolution import convolution
from models.shapes import Float, Tensor


class Config(BaseConfig):
    """The size of the discriminator; the defaults are MAGVIT-B's, and MAGVIT-L has ``base_channels: 128``."""

    base_channels: int = Field(default=64, gt=0)
    """Channels of the first convolution, and what the multipliers multiply. Source: MAGVIT-B, arXiv 2212.05199."""

    channel_multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(2, 4, 4, 4, 4), min_length=1)
    """Channels after each block over ``base_channels``. Every block halves frames, height and width, rounding up.

    Five blocks take 16 frames to one. Source: the published configuration of MAGVIT.
    """

    slope: float = Field(default=0.2, ge=0, lt=1)
    """Slope of the leaky ReLU below zero. Source: the published code of MAGVIT, after StyleGAN2, arXiv 1912.04958."""

    def build(self) -> "Discriminator":
        """The untrained module."""
        return Discriminator(self)


def initialise(module: nn.Module) -> None:
    """Set the starting weights of one module; for ``nn.Module.apply``.

    Source: Xavier uniform weights in the published code of MAGVIT, and zero biases, the default of its library.
    """
    if isinstance(module, nn.Conv3d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def halve(features: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
    """Means over blocks of 2x2x2; where a side is odd, its last block is the last slice alone, so that 1 stays 1.

    Source: the average pooling of the published code of MAGVIT, whose padding does not count. Slices and plain means
    have a deterministic gradient on CUDA; PyTorch's 3D pooling has none.
    """
    for axis in (2, 3, 4):
        if features.shape[axis] % 2:
            features = torch.cat([features, features.narrow(axis, -1, 1)], dim=axis)
    return reduce(features, "B C (t dt) (h dh) (w dw) -> B C t h w", "mean", dt=2, dh=2, dw=2)


class Block(nn.Module):
    """Two convolutions around a halving, plus a halved shortcut; the sum is scaled back to the size of its parts."""

    def __init__(self, channels_in: int, channels_out: int, slope: float) -> None:
        super().__init__()
        self.activation = nn.LeakyReLU(slope)
        self.fine = convolution(channels_in, channels_in)
        self.coarse = convolution(channels_in, channels_out)
        self.shortcut = nn.Conv3d(channels_in, channels_out, kernel_size=1, bias=False)

    def forward(self, features: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C_out t h w"]:
        """Features on a grid half as fine."""
        halved = halve(self.activation(self.fine(features)))
        changed = self.activation(self.coarse(halved))
        summed: Tensor = self.shortcut(halve(features)) + changed
        return summed / math.sqrt(2)


class Discriminator(nn.Module):
    """One logit per clip: positive for recorded, negative for rebuilt.

    Args:
        config: its size.

    Source: the 3D StyleGAN-type discriminator of MAGVIT, arXiv 2212.05199, without normalisation, as in its published
    configuration. We differ at the end: MAGVIT flattens the last grid into a linear layer, which fixes the size of a
    window; here the mean over the grid goes into that layer, so that the same weights judge windows of every size and
    a flaw counts alike wherever it is.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths = [config.base_channels, *(config.base_channels * multiplier for multiplier in config.channel_multipliers)]
        last = widths[-1]
        self.stem = nn.Sequential(convolution(3, widths[0]), nn.LeakyReLU(config.slope))
        self.blocks = nn.Sequential(*(Block(*pair, config.slope) for pair in itertools.pairwise(widths)))
        self.end = nn.Sequential(convolution(last, last), nn.LeakyReLU(config.slope))
        self.head = nn.Sequential(nn.Linear(last, last), nn.LeakyReLU(config.slope), nn.Linear(last, 1))
        self.apply(initialise)

    def forward(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, " B"]:
        """Logits, unbounded.

        Args:
            clip: windows of any size, pixels in [0, 1], the range by which gradients are penalised, as in MAGVIT. The
                network sees them in [-1, 1], which is our choice: it learns about twice as fast at first.
        """
        features = self.end(self.blocks(self.stem(clip * 2 - 1)))
        logits: Tensor = self.head(reduce(features, "B C t h w -> B C", "mean"))
        return logits[:, 0]
