"""V-JEPA 2's encoder, to compare with: a video transformer whose attention turns queries and keys by slot, row and column.

The code is ours; the weights are those of others, under the names of transformers' ``VJEPA2Model``. The predictor, which
V-JEPA 2 trains beside it, and the classifiers that were trained upon it are left out. Positions are those of the clip's own
grid, so that other lengths and sizes than in training have their true places. transformers counts rows and columns by the
size in its configuration; on clips of that size both agree.

Source: V-JEPA 2, arXiv 2506.09985; names and details of the rotation: transformers 5.23, ``VJEPA2Model``.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional

from models.grid import Grid, Patching
from models.published import (
    Names,
    examples,
    filled,
    flat_kernel,
    layers,
    mlp_ratio,
    normalise,
    num_blocks,
    patching_of,
    prefix_of,
    renamed,
)
from models.shapes import Float, Int, Tensor
from models.vit import PIXEL_MEAN, PIXEL_STD, TransformerConfig

EMBEDDING = "embeddings.patch_embeddings.proj.weight"

_AXES = 3
_LONGEST = 10000.0
_LEFT_OUT = ("predictor.", "pooler.", "classifier.")
_BLOCK = {
    "norm_attention": "norm1",
    "attention.out": "attention.proj",
    "norm_mlp": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


class Config(TransformerConfig):
    """The size of an encoder."""

    patching: Patching = Patching()
    """The pixels of one token."""

    norm_epsilon: float = Field(default=1e-6, gt=0)
    """What every LayerNorm adds to the variance. Source: transformers, ``VJEPA2Config.layer_norm_eps``."""

    @model_validator(mode="after")
    def _features_of_a_head_pair_up(self) -> "Config":
        if self.head_width % 2:
            raise ValueError(f"width {self.width} gives each of num_heads {self.num_heads} an odd number of features")
        return self

    @property
    def head_width(self) -> int:
        """Features of one attention head."""
        return self.width // self.num_heads


class Rotation(NamedTuple):
    """What turns each feature of a query or key, by token: ``[N, features of a head]`` each."""

    cosine: Tensor
    sine: Tensor

    @classmethod
    def of(cls, grid: Grid, head_width: int) -> "Rotation":
        """The rotation of every token of a grid, in token order.

        A third of the features each turns by slot, row and column, as far as even thirds go; the rest stays as it is. The two
        features of a pair are neighbours, but the wavelengths of a third run through it twice instead of once per pair. So
        the two turn by different angles, which is no rotation in the strict sense; published weights were trained like this.
        """
        third = head_width // _AXES // 2 * 2
        rates = _LONGEST ** -(torch.arange(third // 2).double() / (third // 2))
        places = torch.cartesian_prod(torch.arange(grid.t), torch.arange(grid.h), torch.arange(grid.w))  # [N, 3]
        turns = rearrange(places[:, :, None] * rates.repeat(2), "N axes d -> N (axes d)")
        angles = functional.pad(turns, (0, head_width - _AXES * third))
        return cls(angles.cos().float(), angles.sin().float())


def turned(
    features: Float[Tensor, "B heads N d"], cosine: Float[Tensor, "B N d"], sine: Float[Tensor, "B N d"]
) -> Float[Tensor, "B heads N d"]:
    """Queries or keys after their rotation."""
    first, second = rearrange(features, "B heads N (pairs two) -> two B heads N pairs", two=2)
    across = rearrange([-second, first], "two B heads N pairs -> B heads N (pairs two)")
    result: Tensor = features * cosine[:, None] + across * sine[:, None]
    return result


class Attention(nn.Module):
    """Full self-attention whose scores know how far apart two tokens are."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)

    def forward(
        self, tokens: Float[Tensor, "B N D"], cosine: Float[Tensor, "B N d"], sine: Float[Tensor, "B N d"]
    ) -> Float[Tensor, "B N D"]:
        """Every token's mixture of all tokens of its clip."""
        query, key, value = rearrange(self.qkv(tokens), "B N (qkv heads d) -> qkv B heads N d", qkv=3, heads=self.num_heads)
        query, key = turned(query, cosine, sine), turned(key, cosine, sine)
        attended = functional.scaled_dot_product_attention(query, key, value)
        joined: Tensor = self.out(rearrange(attended, "B heads N d -> B N (heads d)"))
        return joined


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = int(config.width * config.mlp_ratio)
        self.norm_attention = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.attention = Attention(config)
        self.norm_mlp = nn.LayerNorm(config.width, eps=config.norm_epsilon)
        self.mlp = nn.Sequential(nn.Linear(config.width, hidden), nn.GELU(), nn.Linear(hidden, config.width))

    def forward(
        self, tokens: Float[Tensor, "B N D"], cosine: Float[Tensor, "B N d"], sine: Float[Tensor, "B N d"]
    ) -> Float[Tensor, "B N D"]:
        """The tokens after one block."""
        tokens = tokens + self.attention(self.norm_attention(tokens), cosine, sine)
        processed: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return processed


