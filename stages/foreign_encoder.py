"""An encoder of others as evaluation sees it: long clips pass through it in windows of the length that it was made for."""

import dataclasses
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional

from models.grid import Patching, patchify
from models.shapes import Float, UInt8
from stages.encoders import Network, every_token


class Window(NamedTuple):
    """Frames that pass through the network together."""

    start: int
    stop: int
    """The first frame after it."""
    num_seen: int
    """Frames at its start that the window before it has seen already; their tokens are dropped."""


def windows(num_frames: int, window_frames: int) -> list[Window]:
    """Windows in a row; what is left at the end is seen by the last whole window, which overlaps with the one before it.

    A clip that is shorter than a window is one window of its own length.
    """
    if num_frames <= window_frames:
        return [Window(0, num_frames, 0)]
    starts = range(0, num_frames - window_frames + 1, window_frames)
    whole = [Window(start, start + window_frames, 0) for start in starts]
    rest = num_frames % window_frames
    last = [Window(num_frames - window_frames, num_frames, window_frames - rest)] if rest else []
    return whole + last


@dataclasses.dataclass(frozen=True)
class ForeignEncoder:
    """A network of others with its own clip length and frame size; no token sees a frame outside its window.

    Args:
        network: the network; it normalises pixels itself.
        patching: the pixels of one token.
        num_frames: frames of a window, a whole number of slots.
        size_px: height and width of the frames that the network sees; others are resized.
        device: where the network is.
    """

    network: Network
    patching: Patching
    num_frames: int
    size_px: int
    device: torch.device

    @property
    def tubelet_frames(self) -> int:
        """Frames of one slot."""
        return self.patching.tubelet_frames

    @torch.no_grad()
    def tokens(self, frames: UInt8[Tensor, "B T H W C"], *, layer: int | None) -> Float[Tensor, "B t h w D"]:
        """One vector per token, windows joined in time.

        Args:
            frames: square frames, a whole number of slots.
            layer: the block whose output is taken, from 1; ``None``: after the last block and the final norm, if there is one.

        Raises:
            ValueError: frames are not square or no whole number of slots, or there is no such block.
        """
        _, num_frames, height, width, _ = frames.shape
        if height != width or not num_frames or num_frames % self.tubelet_frames:
            raise ValueError(
                f"{num_frames} frames of {height}x{width} px; expected square frames, in slots of {self.tubelet_frames}"
            )
        parts = [
            self._window(frames[:, window.start : window.stop], layer)[:, window.num_seen // self.tubelet_frames :]
            for window in windows(num_frames, self.num_frames)
        ]
        return torch.cat(parts, dim=1)

    def _window(self, frames: UInt8[Tensor, "B T H W C"], layer: int | None) -> Float[Tensor, "B t h w D"]:
        patches = patchify(self._resized(frames), self.patching)
        side = self.size_px // self.patching.patch_px
        return every_token(self.network, patches, height=side, width=side, layer=layer)

    def _resized(self, frames: UInt8[Tensor, "B T H W C"]) -> Float[Tensor, "B C T H W"]:
        """Pixels in [0, 1] at the network's size."""
        pixels = rearrange(frames, "B T H W C -> (B T) C H W").to(self.device).float() / 255
        if pixels.shape[-1] != self.size_px:
            pixels = functional.interpolate(pixels, size=(self.size_px, self.size_px), mode="bilinear", antialias=True)
        return rearrange(pixels, "(B T) C H W -> B C T H W", B=len(frames))
