"""The adaptive tokenizer: a 3D convolutional autoencoder with scalar quantization that keeps only the tokens that matter.

Trained on short windows and then frozen, it gives a masked autoencoder two things: a code for every token, to be
predicted, and a priority for every token, to choose which. It holds no losses; those belong to its training.
"""

import math
from typing import Annotated, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import nn

from models.config import Config as BaseConfig
from models.convolution import Scorer, Stage, down, initialise, up
from models.fsq import FSQ
from models.grid import Patching
from models.shapes import Float, Int, Tensor
from models.top_k import straight_through_top_k


class Config(BaseConfig):
    """The architecture of the tokenizer; the defaults are the paper's where the paper says."""

    window_frames: int = Field(default=16, gt=0)
    """Frames the tokenizer sees at once. Source: arXiv 2411.13683."""

    patching: Patching = Patching()
    """The pixels of one token: 8 x 14 x 14 tokens from 16 x 224 x 224. Source: arXiv 2411.13683."""

    levels: tuple[Annotated[int, Field(ge=3)], ...] = (8,) * 6
    """Levels per quantized channel; six of 8 make the paper's 2**18 codes, the split into six is our choice."""

    top_k: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] = 768
    """Tokens kept per window in training: a whole number, or below one a share of the window, rounded down.

    The always kept first slot counts among them. Source: arXiv 2411.13683 keeps 768, of 1568 at 224 px.
    """

    keep_first_slot: bool = True
    """Whether training always keeps the first slot, which has no predecessor to differ from. Source: arXiv 2411.13683."""

    temperature: float = Field(default=1.0, gt=0)
    """Width of the gradient of the selection, in standard deviations of the priorities. Our choice."""

    base_channels: int = Field(default=64, gt=0)
    """Channels that the multipliers multiply. Source: MAGVIT-B, arXiv 2212.05199."""

    channel_multipliers: tuple[Annotated[int, Field(gt=0)], ...] = Field(default=(1, 2, 2, 4, 4), min_length=1)
    """Channels at each resolution over ``base_channels``; one more entry than there are halvings of the side.

    Source: MAGVIT has (1, 2, 2, 4); the fifth entry is our choice.
    """

    num_res_blocks: int = Field(default=2, gt=0)
    """Residual blocks at each resolution. Source: MAGVIT-B, arXiv 2212.05199."""

    stem_patch_px: int = Field(default=1, gt=0)
    """Side of the blocks of pixels that are folded into channels before the first convolution, and back after the last.

    1 is the published form. 2 or 4 is our choice for processors without an accelerator: it removes the resolutions
    where nearly all the time goes, and with each doubling one entry of ``channel_multipliers``.
    """

    scorer_channels: int = Field(default=64, gt=0)
    """Features per token that the priority is measured on. Our choice."""

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> "Config":
        if self.window_frames % self.patching.tubelet_frames or self.window_slots < 2:
            raise ValueError(
                f"window_frames {self.window_frames} must be two or more whole tubelets of "
                f"patching.tubelet_frames {self.patching.tubelet_frames}"
            )
        halvings = math.log2(self.patching.patch_px / self.stem_patch_px)
        if halvings != len(self.channel_multipliers) - 1:
            raise ValueError(
                f"patching.patch_px {self.patching.patch_px} over stem_patch_px {self.stem_patch_px} is {halvings:g} "
                f"halvings; channel_multipliers has {len(self.channel_multipliers)} entries, one more than halvings"
            )
        time_halvings = math.log2(self.patching.tubelet_frames)
        if not time_halvings.is_integer() or time_halvings > halvings:
            raise ValueError(
                f"patching.tubelet_frames {self.patching.tubelet_frames} must be a power of two that the "
                f"{halvings:g} halvings between channel_multipliers can reach"
            )
        return self

    @property
    def window_slots(self) -> int:
        """Temporal slots in a window."""
        return self.window_frames // self.patching.tubelet_frames

    def num_kept(self, window_tokens: int) -> int:
        """Tokens that training keeps in a window.

        Raises:
            ValueError: ``top_k`` is more than the window has, or no more than its always kept first slot.
        """
        kept = self.top_k if isinstance(self.top_k, int) else math.floor(self.top_k * window_tokens + 1e-9)
        always = window_tokens // self.window_slots if self.keep_first_slot else 0
        if not always < kept <= window_tokens:
            raise ValueError(
                f"top_k {self.top_k} keeps {kept} tokens; a window has {window_tokens}, "
                f"of which the first slot always keeps {always}"
            )
        return kept

    def stages(self) -> list[Stage]:
        """The resolutions from fine to coarse; time is halved first, as in MAGVIT."""
        time_halvings = int(math.log2(self.patching.tubelet_frames))
        return [
            Stage(self.base_channels * multiplier, shrink_t=2 if index < time_halvings else 1, shrink_px=2)
            for index, multiplier in enumerate(self.channel_multipliers)
        ]


class Reconstruction(NamedTuple):
    """What one training pass of the tokenizer yields."""

    clip: Float[Tensor, "B 3 T H W"]
    codes: Int[Tensor, "B t h w"]
    priority: Float[Tensor, "B t h w"]
    keep: Float[Tensor, "B t h w"]


