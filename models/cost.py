"""What a masked autoencoder costs, counted from its configuration: parameters, operations, and the bytes of a training step.

Nothing is built and nothing is measured. The counts follow the blocks of ``models.vit`` and the forward pass of ``models.mae``
tensor by tensor; ``tests/models/test_cost.py`` holds them against the modules themselves, torch's counter of operations and the
tensors that autograd keeps. They are those of eager torch: a compiler may fuse operations and keep less.
"""

from typing import Literal, NamedTuple

from models import mae
from models.grid import Grid
from models.vit import TransformerConfig

Precision = Literal["fp32", "bf16"]
"""Of matrix products: single, or bfloat16 by ``torch.autocast``. Parameters, residual stream, norms and losses stay in fp32."""
Checkpointing = Literal["none", "full"]
"""What is kept of a block for its backward pass: all that it needs, or its input alone, from which the block is run again."""
AttentionKernel = Literal["fused", "materialised"]
"""Whether attention keeps one number per query, as flash, cuDNN, memory-efficient and torch's CPU kernels do, or all its
probabilities, as torch does where it has no such kernel."""

_SINGLE = 4
"""Bytes of a number in fp32."""
_COMPUTE_BYTES = {"fp32": _SINGLE, "bf16": 2}
"""Bytes of what goes into and comes out of a matrix product."""


class Workload(NamedTuple):
    """A masked autoencoder and the sizes of every clip that it is trained on."""

    config: mae.Config
    """The architecture."""
    grid: Grid
    """The token grid of the clip."""
    visible: int
    """Tokens that the encoder sees, V."""
    predicted: int
    """Tokens that the decoder predicts, P."""
    target_dim: int
    """Numbers per predicted token."""

    @property
    def decoded(self) -> int:
        """Tokens in the decoder: what the encoder saw, and what is asked for."""
        return self.visible + self.predicted


class Policy(NamedTuple):
    """How a step is computed, as far as its bytes depend on it."""

    precision: Precision = "fp32"
    activation_checkpointing: Checkpointing = "none"
    attention: AttentionKernel = "fused"


PLAIN = Policy()
"""Nothing is computed twice, and attention is fused."""


class Part(NamedTuple):
    """A piece of the network, in the order of the forward pass. Operations and activations are those of one clip."""

    side: Literal["encoder", "decoder"]
    parameters: int
    """Numbers that are trained."""
    linear_flops: int = 0
    """Of the products with weights, forward; a multiplication and its addition are 2."""
    attention_flops: int = 0
    """Of the products of queries with keys and of probabilities with values, forward."""
    kept_bytes: int = 0
    """Kept from the forward pass until the piece's own backward pass."""
    working_bytes: int = 0
    """There at most while the piece's own backward pass runs: what was kept, what is computed again, and gradients of both."""
    copied_bytes: int = 0
    """bf16 copies of weights, which autocast makes once per step, whatever the number of clips."""


class Parameters(NamedTuple):
    """Numbers that are trained."""

    encoder: int
    decoder: int
    """Decoder, the way into it, mask token and head."""

    @property
    def total(self) -> int:
        """Of the whole autoencoder."""
        return self.encoder + self.decoder


class Flops(NamedTuple):
    """Operations of one clip's forward pass; a multiplication and its addition are 2."""

    encoder_linear: int
    encoder_attention: int
    decoder_linear: int
    decoder_attention: int

    @property
    def attention(self) -> int:
        """Of attention on both sides."""
        return self.encoder_attention + self.decoder_attention

    @property
    def decoder(self) -> int:
        """Of the decoder, the way into it and its head."""
        return self.decoder_linear + self.decoder_attention

    @property
    def forward(self) -> int:
        """Of the forward pass."""
        return sum(self)

    @property
    def training(self) -> int:
        """Of forward and backward pass, by the convention that the backward pass is two forward passes: every product has a
        gradient to each of its two factors. What is computed a second time does not count.
        """
        return 3 * self.forward