class VJEPA2Encoder(nn.Module):
    """The encoder, over whichever patches of a clip it is given, as ``models.vit.Encoder`` takes them.

    Args:
        config: its size.
        rotation: of every place of a whole clip.
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, config: Config, rotation: Rotation) -> None:
        super().__init__()
        normalise(self, PIXEL_MEAN, PIXEL_STD, config.patching)
        self.register_buffer("cosine", rotation.cosine, persistent=False)
        self.register_buffer("sine", rotation.sine, persistent=False)
        self.embed = nn.Linear(config.patching.patch_dim, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_epsilon)

    def forward(self, patches: Float[Tensor, "B V patch_dim"], positions: Int[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
        """Tokens after the last block and the final LayerNorm.

        Args:
            patches: pixels in [0, 1], as ``models.grid.patchify`` orders them.
            positions: where each patch lies in the clip, 0 ... num_tokens - 1.
        """
        return self.features(patches, positions, layer=None)

    def features(
        self, patches: Float[Tensor, "B V patch_dim"], positions: Int[Tensor, "B V"], *, layer: int | None
    ) -> Float[Tensor, "B V D"]:
        """Tokens after the first ``layer`` blocks, as they leave the block; ``None`` is what ``forward`` returns.

        Raises:
            ValueError: ``layer`` is not in 1 ... depth.
        """
        if layer is not None and not 1 <= layer <= len(self.blocks):
            raise ValueError(f"layer {layer} is not one of the encoder's 1 ... {len(self.blocks)}")
        tokens: Tensor = self.embed((patches - self.pixel_mean) / self.pixel_std)
        cosine, sine = self.cosine[positions], self.sine[positions]
        for block in list(self.blocks)[:layer]:
            tokens = block(tokens, cosine, sine)
        return self.norm(tokens) if layer is None else tokens


def from_vjepa2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``VJEPA2Encoder`` from that of a ``VJEPA2Model`` or ``VJEPA2ForVideoClassification``.

    Raises:
        ValueError: names are missing or unexpected; the message lists them.
    """
    prefix = _prefix(tensors)
    kept = {name: value for name, value in tensors.items() if not _is_left_out(name)}
    depth = max(1, num_blocks(kept, f"{prefix}layer."))  # names of a block that is not there are those that are missing
    state = renamed(kept, _names(depth, prefix), "a VJEPA2Model")
    return state | {"embed.weight": flat_kernel(state["embed.weight"])}


def config_of(tensors: Mapping[str, Tensor], *, num_heads: int, norm_epsilon: float = 1e-6) -> Config:
    """The size of the encoder in a ``VJEPA2Model``: shapes say all but the heads.

    Raises:
        ValueError: they are no such weights, or the width does not divide into so many heads.
    """
    prefix = _prefix(tensors)
    kernel, hidden = tensors[prefix + EMBEDDING], tensors.get(f"{prefix}layer.0.mlp.fc1.bias")
    if hidden is None:
        raise ValueError(f"these are not the weights of a VJEPA2Model: missing {prefix}layer.0.mlp.fc1.bias")
    return Config(
        width=len(kernel),
        depth=num_blocks(tensors, f"{prefix}layer."),
        num_heads=num_heads,
        mlp_ratio=mlp_ratio(len(kernel), len(hidden)),
        patching=patching_of(kernel),
        norm_epsilon=norm_epsilon,
    )


def build_encoder(
    tensors: Mapping[str, Tensor],
    config: Config,
    *,
    num_frames: int,
    size_px: int,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
) -> VJEPA2Encoder:
    """An encoder with the weights of a ``VJEPA2Model``.

    Args:
        tensors: of the model; what it has beside the encoder is left out.
        config: as ``config_of`` reads it.
        num_frames: the longest clip.
        size_px: height and width of clips.
        pixel_mean: of R, G and B in [0, 1].
        pixel_std: the same.

    Raises:
        ValueError: names, shapes or numbers do not fit each other.
    """
    rotation = Rotation.of(config.patching.grid(num_frames, size_px), config.head_width)
    encoder = filled(lambda: VJEPA2Encoder(config, rotation), from_vjepa2(tensors))
    normalise(encoder, pixel_mean, pixel_std, config.patching)
    return encoder


def _prefix(tensors: Mapping[str, Tensor]) -> str:
    prefix = prefix_of(tensors, EMBEDDING)
    if prefix is None:
        raise ValueError(
            f"these are not the weights of a VJEPA2Model: no name ends in {EMBEDDING}; found {examples(tensors) or 'no tensor'}"
        )
    return prefix


def _is_left_out(name: str) -> bool:
    return name.removeprefix("vjepa2.").startswith(_LEFT_OUT)


def _names(depth: int, prefix: str) -> Names:
    names = layers({"embed": prefix + EMBEDDING.removesuffix(".weight"), "norm": f"{prefix}layernorm"})
    for number in range(depth):
        ours, theirs = f"blocks.{number}.", f"{prefix}layer.{number}."
        names |= layers({ours + name: theirs + other for name, other in _BLOCK.items()})
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}attention.{part}.{kind}" for part in ("query", "key", "value"))
            names[f"{ours}attention.qkv.{kind}"] = parts
    return names
