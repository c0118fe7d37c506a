"""Encoders as evaluation and embedding see them: pixels of a clip in, one vector per token out, whoever made the encoder."""

import dataclasses
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor

from models.grid import Patching, patchify
from models.shapes import Float, Int, UInt8
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


class Network(Protocol):
    """A network over the patches of a clip; ``models.vit.Encoder`` is one."""

    def features(
        self, patches: Float[Tensor, "B V patch_dim"], positions: Int[Tensor, "B V"], *, layer: int | None
    ) -> Float[Tensor, "B V D"]:
        """One vector per patch; ``layer`` as ``VideoEncoder.tokens`` has it."""


def every_token(
    network: Network, patches: Float[Tensor, "B N patch_dim"], *, height: int, width: int, layer: int | None
) -> Float[Tensor, "B t h w D"]:
    """One vector per token, all tokens visible.

    Args:
        network: computes them.
        patches: of whole clips, pixels in [0, 1].
        height: rows of tokens in a slot.
        width: tokens in a row.
        layer: as ``VideoEncoder.tokens`` has it.
    """
    positions = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    tokens = network.features(patches, positions, layer=layer).float()
    return rearrange(tokens, "B (t h w) D -> B t h w D", h=height, w=width)


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
        height, width = (side // self.patching.patch_px for side in frames.shape[2:4])
        return every_token(self.encoder, patches.float() / 255, height=height, width=width, layer=layer)
