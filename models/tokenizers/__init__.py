"""What turns windows of video into codes and says how much each token matters. One file per tokenizer, named as in a recipe.

Every tokenizer, trained here or given as a file of weights, offers the same three things per token: a latent, pixels back from
its quantized vector, and a priority. What is made of them, in windows over long clips, is the same for all and stands here.
"""

import contextlib
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import nn

from models.config import Config
from models.extension import extension
from models.grid import Patching
from models.quantizers import Quantizer, QuantizerConfig, fsq
from models.shapes import Float, Int, Tensor


class WindowConfig(Config):
    """How a long clip is cut into the tokenizer's windows."""

    stride_frames: int | None = Field(default=None, gt=0)
    """Frames from one window to the next; ``None``: a whole window, so that they do not overlap.

    Of windows that overlap, each gives the tokens of its last ``stride_frames`` frames, and the first gives all of its own.
    Source: 16 frames, no overlap, in arXiv 2411.13683.
    """

    first_slot: Literal["repeat", "look_back"] = "repeat"
    """The priority of a window's first slot, which has no slot before it: that of the second (EVEREST), or measured against
    the last slot of the window before. The clip's very first slot always repeats the second. arXiv 2411.13683 does not say."""

    batch_windows: int = Field(default=8, gt=0)
    """Windows per forward pass; bounds the memory. The codes of large networks may depend on it in the last bit."""


PLAIN_WINDOWS = WindowConfig()
"""As in the paper: no overlap."""


class TokenizerConfig(Config, ABC):
    """What every tokenizer offers; a file in this folder holds one subclass named ``Config``."""

    is_trained: ClassVar[bool] = True
    """Whether gradients have a part in it; if not, it is ready as it is built."""

    name: str
    """The name in a recipe."""

    window_frames: int = Field(default=16, gt=0)
    """Frames the tokenizer sees at once. Source: arXiv 2411.13683."""

    patching: Patching = Patching()
    """The pixels of one token: 8 x 14 x 14 tokens from 16 x 224 x 224. Source: arXiv 2411.13683."""

    quantizer: extension("models.quantizers", QuantizerConfig) = fsq.Config()
    """What makes codes of latents."""

    @model_validator(mode="after")
    def _window_is_whole_tubelets(self) -> "TokenizerConfig":
        if self.window_frames % self.patching.tubelet_frames or self.window_slots < 2:
            raise ValueError(
                f"window_frames {self.window_frames} must be two or more whole tubelets of "
                f"patching.tubelet_frames {self.patching.tubelet_frames}"
            )
        return self

    @property
    def window_slots(self) -> int:
        """Temporal slots in a window."""
        return self.window_frames // self.patching.tubelet_frames

    @abstractmethod
    def build(self) -> "Tokenizer":
        """The untrained module."""


