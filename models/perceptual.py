"""How differently a fixed image classifier sees two clips, frame by frame.

The classifier is a residual network with torchvision's names, and its weights come from whoever trains: this project brings
none along and learns none. Files are not opened here.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import nn
from torch.nn import functional

from models.shapes import Float, Tensor
from models.vit import PIXEL_MEAN, PIXEL_STD

EXPANSION = 4
"""Channels that leave a bottleneck over the channels within. Source: He et al., arXiv 1512.03385, table 1."""


class Size(NamedTuple):
    """The size of a residual network with bottlenecks; the defaults are ResNet-50's. Source: arXiv 1512.03385, table 1."""

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    num_classes: int = 1000


class FixedNorm(nn.Module):
    """Batch normalisation by statistics that were measured once and never change.

    Source: arXiv 1502.03167 at inference; the 1e-5 is PyTorch's default, with which torchvision trains.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, start in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), start))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The features, scaled and shifted per channel."""
        return functional.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-5)


class Bottleneck(nn.Module):
    """Three convolutions added to their input; the middle one, of 3x3, is the one that strides.

    Source: arXiv 1512.03385; the place of the stride is torchvision's, where the paper has it in the first convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = EXPANSION * channels
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=1, bias=False)
        self.bn1 = FixedNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = FixedNorm(channels)
        self.conv3 = nn.Conv2d(channels, channels_out, kernel_size=1, bias=False)
        self.bn3 = FixedNorm(channels_out)
        self.downsample = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            shortcut = nn.Conv2d(channels_in, channels_out, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(shortcut, FixedNorm(channels_out))

    def forward(self, features: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C_out h w"]:
        """The features, changed a little."""
        changed = functional.relu(self.bn1(self.conv1(features)))
        changed = functional.relu(self.bn2(self.conv2(changed)))
        changed = self.bn3(self.conv3(changed))
        return functional.relu(changed + self.downsample(features))


class ResNet(nn.Module):
    """An image classifier for inference, with the names and shapes of torchvision's state dicts.

    Args:
        size: depth and width.

    Source: He et al., arXiv 1512.03385.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, size.width, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = FixedNorm(size.width)
        self.num_layers, channels_in = len(size.depths), size.width
        for layer, depth in enumerate(size.depths):
            channels, stride = size.width * 2**layer, 1 if layer == 0 else 2
            first = Bottleneck(channels_in, channels, stride)
            channels_in = EXPANSION * channels
            others = (Bottleneck(channels_in, channels, stride=1) for _ in range(depth - 1))
            self.add_module(f"layer{layer + 1}", nn.Sequential(first, *others))
        self.fc = nn.Linear(channels_in, size.num_classes)

    def forward(self, frames: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B classes"]:
        """Logits of frames of any size, normalised as in training."""
        features = functional.relu(self.bn1(self.conv1(frames)))
        features = functional.max_pool2d(features, kernel_size=3, stride=2, padding=1)
        for layer in range(self.num_layers):
            features = self.get_submodule(f"layer{layer + 1}")(features)
        logits: Tensor = self.fc(reduce(features, "B C H W -> B C", "mean"))
        return logits


class PerceptualDistance(nn.Module):
    """Mean squared distance between a classifier's logits of rebuilt frames and of the true ones.

    It has no values before ``load``: calling it or moving it to a device fails until then. Nothing in it is ever
    trained, whatever mode it is put in.

    Args:
        num_frames: frames per window that are compared, evenly spaced; ``None``: all. Our choice, to bound the cost.
        side_px: frames are first resized to squares of this side; ``None``: taken as they are, which is cheaper for
            small windows and our choice. MAGVIT resizes to 224, what the classifier was trained on.
        size: of the classifier.

    Source: MAGVIT, arXiv 2212.05199: logits of a ResNet-50 trained on ImageNet. Normalising pixels by ImageNet's mean
    and deviation is what torchvision's weights expect.
    """

    def __init__(self, *, num_frames: int | None = None, side_px: int | None = 224, size: Size | None = None) -> None:
        super().__init__()
        self.num_frames, self.side_px, self.size = num_frames, side_px, size or Size()
        with torch.device("meta"):
            self.network = ResNet(self.size)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "PerceptualDistance":
        """The module, in inference mode whatever ``mode`` says."""
        return super().train(False)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over a copy of the weights of a classifier, in float32.

        Args:
            state: its state dict, named as torchvision's; ``num_batches_tracked`` may be there and is not used.

        Raises:
            ValueError: names are missing or unknown, or shapes differ; the message lists the first few of each.
        """
        given = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        problems = _mismatches({name: value.shape for name, value in self.network.state_dict().items()}, given)
        if problems:
            raise ValueError(
                f"these weights are not those of a ResNet of depths {self.size.depths} and width {self.size.width}: "
                f"{'; '.join(problems)}. Give the state dict of torchvision's resnet50, converted to safetensors"
            )
        copies = {name: value.detach().to(torch.float32, copy=True) for name, value in given.items()}
        self.network.load_state_dict(copies, assign=True)

    def forward(self, rebuilt: Float[Tensor, "B 3 T H W"], clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, ""]:
        """The distance, mean over classes and compared frames; a gradient flows to ``rebuilt`` alone.

        Args:
            rebuilt: what is to look like ``clip``, pixels in [0, 1].
            clip: the true window.

        Raises:
            ValueError: a window has fewer than ``num_frames`` frames.
        """
        with torch.no_grad():
            wanted = self.logits(clip)
        return functional.mse_loss(self.logits(rebuilt), wanted)

    def logits(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B_T classes"]:
        """What the classifier says about the compared frames of every clip, in float32."""
        frames = _evenly_spaced(clip, self.num_frames or clip.shape[2]).float()
        with torch.autocast(clip.device.type, enabled=False):  # bfloat16 would leave pixels eight bits
            frames = _normalised(frames if self.side_px is None else _resized(frames, self.side_px))
        logits: Tensor = self.network(frames)
        return logits.float()


def _mismatches(expected: Mapping[str, torch.Size], given: Mapping[str, Tensor]) -> list[str]:
    """What keeps tensors from taking the expected names and shapes, in words."""
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    reshaped = [
        f"{name} is {tuple(given[name].shape)} and not {tuple(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    return [f"{kind}: {_first_few(names)}" for kind, names in kinds.items() if names]


def _first_few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _evenly_spaced(clip: Float[Tensor, "B 3 T H W"], count: int) -> Float[Tensor, "B_T 3 H W"]:
    """Frames in the middle of ``count`` equal parts of every clip, the frames of a clip one after the other."""
    present = clip.shape[2]
    if count > present:
        raise ValueError(f"num_frames {count} is more than the {present} frames of a window")
    chosen = [(2 * part + 1) * present // (2 * count) for part in range(count)]
    return rearrange([clip[:, :, frame] for frame in chosen], "T B C H W -> (B T) C H W")


def _resized(frames: Float[Tensor, "B 3 H W"], side_px: int) -> Float[Tensor, "B 3 side side"]:
    """Frames as squares, interpolated linearly.

    Two matrix products: PyTorch's own interpolation has no deterministic gradient on CUDA.
    """
    height, width = frames.shape[-2:]
    if (height, width) == (side_px, side_px):
        return frames
    return _interpolation(height, side_px, frames).T @ frames @ _interpolation(width, side_px, frames)


def _interpolation(before: int, after: int, like: Tensor) -> Float[Tensor, "before after"]:
    """What each of ``before`` cells of a line gives to each of ``after`` cells over the same length."""
    cells = torch.eye(before, dtype=like.dtype, device=like.device)
    return functional.interpolate(cells[None], size=after, mode="linear", align_corners=False)[0]


def _normalised(frames: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    mean, deviation = (frames.new_tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return (frames - mean) / deviation
