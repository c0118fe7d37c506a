"""A folder for Hugging Face transformers: ``VideoMAEModel.from_pretrained(folder)``, with no code of ours.

The final LayerNorm belongs to the encoder, so that ``use_mean_pooling`` is false and ``last_hidden_state`` are our tokens. A
classifier that is put on top of it takes the first token then, which knows nothing special; let it take the mean of all tokens,
as published fine-tuned models do: ``VideoMAEForVideoClassification.from_pretrained(folder, use_mean_pooling=True)``.
"""

import contextlib
import importlib
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from einops import rearrange
from torch import Tensor

from models import mae
from models.videomae_weights import encoder_to_videomae
from models.vit import PIXEL_MEAN, PIXEL_STD
from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import ClipEncoder, Description
from stages.errors import ConfigError

_LAYER_NORM_EPSILON = 1e-6
_BICUBIC = 3
"""Pillow's number of the filter that the stage ``shard`` scales with."""


class Config(BackendConfig):
    """``config.json``, ``model.safetensors`` in published VideoMAE names, and ``preprocessor_config.json``."""

    name: Literal["transformers"] = "transformers"
    """The name in a recipe."""

    @property
    def unchecked(self) -> str | None:
        """Transformers writes nothing here and need not be there; it is what the folder is compared by."""
        return None if importlib.util.find_spec("transformers") else "transformers is not installed"

    def check(self, model: mae.Config) -> None:
        """Only VideoMAE's own positions can be said in a configuration of transformers.

        Raises:
            ConfigError: the encoder has others.
        """
        if model.positions.name != "flattened":
            raise ConfigError(
                f"transformers' VideoMAE knows the positions `flattened` alone, and this encoder has `{model.positions.name}`; "
                "leave transformers out of export.backends, or pretrain with pretrain.model.positions=flattened"
            )

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Write the folder; transformers is not needed for it."""
        described = encoder.description
        self.check(described.model)
        tensors = encoder_to_videomae(encoder.encoder.state_dict(), described.model.patching)
        packed = {name: value.contiguous() for name, value in tensors.items()}
        safetensors.torch.save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
        _write_json(folder / "config.json", _model_config(described))
        _write_json(folder / "preprocessor_config.json", _processor_config(described))

    def load(self, folder: Path) -> Program:
        """Transformers' model of the folder, with our frames brought into its form."""
        try:
            library: Any = importlib.import_module("transformers")
        except ImportError as error:
            raise ConfigError(f"{folder}: reading it takes transformers, which is not installed ({error})") from error
        with _quiet(library):
            model = library.VideoMAEModel.from_pretrained(folder).eval()
        mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))

        def run(frames: Tensor) -> Tensor:
            pixels = rearrange(frames, "B T H W C -> B T C H W").float() / 255
            tokens: Tensor = model(pixel_values=(pixels - mean) / deviation).last_hidden_state
            return tokens

        return Program(run)


@contextlib.contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """No bar of the library's own while it reads a file."""
    shown = library.utils.logging.is_progress_bar_enabled()
    library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library.utils.logging.enable_progress_bar()


def _model_config(described: Description) -> dict[str, Any]:
    encoder, patching = described.model.encoder, described.model.patching
    return {
        "architectures": ["VideoMAEModel"],
        "model_type": "videomae",
        "image_size": described.size_px,
        "patch_size": patching.patch_px,
        "num_channels": 3,
        "num_frames": described.num_frames,
        "tubelet_size": patching.tubelet_frames,
        "hidden_size": encoder.width,
        "num_hidden_layers": encoder.depth,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": int(encoder.width * encoder.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": _LAYER_NORM_EPSILON,
        "qkv_bias": True,  # of queries and values; transformers 5 has another name for it and reads this one too
        "use_mean_pooling": False,
    }


def _processor_config(described: Description) -> dict[str, Any]:
    """Frames as PIL images or arrays to what the model takes; choosing the frames is left to the caller."""
    return {
        "image_processor_type": "VideoMAEImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": described.sampling.short_side_px},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": described.size_px, "width": described.size_px},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(PIXEL_MEAN),
        "image_std": list(PIXEL_STD),
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
