"""The blocks of a 3D convolutional autoencoder in the form of MAGVIT, and the two halves built from them.

Pooling and enlarging are plain means and repeats: PyTorch's own 3D pooling has no deterministic gradient on CUDA.
Source of the form: MAGVIT, arXiv 2212.05199, and its published configuration.
"""

import math
from typing import NamedTuple

from einops import reduce, repeat
from torch import nn
from torch.nn import functional

from models.shapes import Float, Tensor


class Stage(NamedTuple):
    """One resolution of the network: its channels, and how much coarser the next one is."""

    channels: int
    shrink_t: int
    shrink_px: int


def normalisation(channels: int) -> nn.GroupNorm:
    """Group normalisation with MAGVIT's 32 groups, fewer where that would leave a single channel in a group."""
    return nn.GroupNorm(math.gcd(32, max(1, channels // 2)), channels)


def convolution(channels_in: int, channels_out: int, *, bias: bool = True) -> nn.Conv3d:
    """A 3x3x3 convolution that keeps the grid."""
    return nn.Conv3d(channels_in, channels_out, kernel_size=3, padding=1, bias=bias)


def initialise(module: nn.Module) -> None:
    """Set the starting weights of one module; for ``nn.Module.apply``.

    PyTorch's default shrinks the signal at every layer, and a deep autoencoder then rests on the mean image for long.
    Source: LeCun normal weights and zero biases, the defaults of the library MAGVIT is written in.
    """
    if isinstance(module, nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ResidualBlock(nn.Module):
    """Two normalised convolutions added to their input."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            normalisation(channels_in),
            nn.SiLU(),
            convolution(channels_in, channels_out, bias=False),
            normalisation(channels_out),
            nn.SiLU(),
            convolution(channels_out, channels_out, bias=False),
        )
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv3d(channels_in, channels_out, kernel_size=1)

    def forward(self, features: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C_out T H W"]:
        """The features, changed a little."""
        changed: Tensor = self.shortcut(features) + self.body(features)
        return changed


class Shrink(nn.Module):
    """Averages blocks of the grid."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.factors = {"dt": stage.shrink_t, "dh": stage.shrink_px, "dw": stage.shrink_px}

    def forward(self, features: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C t h w"]:
        """Features on the coarser grid."""
        return reduce(features, "B C (t dt) (h dh) (w dw) -> B C t h w", "mean", **self.factors)


class Enlarge(nn.Module):
    """Repeats every cell of the grid and smooths the result with a convolution."""

    def __init__(self, stage: Stage, channels: int) -> None:
        super().__init__()
        self.factors = {"dt": stage.shrink_t, "dh": stage.shrink_px, "dw": stage.shrink_px}
        self.smooth = convolution(channels, channels)

    def forward(self, features: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B C T H W"]:
        """Features on the finer grid."""
        repeated = repeat(features, "B C t h w -> B C (t dt) (h dh) (w dw)", **self.factors)
        smoothed: Tensor = self.smooth(repeated)
        return smoothed


def residual_blocks(channels_in: int, channels_out: int, count: int) -> list[nn.Module]:
    """A chain of residual blocks; the first one changes the number of channels."""
    return [ResidualBlock(channels_in if index == 0 else channels_out, channels_out) for index in range(count)]


def down(channels_in: int, channels_out: int, *, stages: list[Stage], blocks_per_stage: int) -> nn.Sequential:
    """The encoder: a convolution, the stages from fine to coarse, more residual blocks, and a projection."""
    layers: list[nn.Module] = [convolution(channels_in, stages[0].channels)]
    width = stages[0].channels
    for stage in stages:
        layers += residual_blocks(width, stage.channels, blocks_per_stage)
        if stage is not stages[-1]:
            layers.append(Shrink(stage))
        width = stage.channels
    layers += residual_blocks(width, width, blocks_per_stage)
    layers += [normalisation(width), nn.SiLU(), nn.Conv3d(width, channels_out, kernel_size=1)]
    return nn.Sequential(*layers)


def up(channels_in: int, channels_out: int, *, stages: list[Stage], blocks_per_stage: int) -> nn.Sequential:
    """The decoder: a convolution, residual blocks, the stages from coarse to fine, and a convolution to the output."""
    width = stages[-1].channels
    layers: list[nn.Module] = [convolution(channels_in, width)]
    layers += residual_blocks(width, width, blocks_per_stage)
    for stage in reversed(stages):
        if stage is not stages[-1]:
            layers.append(Enlarge(stage, width))
        layers += residual_blocks(width, stage.channels, blocks_per_stage)
        width = stage.channels
    layers += [normalisation(width), nn.SiLU(), convolution(width, channels_out)]
    return nn.Sequential(*layers)


class Scorer(nn.Module):
    """Importance features: two strided convolutions whose output grid is the token grid.

    A kernel never crosses from one slot of time into the next, so that the difference between two slots is a
    difference between their frames alone. In space, kernels overlap.

    Args:
        channels: features per token.
        stride_t: frames of a token.
        strides_px: spatial stride of the first and of the second layer; their product is the side of a token.

    Source: arXiv 2411.13683, section 3.1, for two strided layers; kernels, widths and the activation are ours.
    """

    def __init__(self, channels: int, *, stride_t: int, strides_px: tuple[int, int]) -> None:
        super().__init__()
        first, second = strides_px
        self.first = self._layer(3, channels, stride_t, first)
        self.second = self._layer(channels, channels, 1, second)

    @staticmethod
    def _layer(channels_in: int, channels_out: int, stride_t: int, stride_px: int) -> nn.Conv3d:
        # A kernel of 2s-1 with padding s-1 shrinks every multiple of s by exactly s.
        side, padding = 2 * stride_px - 1, stride_px - 1
        return nn.Conv3d(
            channels_in,
            channels_out,
            kernel_size=(stride_t, side, side),
            stride=(stride_t, stride_px, stride_px),
            padding=(0, padding, padding),
        )

    def forward(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B C t h w"]:
        """One feature vector per token."""
        features: Tensor = self.second(functional.silu(self.first(clip)))
        return features
