"""The masked autoencoder: an encoder that sees the visible tokens, a decoder that predicts a chosen few others.

Three sets stay apart: what the encoder sees, what the decoder predicts, and what counts in the loss. A token in neither
of the first two does not exist here: no mask token, no attention, no memory. That is what makes 128 frames affordable.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from pydantic import model_validator
from torch import nn

from models.config import Config as BaseConfig
from models.extension import extension
from models.grid import Grid, Patching
from models.positions import PositionsConfig, flattened
from models.shapes import Bool, Float, Int, Tensor
from models.vit import Blocks, Encoder, EncoderConfig, TransformerConfig, initialise, resolve_size

DECODER_SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "ViT-S": {"width": 192, "depth": 4, "num_heads": 3},
        "ViT-B": {"width": 384, "depth": 4, "num_heads": 6},
        "ViT-L": {"width": 512, "depth": 4, "num_heads": 8},
        "ViT-H": {"width": 512, "depth": 4, "num_heads": 8},
    }
)
"""Published decoder sizes, by the encoder they go with. Source: VideoMAE, arXiv 2203.12602."""


class DecoderConfig(TransformerConfig):
    """The size of a decoder, in numbers or by the name of the encoder it goes with, such as ``decoder: ViT-B``."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return resolve_size(value, DECODER_SIZES)


class Config(BaseConfig):
    """The architecture of a masked autoencoder."""

    encoder: EncoderConfig
    """The part that is kept after pre-training."""

    decoder: DecoderConfig
    """The part that is thrown away. Source: arXiv 2411.13683 uses 4 blocks; widths are VideoMAE's."""

    patching: Patching = Patching()
    """The pixels of one token; the tokenizer's must be the same for its codes to be targets."""

    positions: extension("models.positions", PositionsConfig) = flattened.Config()
    """How a token's place is told to encoder and decoder."""

    def build_encoder(self, grid: Grid) -> Encoder:
        """An untrained encoder for clips of a grid."""
        return Encoder(self.encoder, self.patching, self.positions.vectors(grid, self.encoder.width))


class MaskedAutoencoder(nn.Module):
    """Predicts target vectors at hidden positions from the patches at visible ones.

    Shapes depend on the index sets alone and nothing waits for a value, so that the whole forward is one graph.

    Args:
        config: the architecture.
        grid: the token grid of every clip.
        target_dim: numbers per predicted token.

    Source: arXiv 2411.13683, section 3; VideoMAE V2, arXiv 2303.16727, for the two independent sets.
    """

    position_vectors: Tensor

    def __init__(self, config: Config, grid: Grid, target_dim: int) -> None:
        super().__init__()
        width = config.decoder.width
        self.encoder = config.build_encoder(grid)
        self.encoder_to_decoder = nn.Linear(config.encoder.width, width, bias=False)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.register_buffer("position_vectors", config.positions.vectors(grid, width), persistent=False)
        self.decoder = Blocks(config.decoder)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, target_dim)
        for part in (self.encoder_to_decoder, self.decoder, self.head):
            part.apply(initialise)

    def forward(
        self,
        patches: Float[Tensor, "B V patch_dim"],
        visible: Int[Tensor, "B V"],
        predict: Int[Tensor, "B P"],
    ) -> Float[Tensor, "B P target_dim"]:
        """Predictions at the positions ``predict``, in that order.

        Args:
            patches: the visible patches alone, pixels in [0, 1].
            visible: their positions.
            predict: positions to decode; some may be visible as well, the loss ignores those.
        """
        seen = self.encoder_to_decoder(self.encoder(patches, visible)) + self.position_vectors[visible]  # [B, V, E]
        asked = self.mask_token + self.position_vectors[predict]  # [B, P, E]
        tokens = torch.cat([seen, asked.to(seen.dtype)], dim=1)  # [B, V+P, E]
        tokens = self.decoder(tokens)
        predictions: Tensor = self.head(self.norm(tokens[:, visible.shape[1] :]))
        return predictions


def hidden_weight(visible: Int[Tensor, "B V"], predict: Int[Tensor, "B P"], real: Bool[Tensor, "B N"]) -> Float[Tensor, "B P"]:
    """One where a predicted token was hidden from the encoder and lies in a recorded frame, zero elsewhere.

    Source: arXiv 2411.13683 applies no loss to visible tokens; leaving out padding is our choice.
    """
    counts = real.float().scatter(1, visible, 0.0)  # [B, N]
    return counts.gather(1, predict)


def masked_mean(per_token: Float[Tensor, "B P"], weight: Float[Tensor, "B P"]) -> Float[Tensor, ""]:
    """The mean over the tokens whose weight is one; zero, with a zero gradient, where there are none."""
    return (per_token * weight).sum() / weight.sum().clamp(min=1.0)


def masked_mse(
    predictions: Float[Tensor, "B P X"], targets: Float[Tensor, "B P X"], weight: Float[Tensor, "B P"]
) -> Float[Tensor, ""]:
    """Mean squared error over the tokens whose weight is one; zero where there are none."""
    return masked_mean((predictions.float() - targets.float()).square().mean(dim=-1), weight)
