"""The plain video transformer: pre-norm blocks, full attention over space and time, fixed sinusoidal positions.

It has the form of VideoMAE's, so that weights convert both ways: biases on queries and values only, no class token, a
final LayerNorm. The encoder takes patches that somebody already chose; what is hidden never enters it.
"""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from models.config import Config
from models.grid import Patching
from models.shapes import Bool, Float, Int, Tensor

SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "ViT-S": {"width": 384, "depth": 12, "num_heads": 6},
        "ViT-B": {"width": 768, "depth": 12, "num_heads": 12},
        "ViT-L": {"width": 1024, "depth": 24, "num_heads": 16},
        "ViT-H": {"width": 1280, "depth": 32, "num_heads": 16},
    }
)
"""Published encoder sizes. Source: VideoMAE, arXiv 2203.12602."""

# RGB statistics of ImageNet, in [0, 1]; what every published video transformer of this family expects.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


def resolve_size(value: Any, sizes: Mapping[str, Mapping[str, int]]) -> Any:
    """The fields of a published size when ``value`` is its name; any other value unchanged.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if not isinstance(value, str):
        return value
    if value not in sizes:
        raise ValueError(f"unknown size {value!r}; known: {', '.join(sizes)}")
    return dict(sizes[value])


class TransformerConfig(Config):
    """The size of a stack of transformer blocks."""

    width: int = Field(gt=0)
    """Features of a token."""

    depth: int = Field(gt=0)
    """Number of blocks."""

    num_heads: int = Field(gt=0)
    """Attention heads; they share the width equally."""

    mlp_ratio: float = Field(default=4.0, gt=0)
    """Hidden width of the MLP over the width of a token."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TransformerConfig":
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} does not divide into num_heads {self.num_heads}")
        return self


class EncoderConfig(TransformerConfig):
    """The size of an encoder, in numbers or by its published name, such as ``encoder: ViT-B``."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return resolve_size(value, SIZES)


def initialise(module: nn.Module) -> None:
    """Set the starting weights of one module; for ``nn.Module.apply``.

    Source: VideoMAE, arXiv 2203.12602: Xavier uniform weights and zero biases.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Full self-attention with one fused projection and biases on queries and values only."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        # A bias on the keys would add the same number to every score of a query, which the softmax removes.
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Float[Tensor, "B N D"], exists: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B N D"]:
        """Every token's mixture of all tokens of its clip, or of those that exist."""
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        mixed = functional.linear(tokens, self.qkv.weight, bias)
        query, key, value = rearrange(mixed, "B N (qkv heads d) -> qkv B heads N d", qkv=3, heads=self.num_heads)
        keys = None if exists is None else exists[:, None, None]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        joined: Tensor = self.out(rearrange(attended, "B heads N d -> B N (heads d)"))
        return joined


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm_attention = nn.LayerNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.num_heads)
        self.norm_mlp = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        exists: Bool[Tensor, "B N"] | None = None,
        branch_scales: Float[Tensor, "2 B"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The tokens after one block.

        Args:
            tokens: of a batch of clips.
            exists: tokens that others see; ``None``: all.
            branch_scales: what is multiplied with a clip's attention and with its MLP before they are added; ``None``: nothing.
        """
        attention_scale, mlp_scale = (None, None) if branch_scales is None else branch_scales[:, :, None, None]
        tokens = tokens + _scaled(self.attention(self.norm_attention(tokens), exists), attention_scale)
        return tokens + _scaled(self.mlp(self.norm_mlp(tokens)), mlp_scale)


def _of_block(branch_scales: Tensor | None, number: int) -> Tensor | None:
    return None if branch_scales is None else branch_scales[number]


def _scaled(branch: Tensor, scale: Tensor | None) -> Tensor:
    return branch if scale is None else branch * scale


class Blocks(nn.ModuleList):
    """A stack of blocks, which may keep nothing but each block's input and compute the rest again in the backward pass."""

    is_recomputed = False
    """Whether it does: activation checkpointing, Chen et al., arXiv 1604.06174. No bit of a result changes."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(Block(config) for _ in range(config.depth))

    def forward(
        self,
        tokens: Float[Tensor, "B N D"],
        num_blocks: int | None = None,
        *,
        exists: Bool[Tensor, "B N"] | None = None,
        branch_scales: Float[Tensor, "depth 2 B"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The tokens after all blocks, or after the first few.

        Args:
            tokens: of a batch of clips.
            num_blocks: how many; ``None``: all.
            exists: tokens that others see, see :class:`Block`.
            branch_scales: per block what its branches are multiplied with, see :class:`Block`.
        """
        is_kept = not (self.is_recomputed and torch.is_grad_enabled())
        for number, block in enumerate(list(self)[:num_blocks]):
            others = () if exists is None and branch_scales is None else (exists, _of_block(branch_scales, number))
            run = block if is_kept else functools.partial(checkpoint, block, use_reentrant=False, preserve_rng_state=False)
            tokens = run(tokens, *others)
        return tokens


class Encoder(nn.Module):
    """A video transformer over whichever patches of a clip it is given.

    Args:
        config: size of the stack.
        patching: the pixels of one token.
        position_vectors: what to add to the token at each place of a whole clip. They are given, not learned, so that
            the same weights load into an encoder for longer clips.
    """

    position_vectors: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, config: EncoderConfig, patching: Patching, position_vectors: Float[Tensor, "N D"]) -> None:
        super().__init__()
        pixels = patching.patch_dim // 3
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).repeat(pixels), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).repeat(pixels), persistent=False)
        self.register_buffer("position_vectors", position_vectors, persistent=False)
        self.embed = nn.Linear(patching.patch_dim, config.width)
        self.blocks = Blocks(config)
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.apply(initialise)

    def embed_patches(self, patches: Float[Tensor, "B V patch_dim"], positions: Int[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
        """Tokens before the first block: the one place where pixels in [0, 1] are normalised."""
        normalised = (patches - self.pixel_mean) / self.pixel_std
        tokens: Tensor = self.embed(normalised)
        return tokens + self.position_vectors[positions]

    def forward(
        self,
        patches: Float[Tensor, "B V patch_dim"],
        positions: Int[Tensor, "B V"],
        *,
        exists: Bool[Tensor, "B V"] | None = None,
        branch_scales: Float[Tensor, "depth 2 B"] | None = None,
    ) -> Float[Tensor, "B V D"]:
        """Tokens after the last block and the final LayerNorm.

        Args:
            patches: pixels in [0, 1], as ``models.grid.patchify`` orders them.
            positions: where each patch lies in the clip, 0 ... num_tokens - 1.
            exists: patches that others see, as if the rest were not there; ``None``: all.
            branch_scales: per block and clip what its attention and its MLP are multiplied with; ``None``: nothing.
        """
        tokens: Tensor = self.blocks(self.embed_patches(patches, positions), exists=exists, branch_scales=branch_scales)
        normalised: Tensor = self.norm(tokens)
        return normalised

    def features(
        self, patches: Float[Tensor, "B V patch_dim"], positions: Int[Tensor, "B V"], *, layer: int | None
    ) -> Float[Tensor, "B V D"]:
        """Tokens after the first ``layer`` blocks, as they leave the block; ``None`` is what ``forward`` returns.

        Raises:
            ValueError: ``layer`` is not in 1 ... depth.
        """
        if layer is not None and not 1 <= layer <= len(self.blocks):
            raise ValueError(f"layer {layer} is not one of the encoder's 1 ... {len(self.blocks)}")
        tokens: Tensor = self.blocks(self.embed_patches(patches, positions), layer)
        return self.norm(tokens) if layer is None else tokens
