"""The adaptive tokenizer: a 3D convolutional autoencoder with scalar quantization that keeps only the tokens that matter.

Trained on short windows and then frozen, it gives a masked autoencoder two things: a code for every token, to be
predicted, and a priority for every token, to choose which. It holds no losses; those belong to its training.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, model_validator

from models.convolution import Scorer, Stage, down, initialise, up
from models.extension import extension
from models.selection import SelectionConfig, straight_through
from models.shapes import Float, Int, Tensor
from models.tokenizers import Tokenizer, TokenizerConfig, full_precision, slot_distance

VARIANTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": {"base_channels": 32, "channel_multipliers": (1, 2, 4), "num_res_blocks": 1, "stem_patch_px": 4},
        "small": {"base_channels": 32, "channel_multipliers": (1, 2, 4, 4), "num_res_blocks": 2, "stem_patch_px": 2},
        "base": {"base_channels": 64, "channel_multipliers": (1, 2, 2, 4, 4), "num_res_blocks": 2, "stem_patch_px": 1},
        "large": {"base_channels": 128, "channel_multipliers": (1, 2, 2, 4, 4), "num_res_blocks": 2, "stem_patch_px": 1},
    }
)
"""Sizes by name, for tokens of 16 px. ``base`` and ``large`` are MAGVIT-B and MAGVIT-L of arXiv 2212.05199 with a fifth stage;
``tiny`` and ``small`` are our choice for processors without an accelerator."""


class Config(TokenizerConfig):
    """The architecture of the tokenizer; the defaults are the paper's where the paper says.

    ``variant: tiny`` (or another of ``VARIANTS``) stands for the sizes of that name; a size that is given beside it wins.
    """

    name: Literal["adaptive"] = "adaptive"
    """The name in a recipe."""

    top_k: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=1)] = 768
    """Tokens kept per window in training: a whole number, or below one a share of the window, rounded down.

    Source: arXiv 2411.13683 keeps 768, of 1568 at 224 px.
    """

    keep_first_slot: bool = True
    """Whether training always keeps the first slot, which has no predecessor to differ from. Source: arXiv 2411.13683."""

    top_k_counts_first_slot: bool = True
    """Whether the always kept first slot is among the ``top_k`` or comes on top of them. arXiv 2411.13683 does not say."""

    selection: extension("models.selection", SelectionConfig) = straight_through.Config()
    """How the kept tokens are chosen and how a gradient reaches the priorities."""

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

    @model_validator(mode="before")
    @classmethod
    def _from_variant(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or "variant" not in value:
            return value
        fields = dict(value)
        variant = fields.pop("variant")
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
        return {**VARIANTS[variant], **fields}

    @model_validator(mode="after")
    def _sizes_fit_together(self) -> "Config":
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

    def build(self) -> "AdaptiveTokenizer":
        """The untrained module."""
        return AdaptiveTokenizer(self)

    def num_kept(self, window_tokens: int) -> int:
        """Tokens that training keeps in a window.

        Raises:
            ValueError: ``top_k`` is more than the window has, or no more than its always kept first slot.
        """
        kept = self.top_k if isinstance(self.top_k, int) else math.floor(self.top_k * window_tokens + 1e-9)
        always = window_tokens // self.window_slots if self.keep_first_slot else 0
        kept += 0 if self.top_k_counts_first_slot else always
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
    penalty: Float[Tensor, ""]
    """What the quantizer adds to the loss."""


def centred(clip: Float[Tensor, "B C T H W"]) -> Float[Tensor, "B C T H W"]:
    """Pixels in [-1, 1]; our choice, without it a small tokenizer takes many times longer to leave the mean image."""
    return clip * 2 - 1


class AdaptiveTokenizer(Tokenizer):
    """Encoder, token scorer, selection, quantizer and decoder.

    Source: arXiv 2411.13683, section 3.1, on the autoencoder of MAGVIT, arXiv 2212.05199. A sigmoid keeps the output
    in [0, 1], which is our choice.
    """

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
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

    def forward(self, clip: Float[Tensor, "B 3 T H W"], generator: torch.Generator | None = None) -> Reconstruction:
        """The clip rebuilt from its kept tokens, with the codes, priorities and selection that led to it.

        A token that is not kept is zeroed before quantization, so its code is the quantizer's code of zero; ``keep`` tells
        it from a token that has this code by itself.

        Args:
            clip: one window, pixels in [0, 1].
            generator: chance in the selection, for the forms that have some; ``None``: none.

        Raises:
            ValueError: the clip is not one window long, or ``top_k`` does not fit its tokens.
        """
        if clip.shape[2] != self.config.window_frames:
            raise ValueError(f"a window has {self.config.window_frames} frames, the clip {clip.shape[2]}")
        priority = self.priority(clip)
        keep = self.select(priority, generator)
        latents = self.latents(clip)
        vectors = self.quantizer(latents * keep[..., None])  # [B, t, h, w, d]
        codes = self.quantizer.codes(vectors.detach())
        return Reconstruction(self.rebuild(vectors), codes, priority, keep, self.quantizer.penalty(latents))

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
        """Distance of every token's score features from those at the same place in the slot before."""
        with full_precision(clip):
            return slot_distance(self.scorer(centred(clip.float())))

    def select(self, priority: Float[Tensor, "B t h w"], generator: torch.Generator | None = None) -> Float[Tensor, "B t h w"]:
        """One for every token that training keeps, zero for the others, with a gradient to the priorities."""
        kept = self.config.num_kept(priority[0].numel())
        free = priority[:, 1:] if self.config.keep_first_slot else priority
        always = torch.ones_like(priority[:, : priority.shape[1] - free.shape[1]])
        chosen = self.config.selection.keep(free.flatten(1), kept - always[0].numel(), generator)
        return torch.cat([always, chosen.view_as(free)], dim=1)
