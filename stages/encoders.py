"""Encoders as evaluation and embedding see them: pixels of a clip in, one vector per token out, whoever made the encoder."""

import dataclasses
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from models.grid import Patching, patchify
from models.shapes import Float, UInt8
from models.vit import Encoder


class VideoEncoder(Protocol):
    """What turns recorded frames into tokens."""

    @property
    def tubelet_frames(self) -> int:
        """Frames of one slot; clips have a whole number of slots."""

    def tokens(self, frames: UInt8[Tensor, "B T H W C"], *, layer: int | None) -> Float[Tensor, "B t h w D"]:
        """One vector per token of clips of equal length, all tokens visible.

        Args:
            frames: recorded frames, a whole number of slots, on any device.
            layer: the block whose output is taken, from 1; ``None``: after the last block and the final norm.
        """


@dataclasses.dataclass(frozen=True)
class OwnEncoder:
    """An encoder of this project; clips may be shorter than those it was trained on, and none may be longer.

    Args:
        encoder: the network.
        patching: the pixels of one token.
        device: where the network is.
    """

    encoder: Encoder
    patching: Patching
    device: torch.device

    @property
    def tubelet_frames(self) -> int:
        """Frames of one slot."""
        return self.patching.tubelet_frames

    @torch.no_grad()
    def tokens(self, frames: UInt8[Tensor, "B T H W C"], *, layer: int | None) -> Float[Tensor, "B t h w D"]:
        """One vector per token, all tokens visible."""
        patches = patchify(rearrange(frames, "B T H W C -> B C T H W").to(self.device), self.patching)
        positions = torch.arange(patches.shape[1], device=self.device).expand(len(patches), -1)
        tokens = self.encoder.features(patches.float() / 255, positions, layer=layer)
        height, width = (side // self.patching.patch_px for side in frames.shape[2:4])
        return rearrange(tokens.float(), "B (t h w) D -> B t h w D", h=height, w=width)