class Tokenizer(nn.Module, ABC):
    """Codes, pixels and priorities of windows; a subclass defines ``latents``, ``rebuild`` and ``priority``.

    Args:
        config: of the file that defines the subclass.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.quantizer: Quantizer = config.quantizer.build()

    @abstractmethod
    def latents(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w d"]:
        """Latents before quantization, for every token of one window with pixels in [0, 1]."""

    @abstractmethod
    def rebuild(self, vectors: Float[Tensor, "B t h w d"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels from the quantized vectors of one window."""

    @abstractmethod
    def priority(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w"]:
        """How much every token matters, compared with others of its clip; of a clip of two slots or more.

        The first slot repeats the second.
        """

    def reconstruct(
        self, clip: Float[Tensor, "B 3 T H W"], keep: Float[Tensor, "B t h w"] | None = None
    ) -> Float[Tensor, "B 3 T H W"]:
        """One window rebuilt from all tokens, or from the kept ones, the others being zeroed before quantization."""
        latents = self.latents(clip)
        return self.rebuild(self.quantizer(latents if keep is None else latents * keep[..., None]))

    @torch.no_grad()
    def tokenize(
        self, clip: Float[Tensor, "B 3 T H W"], windows: WindowConfig = PLAIN_WINDOWS
    ) -> tuple[Int[Tensor, "B t h w"], Float[Tensor, "B t h w"]]:
        """Codes and priorities of every token of a long clip, none of them zeroed.

        Args:
            clip: a whole number of windows, pixels in [0, 1].
            windows: how it is cut.

        Raises:
            ValueError: the clip does not divide into windows at this stride.
        """
        starts = self.window_starts(clip.shape[2], windows)
        size, tubelet = self.config.window_frames, self.config.patching.tubelet_frames
        cut = torch.stack([clip[:, :, start : start + size] for start in starts], dim=1)  # [B, n, 3, T, H, W]
        parts = torch.split(cut.flatten(0, 1), windows.batch_windows)
        codes = torch.cat([self.quantizer.codes(self.quantizer(self.latents(part))) for part in parts])
        codes = rearrange(codes, "(B n) t h w -> B n t h w", n=len(starts))
        fresh = (starts[1] if len(starts) > 1 else size) // tubelet
        joined = torch.cat([codes[:, 0], *(codes[:, number, -fresh:] for number in range(1, len(starts)))], dim=1)
        return joined, self._window_priority(clip, windows)

    def window_starts(self, num_frames: int, windows: WindowConfig) -> range:
        """The first frames of the windows of a clip.

        Raises:
            ValueError: the windows do not cover the clip exactly, or a stride is no whole number of tubelets.
        """
        size = self.config.window_frames
        stride = windows.stride_frames or size
        if stride > size or stride % self.config.patching.tubelet_frames:
            raise ValueError(
                f"windows.stride_frames {stride} must be a multiple of patching.tubelet_frames "
                f"{self.config.patching.tubelet_frames} and no more than window_frames {size}"
            )
        if num_frames < size or (num_frames - size) % stride:
            raise ValueError(f"{num_frames} frames are no windows of {size} frames, one every {stride}")
        return range(0, num_frames - size + 1, stride)

    def _window_priority(self, clip: Float[Tensor, "B 3 T H W"], windows: WindowConfig) -> Float[Tensor, "B t h w"]:
        priority = self.priority(clip)
        overlaps = windows.stride_frames not in (None, self.config.window_frames)
        if overlaps or windows.first_slot == "look_back":
            return priority
        slots = torch.arange(priority.shape[1], device=priority.device)
        return priority[:, slots + (slots % self.config.window_slots == 0)]

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [0, 1] from codes, window by window without overlap.

        Raises:
            einops.EinopsError: the codes are not a whole number of windows.
        """
        windows = rearrange(codes, "B (n t) h w -> (B n) t h w", t=self.config.window_slots)
        clips = self.rebuild(self.quantizer.vectors(windows)).clamp(0, 1)
        return rearrange(clips, "(B n) C T H W -> B C (n T) H W", B=codes.shape[0])


def full_precision(clip: Tensor) -> contextlib.AbstractContextManager[object]:
    """Where priorities are computed, whatever the surroundings: few bits would make ties of what is to be ranked."""
    kind = clip.device.type  # meta tensors, which only count, know no autocast
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else contextlib.nullcontext()


def slot_distance(features: Float[Tensor, "B C t h w"]) -> Float[Tensor, "B t h w"]:
    """How far the features of every token lie from those at the same place in the slot before; 0 for a still image.

    The first slot has no slot before it and repeats the second slot's values.

    Source: arXiv 2411.13683, section 3.1, and EVEREST, arXiv 2211.10636, for the first slot.
    """
    change = (features[:, :, 1:] - features[:, :, :-1]).float()
    distance = torch.linalg.vector_norm(change, dim=1)  # [B, t-1, h, w]
    return torch.cat([distance[:, :1], distance], dim=1)
