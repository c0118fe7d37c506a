"""Weights of transformers' VideoMAE as ours, and ours as its: other names, one fused projection, one flat patch embedding.

Nothing is lost either way: both networks compute the same, up to the epsilons of LayerNorm (ours 1e-6, the peer's 1e-12 and
1e-5), and both order the pixels of a patch by (frame, row, column, channel), so that the rows of the head stay where they
are. Published checkpoints call the biases of queries and values ``q_bias`` and ``v_bias``, the modules of transformers 5
``query.bias`` and ``value.bias``: both are read; the published names are written, which ``from_pretrained`` knows, but for
that of transformers 5.9 to 5.17, which loads zeros instead (its pull request 48675).

Source: transformers 5.23, ``VideoMAEForPreTraining`` with ``use_mean_pooling=False``, as published for pre-training.
"""

from collections.abc import Iterable, Mapping

from einops import rearrange

from models.grid import Patching
from models.published import Names, flat_kernel, layers, num_blocks, refuse_others, renamed
from models.shapes import Tensor

_PUBLISHED_BIASES = ("q_bias", "v_bias")
_MODULE_BIASES = ("query.bias", "value.bias")

_BLOCK = {
    "norm_attention": "layernorm_before",
    "attention.out": "attention.output.dense",
    "norm_mlp": "layernorm_after",
    "mlp.0": "intermediate.dense",
    "mlp.2": "output.dense",
}
_ENCODER = {"embed": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
_DECODER = {"norm": "decoder.norm", "head": "decoder.head"}
_UNCHANGED = ("encoder_to_decoder.weight", "mask_token")
_BACKBONE = "videomae."


def from_videomae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a ``MaskedAutoencoder`` from that of a ``VideoMAEForPreTraining``, whatever their sizes.

    Raises:
        ValueError: names are missing or unexpected; the message lists them.
    """
    depths = num_blocks(tensors, "videomae.encoder.layer."), num_blocks(tensors, "decoder.decoder_layers.")
    return _read(tensors, _autoencoder(*depths, bias_names(tensors)), "a VideoMAEForPreTraining")


def to_videomae(state: Mapping[str, Tensor], patching: Patching) -> dict[str, Tensor]:
    """The tensors of a published ``VideoMAEForPreTraining`` from the state dict of a ``MaskedAutoencoder``.

    Args:
        state: of an autoencoder that predicts pixels.
        patching: the pixels of one token.

    Raises:
        ValueError: names are missing or unexpected; the message lists them.
        einops.EinopsError: the weights are for other patches.
    """
    depths = num_blocks(state, "encoder.blocks."), num_blocks(state, "decoder.")
    return _write(state, _autoencoder(*depths, _PUBLISHED_BIASES), patching, "a MaskedAutoencoder")


def encoder_from_videomae(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of an ``Encoder`` from that of a ``VideoMAEModel``.

    Args:
        tensors: of the model, or of one that holds it as ``videomae``, such as ``VideoMAEForPreTraining``; what that one has
            besides is left out.

    Raises:
        ValueError: names are missing or unexpected; the message lists them. Fine-tuned models lack ``layernorm``: they
            normalise the mean of all tokens instead, which is no encoder of this form.
    """
    inner = {name.removeprefix(_BACKBONE): value for name, value in tensors.items() if name.startswith(_BACKBONE)}
    named = inner or tensors
    return _read(named, encoder_names(num_blocks(named, "encoder.layer."), bias_names(named)), "a VideoMAEModel")


def encoder_to_videomae(state: Mapping[str, Tensor], patching: Patching) -> dict[str, Tensor]:
    """The tensors of a published ``VideoMAEModel`` from the state dict of an ``Encoder``.

    Args:
        state: of the encoder.
        patching: the pixels of one token.

    Raises:
        ValueError: names are missing or unexpected; the message lists them.
        einops.EinopsError: the weights are for other patches.
    """
    return _write(state, encoder_names(num_blocks(state, "blocks."), _PUBLISHED_BIASES), patching, "an Encoder")


def _read(tensors: Mapping[str, Tensor], names: Names, network: str) -> dict[str, Tensor]:
    return {ours: _flat(ours, value) for ours, value in renamed(tensors, names, network).items()}


def _write(state: Mapping[str, Tensor], names: Names, patching: Patching, network: str) -> dict[str, Tensor]:
    refuse_others(state, names, network)
    parts = {ours: _shaped(ours, state[ours], patching).chunk(len(theirs)) for ours, theirs in names.items()}
    # Parts of one tensor share its memory, which safetensors refuses.
    return {name: part.clone() for ours, theirs in names.items() for name, part in zip(theirs, parts[ours], strict=True)}


def _flat(name: str, value: Tensor) -> Tensor:
    """A tensor of the peer's in our shape: the kernel of a convolution as the matrix of a linear layer."""
    if name.endswith("embed.weight"):
        return flat_kernel(value)
    return rearrange(value, "1 1 E -> E") if name == "mask_token" else value


def _shaped(name: str, value: Tensor, patching: Patching) -> Tensor:
    """A tensor of ours in the peer's shape."""
    if name.endswith("embed.weight"):
        sides = {"t": patching.tubelet_frames, "h": patching.patch_px, "w": patching.patch_px}
        return rearrange(value, "D (t h w C) -> D C t h w", C=3, **sides)
    return rearrange(value, "E -> 1 1 E") if name == "mask_token" else value


def _autoencoder(encoder_depth: int, decoder_depth: int, biases: tuple[str, str]) -> Names:
    encoder = {
        f"encoder.{ours}": tuple(f"{_BACKBONE}{name}" for name in theirs)
        for ours, theirs in encoder_names(encoder_depth, biases).items()
    }
    names = encoder | layers(_DECODER) | {name: (name,) for name in _UNCHANGED}
    for number in range(decoder_depth):
        names |= _block(f"decoder.{number}.", f"decoder.decoder_layers.{number}.", biases)
    return names


def encoder_names(depth: int, biases: tuple[str, str]) -> Names:
    """The tensors of an ``Encoder`` by those of a ``VideoMAEModel``.

    Args:
        depth: number of blocks.
        biases: what those of queries and values are called.
    """
    names = layers(_ENCODER)
    for number in range(depth):
        names |= _block(f"blocks.{number}.", f"encoder.layer.{number}.", biases)
    return names


def _block(ours: str, theirs: str, biases: tuple[str, str]) -> Names:
    inside = f"{theirs}attention.attention."
    attention: Names = {
        f"{ours}attention.qkv.weight": tuple(f"{inside}{part}.weight" for part in ("query", "key", "value")),
        f"{ours}attention.q_bias": (inside + biases[0],),
        f"{ours}attention.v_bias": (inside + biases[1],),
    }
    return attention | layers({ours + name: theirs + other for name, other in _BLOCK.items()})


def bias_names(names: Iterable[str]) -> tuple[str, str]:
    """What the biases of queries and values are called in a checkpoint that has these names."""
    published = any(name.endswith(f"attention.attention.{_PUBLISHED_BIASES[0]}") for name in names)
    return _PUBLISHED_BIASES if published else _MODULE_BIASES
