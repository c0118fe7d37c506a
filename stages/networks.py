"""Networks from artifacts: the trained ones, and the same architecture untrained to compare with. All ready to infer."""

import json
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from models import mae
from models.extension import load
from models.grid import Grid
from models.tokenizers import Tokenizer, TokenizerConfig
from models.vit import Encoder
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import read_tensors
from stages.views import ViewConfig

Module = TypeVar("Module", bound=nn.Module)


class Geometry(NamedTuple):
    """What a pretrained encoder was made for."""

    model: mae.Config
    views: ViewConfig
    grid: Grid
    target_dim: int


def load_tokenizer(artifact: Artifact) -> Tokenizer:
    """The tokenizer that an artifact of the tokenizer stage holds."""
    described = json.loads(artifact.verified("config.json").read_bytes())
    config: TokenizerConfig = load("models.tokenizers", described)
    return _loaded(config.build(), artifact, "model.safetensors")


def geometry(artifact: Artifact) -> Geometry:
    """The architecture and token grid of a pretrained artifact."""
    described = json.loads(artifact.verified("config.json").read_bytes())
    model, views = mae.Config.model_validate(described["model"]), ViewConfig.model_validate(described["views"])
    return Geometry(model, views, model.patching.grid(views.num_frames, views.size_px), described["target_dim"])


def load_encoder(artifact: Artifact) -> Encoder:
    """The pretrained encoder of a pretrain artifact."""
    made = geometry(artifact)
    return _loaded(made.model.build_encoder(made.grid), artifact, "encoder.safetensors")


def untrained_encoder(artifact: Artifact, seed: int) -> Encoder:
    """An encoder of the same architecture as a pretrain artifact's, as it is before the first step."""
    made = geometry(artifact)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return made.model.build_encoder(made.grid).eval()


def load_autoencoder(artifact: Artifact) -> mae.MaskedAutoencoder:
    """The whole masked autoencoder of a pretrain artifact, decoder included."""
    made = geometry(artifact)
    module = mae.MaskedAutoencoder(made.model, made.grid, made.target_dim)
    encoder = read_tensors(artifact.verified("encoder.safetensors"))
    decoder = read_tensors(artifact.verified("decoder.safetensors"))
    module.load_state_dict({**{f"encoder.{name}": value for name, value in encoder.items()}, **decoder})
    return module.eval()


def _loaded(module: Module, artifact: Artifact, name: str) -> Module:
    module.load_state_dict(read_tensors(artifact.verified(name)))
    return module.eval()