class State(NamedTuple):
    """Bytes that a training holds whatever the number of clips, gradients aside."""

    weights: int
    """Parameters in fp32."""
    moments: int
    """AdamW's two, in fp32."""
    average: int
    """The moving average of parameters and tables, if there is one."""
    tables: int
    """Vectors of the positions on both sides, and the statistics of pixels; not trained."""


class Peak(NamedTuple):
    """Bytes at the moment of a step when there are most, those of the state left out."""

    gradients: int
    """Of the parameters, as far as they are there already."""
    activations: int
    """What is kept for the backward pass, and what is worked on."""
    copies: int
    """bf16 copies of weights that are still needed."""

    @property
    def total(self) -> int:
        """All three together."""
        return sum(self)


def parts(workload: Workload, policy: Policy = PLAIN) -> tuple[Part, ...]:
    """The network piece by piece, from the embedding of patches to the loss."""
    encoder, decoder = workload.config.encoder, workload.config.decoder
    encoder_block = _block("encoder", encoder, workload.visible, policy)
    decoder_block = _block("decoder", decoder, workload.decoded, policy)
    return (
        _embedding(workload, policy),
        *[encoder_block] * encoder.depth,
        *_way_into_the_decoder(workload, policy),
        *[decoder_block] * decoder.depth,
        _head(workload, policy),
        _loss(workload, policy),
    )


def parameters(workload: Workload) -> Parameters:
    """Numbers that are trained, on both sides. ViT-S to ViT-H give VideoMAE's 22, 86, 304 and 631 million in the encoder."""
    encoder, decoder = (
        sum(part.parameters for part in parts(workload) if part.side == side) for side in ("encoder", "decoder")
    )
    return Parameters(encoder, decoder)


def flops(workload: Workload) -> Flops:
    """Operations of a clip's forward pass. Norms, activations and sums do not count, as in ``torch.utils.flop_counter``."""
    counted = {
        (side, kind): sum(getattr(part, f"{kind}_flops") for part in parts(workload) if part.side == side)
        for side in ("encoder", "decoder")
        for kind in ("linear", "attention")
    }
    return Flops(*counted.values())


def counted_training_flops(workload: Workload, attention: AttentionKernel = "fused") -> int:
    """What ``torch.utils.flop_counter`` counts for forward and backward pass of a clip, without activation checkpointing.

    It differs from ``Flops.training`` in two ways. Pixels have no gradient, so that the embedding's product has one backward
    product instead of two. And the backward pass of a fused attention counts five products instead of four, because such a
    kernel computes the scores again (``sdpa_backward_flop_count``); that of a materialised one counts four.
    """
    counted, embedding = flops(workload), _embedding(workload, PLAIN)
    recomputed = counted.attention // 2 if attention == "fused" else 0
    return counted.training - embedding.linear_flops + recomputed


def computed_again_flops(workload: Workload, activation_checkpointing: Checkpointing) -> int:
    """What activation checkpointing adds to a step of a clip: every block once more, up to its last product.

    Source: ``torch.utils.checkpoint`` stops where all that the backward pass needs is there, and it needs no block's output.
    """
    if activation_checkpointing == "none":
        return 0
    blocks = sum(part.linear_flops + part.attention_flops for part in parts(workload) if part.attention_flops)
    config = workload.config
    return blocks - sum(
        stack.depth * 2 * tokens * stack.width * _hidden(stack)
        for stack, tokens in ((config.encoder, workload.visible), (config.decoder, workload.decoded))
    )


def saved_bytes(workload: Workload, policy: Policy = PLAIN) -> int:
    """What one clip keeps for the backward pass, copies of weights aside."""
    return sum(part.kept_bytes for part in parts(workload, policy))


