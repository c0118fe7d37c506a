"""Encoders of VideoMAE and VideoMAE V2 as they are published, under any of their names, as ours.

Two sets of names are known: those of transformers' ``VideoMAEModel``, alone or inside ``VideoMAEForPreTraining`` and
``VideoMAEForVideoClassification``, and those of the original repositories, which VideoMAE V2 shares, of pre-trained networks
(``encoder.blocks.0. ...``) as of fine-tuned ones (``blocks.0. ...``). Decoders and classifiers are left out. Whatever the
weights themselves say of the size is read from their shapes.

Source of the names: transformers 5.23 and its script that converts the original checkpoints; VideoMAE, arXiv 2203.12602;
VideoMAE V2, arXiv 2303.16727.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch import nn

from models.grid import Patching
from models.positions import flattened
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
from models.shapes import Tensor
from models.videomae_weights import bias_names, encoder_names
from models.vit import PIXEL_MEAN, PIXEL_STD, SIZES, Encoder, EncoderConfig

Naming = Literal["transformers", "original"]
FinalNorm = Literal["norm", "fc_norm"]

EMBEDDINGS: Mapping[Naming, str] = MappingProxyType(
    {"transformers": "embeddings.patch_embeddings.projection.weight", "original": "patch_embed.proj.weight"}
)
"""How the name of the patch embedding ends, by whose names they are."""

PUBLISHED_HEADS: Mapping[int, int] = MappingProxyType(
    {size["width"]: size["num_heads"] for size in SIZES.values()} | {1408: 16}
)
"""Attention heads by width, which no tensor tells. Source: VideoMAE, arXiv 2203.12602; ViT-g: VideoMAE V2, arXiv 2303.16727."""

_LEFT_OUT = ("decoder.", "encoder_to_decoder.", "mask_token", "head.", "classifier.")
_ORIGINAL_BLOCK = {
    "norm_attention": "norm1",
    "attention.out": "attn.proj",
    "norm_mlp": "norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
_FINAL_NORMS: Mapping[Naming, str] = MappingProxyType({"transformers": "layernorm", "original": "norm"})
_EPSILONS: Mapping[Naming, float] = MappingProxyType({"transformers": 1e-12, "original": 1e-6})


class Published(NamedTuple):
    """What the tensors of a checkpoint are."""

    state: dict[str, Tensor]
    """The state dict of an ``Encoder``, without ``norm`` where the checkpoint has no final norm."""
    patching: Patching
    """The pixels of one token."""
    naming: Naming
    """Whose names they had."""
    final_norm: FinalNorm | None
    """The LayerNorm after the last block: of every token, or of the mean of all tokens as fine-tuned networks have it."""

    @property
    def width(self) -> int:
        """Features of a token."""
        return len(self.state["embed.bias"])

    def encoder_config(self, num_heads: int) -> EncoderConfig:
        """The size of the encoder.

        Raises:
            ValueError: the width does not divide into so many heads.
        """
        hidden = len(self.state["blocks.0.mlp.0.bias"])
        depth = num_blocks(self.state, "blocks.")
        return EncoderConfig(width=self.width, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio(self.width, hidden))


def read_published(tensors: Mapping[str, Tensor]) -> Published:
    """The encoder of a checkpoint of the family.

    Raises:
        ValueError: it is none; the message says which names are missing or unexpected.
    """
    for naming, ending in EMBEDDINGS.items():
        prefix = prefix_of(tensors, ending)
        if prefix is not None:
            return _read(tensors, prefix, naming)
    raise ValueError(
        f"these are not the weights of VideoMAE or VideoMAE V2: no name ends in {EMBEDDINGS['transformers']} (transformers) or "
        f"{EMBEDDINGS['original']} (original repositories); found {examples(tensors) or 'no tensor'}"
    )


def build_encoder(
    published: Published,
    *,
    num_heads: int,
    num_frames: int,
    size_px: int,
    norm_epsilon: float | None = None,
    pixel_mean: Sequence[float] = PIXEL_MEAN,
    pixel_std: Sequence[float] = PIXEL_STD,
) -> Encoder:
    """An encoder with the weights of a checkpoint, for clips of any length and size: its positions are computed.

    The norm of a fine-tuned network, which there follows the mean of all tokens, is applied to every token here, so that
    tokens have the scale that its classifier was trained on; mean and norm change places, which is no longer the same number.
    Where the checkpoint has no final norm at all, tokens come as they leave the last block.

    Args:
        published: the checkpoint.
        num_heads: attention heads.
        num_frames: the longest clip.
        size_px: height and width of clips.
        norm_epsilon: of every LayerNorm but transformers' ``fc_norm``, which has torch's own 1e-5; ``None``: as published,
            transformers' default of 1e-12, or 1e-6 in the original repositories.
        pixel_mean: of R, G and B in [0, 1].
        pixel_std: the same.

    Raises:
        ValueError: numbers do not fit each other or the tensors.
    """
    config = published.encoder_config(num_heads)
    grid = published.patching.grid(num_frames, size_px)
    positions = flattened.Config().vectors(grid, config.width)

    def build() -> Encoder:
        encoder = Encoder(config, published.patching, positions)
        if published.final_norm is None:
            encoder.add_module("norm", nn.Identity())
        return encoder

    encoder = filled(build, published.state)
    normalise(encoder, pixel_mean, pixel_std, published.patching)
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = _EPSILONS[published.naming] if norm_epsilon is None else norm_epsilon
    if published.naming == "transformers" and published.final_norm == "fc_norm":
        encoder.norm.eps = 1e-5
    return encoder


def _read(tensors: Mapping[str, Tensor], prefix: str, naming: Naming) -> Published:
    kept = {name: value for name, value in tensors.items() if not name.removeprefix(prefix).startswith(_LEFT_OUT)}
    names = _transformers_names(kept, prefix) if naming == "transformers" else _original_names(kept, prefix)
    final_norm, norm_names = _final_norm(kept, prefix, naming)
    state = renamed(kept, names | norm_names, "a VideoMAE encoder")
    patching = patching_of(tensors[prefix + EMBEDDINGS[naming]])
    return Published(state | {"embed.weight": flat_kernel(state["embed.weight"])}, patching, naming, final_norm)


def _final_norm(tensors: Mapping[str, Tensor], prefix: str, naming: Naming) -> tuple[FinalNorm | None, Names]:
    """Which final norm there is, and what its tensors are called. Only transformers has encoders without."""
    for called in (f"{prefix}fc_norm", "fc_norm"):
        if f"{called}.weight" in tensors:
            return "fc_norm", layers({"norm": called})
    own = prefix + _FINAL_NORMS[naming]
    if naming == "transformers" and f"{own}.weight" not in tensors:
        return None, {}
    return "norm", layers({"norm": own})


def _transformers_names(tensors: Mapping[str, Tensor], prefix: str) -> Names:
    names = encoder_names(_depth(tensors, f"{prefix}encoder.layer."), bias_names(tensors))
    return {ours: tuple(prefix + name for name in theirs) for ours, theirs in names.items() if not ours.startswith("norm.")}


def _original_names(tensors: Mapping[str, Tensor], prefix: str) -> Names:
    names = layers({"embed": f"{prefix}patch_embed.proj"})
    for number in range(_depth(tensors, f"{prefix}blocks.")):
        ours, theirs = f"blocks.{number}.", f"{prefix}blocks.{number}."
        names |= layers({ours + name: theirs + other for name, other in _ORIGINAL_BLOCK.items()})
        names |= {
            f"{ours}attention.qkv.weight": (f"{theirs}attn.qkv.weight",),
            f"{ours}attention.q_bias": (f"{theirs}attn.q_bias",),
            f"{ours}attention.v_bias": (f"{theirs}attn.v_bias",),
        }
    return names


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """The number of blocks; one where there is none, so that its names are those that are missing."""
    return max(1, num_blocks(tensors, prefix))
