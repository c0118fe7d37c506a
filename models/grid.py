"""The token grid of a clip and the way pixels fall into it.

Every part of the project that speaks of "token 17" means position 17 of one order: slots of time first, then rows, then
columns. This module is the only place where that order is spelled; the tokenizer's codes, the priorities and the
transformer's tokens all follow it.
"""

from typing import NamedTuple

from einops import rearrange
from pydantic import Field

from models.config import Config
from models.shapes import Int, Shaped, Tensor


class Grid(NamedTuple):
    """Token counts along time, height and width."""

    t: int
    h: int
    w: int

    @property
    def num_tokens(self) -> int:
        """Tokens in the clip, t*h*w."""
        return self.t * self.h * self.w

    @property
    def slot_tokens(self) -> int:
        """Tokens in one temporal slot, h*w."""
        return self.h * self.w


class Patching(Config):
    """The block of pixels that becomes one token."""

    tubelet_frames: int = Field(default=2, gt=0)
    """Frames in one temporal slot. Source: VideoMAE, arXiv 2203.12602."""

    patch_px: int = Field(default=16, gt=0)
    """Height and width of a patch, in pixels. Source: VideoMAE, arXiv 2203.12602."""

    @property
    def patch_dim(self) -> int:
        """Values in one patch: frames x rows x columns x RGB."""
        return self.tubelet_frames * self.patch_px**2 * 3

    def grid(self, num_frames: int, size_px: int) -> Grid:
        """The token grid of a square clip.

        Raises:
            ValueError: frames or pixels do not fill whole patches.
        """
        if num_frames < 1 or num_frames % self.tubelet_frames:
            raise ValueError(f"{num_frames} frames do not divide into tubelets of {self.tubelet_frames} frames")
        if size_px < 1 or size_px % self.patch_px:
            raise ValueError(f"a side of {size_px} px does not divide into patches of {self.patch_px} px")
        side = size_px // self.patch_px
        return Grid(num_frames // self.tubelet_frames, side, side)


def patchify(clip: Shaped[Tensor, "B C T H W"], patching: Patching) -> Shaped[Tensor, "B N patch_dim"]:
    """The patches of a clip, in token order; inside a patch the order is (frame, row, column, channel).

    Any dtype: uint8 patches are four times cheaper to move than float ones.

    Raises:
        einops.EinopsError: the clip does not divide into whole patches.
    """
    frames, side = patching.tubelet_frames, patching.patch_px
    pattern = "B C (t dt) (h dh) (w dw) -> B (t h w) (dt dh dw C)"
    return rearrange(clip, pattern, dt=frames, dh=side, dw=side)


def unpatchify(patches: Shaped[Tensor, "B N patch_dim"], patching: Patching, grid: Grid) -> Shaped[Tensor, "B C T H W"]:
    """The clip that ``patchify`` took apart."""
    frames, side = patching.tubelet_frames, patching.patch_px
    pattern = "B (t h w) (dt dh dw C) -> B C (t dt) (h dh) (w dw)"
    return rearrange(patches, pattern, t=grid.t, h=grid.h, w=grid.w, dt=frames, dh=side, dw=side)


def gather_tokens(tokens: Shaped[Tensor, "B N D"], index: Int[Tensor, "B M"]) -> Shaped[Tensor, "B M D"]:
    """The tokens at the given positions of each clip, in the order of ``index``."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.shape[2]))