def state(workload: Workload, *, average: bool = False) -> State:
    """Bytes of parameters and optimizer: 4 per parameter in fp32, and 8 for AdamW's moments; gradients are another 4.

    Args:
        workload: what is trained.
        average: whether there is a moving average of the parameters, which is 4 more.
    """
    total = parameters(workload).total
    widths = workload.config.encoder.width + workload.config.decoder.width
    tables = _SINGLE * (workload.grid.num_tokens * widths + 2 * workload.config.patching.patch_dim)
    weights = _SINGLE * total
    return State(weights, 2 * weights, (weights + tables) * average, tables)


def peak(workload: Workload, policy: Policy = PLAIN, *, clips: int, gradient_sets: int = 0) -> Peak:
    """The worst moment of a step beside its state: the backward pass frees activations piece by piece, and makes gradients.

    The visible pixels in fp32 are there all the time: whoever runs the network holds them.

    Args:
        workload: what is trained.
        policy: how it is computed.
        clips: that go through the network at once.
        gradient_sets: sets of all gradients that are there from the beginning. With none, gradients appear as they are made.
    """
    all_gradients = _SINGLE * parameters(workload).total
    kept = _SINGLE * workload.visible * workload.config.patching.patch_dim
    copies, of_later_parts = 0, all_gradients
    moments = [Peak(all_gradients * max(gradient_sets, 1), 0, 0)]  # the optimizer's
    for part in parts(workload, policy):
        of_later_parts -= _SINGLE * part.parameters
        copies += part.copied_bytes
        gradients = all_gradients * gradient_sets or of_later_parts
        moments.append(Peak(gradients, clips * (kept + part.working_bytes), copies))
        kept += part.kept_bytes
    return max(moments, key=lambda moment: moment.total)


def _block(side: Literal["encoder", "decoder"], config: TransformerConfig, tokens: int, policy: Policy) -> Part:
    """``models.vit.Block``: what each half keeps, in the order in which it is computed.

    With fused attention and an MLP four times as wide it is ``64 width + 4 heads + 16`` bytes per token in fp32, and
    ``36 width + 4 heads + 16`` under autocast.
    """
    width, hidden, number = config.width, _hidden(config), _COMPUTE_BYTES[policy.precision]
    attention = _norm_bytes(width) + number * width + _attention_bytes(config, tokens, policy)  # the second: into q, k, v
    mlp = _norm_bytes(width) + number * width + 2 * number * hidden  # behind the norm, before and behind the GELU
    # Worst in the MLP: the gradient of the block, in bf16 once more for the product, and that of the hidden numbers.
    arriving = _SINGLE * width + (number * width if number < _SINGLE else 0)
    in_mlp = attention + mlp + arriving + number * hidden
    in_attention = attention + arriving + _attention_working_bytes(config, tokens, policy)
    all_bytes, worst_bytes = tokens * (attention + mlp), tokens * max(in_mlp, in_attention)
    weights = 4 * width**2 + 2 * width * hidden
    biases = 3 * width + hidden + width  # of queries and values, of the attention's output, and two in the MLP
    return Part(
        side,
        parameters=weights + biases + 4 * width,  # the last: scales and shifts of two norms
        linear_flops=2 * tokens * weights,
        attention_flops=2 * 2 * tokens**2 * width,
        kept_bytes=all_bytes if policy.activation_checkpointing == "none" else _SINGLE * tokens * width,
        working_bytes=worst_bytes,
        copied_bytes=_copied(weights, policy),
    )


def _hidden(config: TransformerConfig) -> int:
    """Numbers of a token inside the MLP."""
    return int(config.width * config.mlp_ratio)


def _norm_bytes(width: int) -> int:
    """Per token: the input of a LayerNorm, which is the residual stream in fp32, its mean and its deviation."""
    return _SINGLE * width + 2 * _SINGLE