def centred(clip: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Pixels in [-1, 1]; our choice, without it a small tokenizer takes many times longer to leave the mean image."""
    return clip * 2 - 1


class AdaptiveTokenizer(nn.Module):
    """Encoder, token scorer, selection, quantizer and decoder.

    Source: arXiv 2411.13683, section 3.1, on the autoencoder of MAGVIT, arXiv 2212.05199. A sigmoid keeps the output
    in [0, 1], which is our choice.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.quantizer = FSQ(config.levels)
        pixels = 3 * config.stem_patch_px**2
        stages, blocks = config.stages(), config.num_res_blocks
        self.encoder = down(pixels, self.quantizer.dim, stages=stages, blocks_per_stage=blocks)
        self.decoder = up(self.quantizer.dim, pixels, stages=stages, blocks_per_stage=blocks)
        halvings = int(math.log2(config.patching.patch_px))
        self.scorer = Scorer(
            config.scorer_channels,
            stride_t=config.patching.tubelet_frames,
            strides_px=(2 ** (halvings - halvings // 2), 2 ** (halvings // 2)),
        )
        self.apply(initialise)

    def forward(self, clip: Float[Tensor, "B 3 T H W"]) -> Reconstruction:
        """The clip rebuilt from its kept tokens, with the codes, priorities and selection that led to it.

        A token that is not kept is zeroed before quantization, so its code is the quantizer's centre code.

        Args:
            clip: one window, pixels in [0, 1].

        Raises:
            ValueError: the clip is not one window long, or ``top_k`` does not fit its tokens.
        """
        if clip.shape[2] != self.config.window_frames:
            raise ValueError(f"a window has {self.config.window_frames} frames, the clip {clip.shape[2]}")
        priority = self.priority(clip)
        keep = self.select(priority)
        vectors = self.quantizer(self.latents(clip) * keep[..., None])  # [B, t, h, w, d]
        return Reconstruction(self.rebuild(vectors), self.quantizer.codes(vectors.detach()), priority, keep)

    def latents(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w d"]:
        """Latents before quantization, for every token."""
        side = self.config.stem_patch_px
        folded = rearrange(centred(clip), "B C T (H dh) (W dw) -> B (dh dw C) T H W", dh=side, dw=side)
        encoded: Tensor = self.encoder(folded)
        return rearrange(encoded, "B d t h w -> B t h w d")

    def rebuild(self, vectors: Float[Tensor, "B t h w d"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [0, 1] from the quantized vectors of one window."""
        side = self.config.stem_patch_px
        folded = self.decoder(rearrange(vectors, "B t h w d -> B d t h w"))
        pixels = rearrange(folded, "B (dh dw C) T H W -> B C T (H dh) (W dw)", dh=side, dw=side)
        return torch.sigmoid(pixels)

    def priority(self, clip: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B t h w"]:
        """How far each token's features lie from those at the same place in the slot before; 0 for a still image.

        The first slot has no slot before it and repeats the second slot's values, as EVEREST does.
        """
        features = self.scorer(centred(clip))
        distance = torch.linalg.vector_norm(features[:, :, 1:] - features[:, :, :-1], dim=1)  # [B, t-1, h, w]
        return torch.cat([distance[:, :1], distance], dim=1)

    def select(self, priority: Float[Tensor, "B t h w"]) -> Float[Tensor, "B t h w"]:
        """One for every token that training keeps, zero for the others, with a gradient to the priorities."""
        kept = self.config.num_kept(priority[0].numel())
        free = priority[:, 1:] if self.config.keep_first_slot else priority
        always = torch.ones_like(priority[:, : priority.shape[1] - free.shape[1]])
        num_free = kept - always[0].numel()
        chosen = straight_through_top_k(free.flatten(1), num_free, self.config.temperature)
        return torch.cat([always, chosen.view_as(free)], dim=1)

    @torch.no_grad()
    def tokenize(self, clip: Float[Tensor, "B 3 T H W"]) -> tuple[Int[Tensor, "B t h w"], Float[Tensor, "B t h w"]]:
        """Codes and priorities of every token, none of them zeroed.

        A long clip is cut into windows that do not overlap; every window's first slot repeats its second slot's
        priority.

        Args:
            clip: a whole number of windows, pixels in [0, 1].

        Raises:
            einops.EinopsError: the clip is not a whole number of windows.
        """
        frames = self.config.window_frames
        windows = rearrange(clip, "B C (n T) H W -> (B n) C T H W", T=frames)
        codes = self.quantizer.codes(self.quantizer(self.latents(windows)))
        joined = "(B n) t h w -> B (n t) h w"
        num_clips = clip.shape[0]
        return rearrange(codes, joined, B=num_clips), rearrange(self.priority(windows), joined, B=num_clips)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "B t h w"]) -> Float[Tensor, "B 3 T H W"]:
        """Pixels in [0, 1] from codes, window by window as ``tokenize`` made them.

        Raises:
            einops.EinopsError: the codes are not a whole number of windows.
        """
        windows = rearrange(codes, "B (n t) h w -> (B n) t h w", t=self.config.window_slots)
        clips = self.rebuild(self.quantizer.vectors(windows))
        return rearrange(clips, "(B n) C T H W -> B C (n T) H W", B=codes.shape[0])