def _attention_bytes(config: TransformerConfig, tokens: int, policy: Policy) -> int:
    """Per token: queries, keys, values, what makes their gradients possible, and the input of the output's product."""
    number, width = _COMPUTE_BYTES[policy.precision], config.width
    if policy.attention == "fused":  # one tensor of all three, a sum of exponentials per head, and the output itself
        return 3 * number * width + _SINGLE * config.num_heads + number * width
    # torch's own composition is in fp32 even under autocast. It keeps queries and keys scaled, the probabilities, and the
    # values: a copy under autocast, and otherwise a view of all three together. Its output is copied to join the heads.
    values = 3 * _SINGLE * width if policy.precision == "fp32" else _SINGLE * width
    return 2 * _SINGLE * width + _SINGLE * config.num_heads * tokens + values + number * width


def _attention_working_bytes(config: TransformerConfig, tokens: int, policy: Policy) -> int:
    """Per token, at most, in the backward pass of attention: gradients that come and go."""
    number, width = _COMPUTE_BYTES[policy.precision], config.width
    if policy.attention == "fused":
        return number * width + 2 * 3 * number * width  # of the output; of queries, keys and values, apart and together
    return _SINGLE * width + 2 * _SINGLE * config.num_heads * tokens  # of the output; of probabilities and of scores


def _embedding(workload: Workload, policy: Policy) -> Part:
    """``models.vit.Encoder.embed_patches``: normalised patches are kept for the gradient of the weights, and have none."""
    width, patch_dim = workload.config.encoder.width, workload.config.patching.patch_dim
    kept = _COMPUTE_BYTES[policy.precision] * workload.visible * patch_dim
    return Part(
        "encoder",
        parameters=(patch_dim + 1) * width,
        linear_flops=2 * workload.visible * patch_dim * width,
        kept_bytes=kept,
        working_bytes=kept + _SINGLE * workload.visible * width,
    )


def _way_into_the_decoder(workload: Workload, policy: Policy) -> tuple[Part, Part]:
    """The encoder's last LayerNorm, and the projection with the mask token."""
    wide, narrow, number = workload.config.encoder.width, workload.config.decoder.width, _COMPUTE_BYTES[policy.precision]
    norm, projected = workload.visible * _norm_bytes(wide), workload.visible * number * wide
    arriving = _SINGLE * workload.visible * wide
    return (
        Part("encoder", parameters=2 * wide, kept_bytes=norm, working_bytes=norm + 2 * arriving),
        Part(
            "decoder",
            parameters=wide * narrow + narrow,
            linear_flops=2 * workload.visible * wide * narrow,
            kept_bytes=projected,
            working_bytes=projected + arriving + _SINGLE * (workload.visible + workload.decoded) * narrow,
            copied_bytes=_copied(wide * narrow, policy),
        ),
    )


def _head(workload: Workload, policy: Policy) -> Part:
    """The last LayerNorm and the product that predicts. The norm's input is a view: all tokens are kept for some."""
    width, number = workload.config.decoder.width, _COMPUTE_BYTES[policy.precision]
    norm = _SINGLE * workload.decoded * width + 2 * _SINGLE * workload.predicted
    kept = norm + number * workload.predicted * width
    return Part(
        "decoder",
        parameters=2 * width + (width + 1) * workload.target_dim,
        linear_flops=2 * workload.predicted * width * workload.target_dim,
        kept_bytes=kept,
        working_bytes=kept + _SINGLE * (workload.predicted + workload.decoded) * width,
        copied_bytes=_copied(width * workload.target_dim, policy),
    )


def _loss(workload: Workload, policy: Policy) -> Part:
    """``models.mae.masked_mse``, which keeps differences and weights; it is at its worst while the yardstick is computed."""
    numbers, half = workload.predicted * workload.target_dim, _COMPUTE_BYTES[policy.precision] % _SINGLE
    kept = _SINGLE * (numbers + workload.predicted)
    # Targets, predictions in bf16 and in fp32, and differences and squares of the yardstick.
    return Part("decoder", parameters=0, kept_bytes=kept, working_bytes=kept + numbers * (4 * _SINGLE + half))


def _copied(weights: int, policy: Policy) -> int:
    return _COMPUTE_BYTES["bf16"] * weights if policy.precision == "bf16" else 0
