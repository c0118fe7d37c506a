"""Encoders of others from local files, to compare with in the same evaluation: VideoMAE, VideoMAE V2 and V-JEPA 2.

Nothing is downloaded and no code of theirs runs. What the weights do not tell, such as the number of attention heads, comes
from the ``config.json`` beside them or from the recipe, which wins. ``docs/encoders.md`` says what can be compared.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Self

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from models import videomae_names, vjepa2
from models.config import Config
from models.grid import Patching
from models.vit import Encoder
from models.vjepa2 import VJEPA2Encoder
from stages.errors import ConfigError
from stages.foreign_encoder import ForeignEncoder
from stages.foreign_files import Statistics, digest, read_description, read_statistics, read_weights, weight_files

Form = Literal["videomae", "videomae_v2", "vjepa2"]

_FRAMES_AND_SIZE: Mapping[Form, tuple[int, int]] = MappingProxyType(
    {"videomae": (16, 224), "videomae_v2": (16, 224), "vjepa2": (64, 256)}
)
"""Source: VideoMAE, arXiv 2203.12602; VideoMAE V2, arXiv 2303.16727; the defaults of transformers' ``VJEPA2Config``."""

_DESCRIBED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "num_heads": ("num_attention_heads", "num_heads"),
        "num_frames": ("num_frames", "frames_per_clip"),
        "size_px": ("crop_size", "image_size", "img_size"),
        "norm_epsilon": ("layer_norm_eps",),
    }
)
"""What ``config.json`` calls our numbers: in transformers' VideoMAE and V-JEPA 2, and in VideoMAE V2's own folders."""

_EMBEDDINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"videomae (or videomae_v2)": tuple(videomae_names.EMBEDDINGS.values()), "vjepa2": (vjepa2.EMBEDDING,)}
)


class Geometry(Config):
    """What an encoder was made for, beyond what its tensors tell."""

    num_frames: int = Field(gt=0)
    size_px: int = Field(gt=0)
    num_heads: int | None = Field(default=None, gt=0)
    norm_epsilon: float | None = Field(default=None, gt=0)


class _Built(NamedTuple):
    network: Encoder | VJEPA2Encoder
    patching: Patching


class ForeignConfig(Config):
    """An encoder of others, from files on this machine."""

    name: str = Field(min_length=1)
    """What its features are called in results."""
    form: Form
    """Whose it is."""
    path: str
    """A folder of Hugging Face (``config.json`` and ``model.safetensors``), or one file: ``.safetensors``, or PyTorch's
    ``.pth``, ``.pt`` or ``.bin``, read as tensors alone."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """Of the bytes of the weights, in hex; of several files, of all one after another by name. ``None``: not checked."""
    num_frames: int | None = Field(default=None, gt=0)
    """Frames that it sees at once; ``None``: as its ``config.json`` says, else 16, for V-JEPA 2 64."""
    size_px: int | None = Field(default=None, gt=0)
    """Height and width of the frames that it sees; ``None``: as its ``config.json`` says, else 224, for V-JEPA 2 256."""
    num_heads: int | None = Field(default=None, gt=0)
    """Attention heads; ``None``: as its ``config.json`` says, else those of VideoMAE's published widths."""

    def resolved(self) -> Self:
        """The same with what was left open filled in from its files, so that a fingerprint knows which bytes are meant.

        Raises:
            ConfigError: a file is missing or unreadable.
        """
        known = self._geometry().model_dump(exclude={"norm_epsilon"})
        return self.model_copy(update={**known, "sha256": self.sha256 or digest(weight_files(self._place))})

    def load(self, device: torch.device) -> ForeignEncoder:
        """The encoder, ready to infer.

        Raises:
            ConfigError: files are missing, unreadable or other than pinned, or hold another network; says what to do.
        """
        tensors = self._weights()
        geometry, statistics = self._geometry(), read_statistics(self._place)
        build = _vjepa2 if self.form == "vjepa2" else _videomae
        try:
            built = build(tensors, geometry, statistics)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(f"{self._place}: {_said(error)}; {self._remedy(tensors)}") from error
        return ForeignEncoder(built.network.to(device), built.patching, geometry.num_frames, geometry.size_px, device)

    @property
    def _place(self) -> Path:
        return Path(self.path).expanduser()

    def _weights(self) -> dict[str, Tensor]:
        files = weight_files(self._place)
        if self.sha256 is not None and (found := digest(files)) != self.sha256:
            raise ConfigError(
                f"{self._place}: the sha256 of its weights is {found}, the recipe says {self.sha256}; if these are the "
                "weights that you mean, put their sha256 into the recipe"
            )
        return read_weights(files)

    def _geometry(self) -> Geometry:
        """From the recipe, else from ``config.json``, else as published."""
        described = read_description(self._place)
        described |= described.get("model_config") or {}
        if described.get("hidden_act", "gelu") != "gelu" or described.get("cos_attn"):
            raise ConfigError(
                f"{self._place}/config.json: hidden_act {described.get('hidden_act')!r}, cos_attn "
                f"{described.get('cos_attn')!r}; only GELU and plain attention are known, as published encoders have them"
            )
        num_frames, size_px = _FRAMES_AND_SIZE[self.form]
        numbers: dict[str, Any] = {"num_frames": num_frames, "size_px": size_px}
        for name, theirs in _DESCRIBED.items():
            said = next((described[other] for other in theirs if described.get(other) is not None), None)
            numbers |= {} if said is None else {name: _side(said)}
        numbers |= {name: value for name in Geometry.model_fields if (value := getattr(self, name, None)) is not None}
        try:
            return Geometry.model_validate(numbers)
        except ValidationError as error:
            raise ConfigError(f"{self._place}/config.json: {_said(error)}; correct it, or say it in the recipe") from error

    def _remedy(self, tensors: Mapping[str, Tensor]) -> str:
        """What to do about weights that do not fit."""
        known = [form for form, endings in _EMBEDDINGS.items() if any(_has(tensors, ending) for ending in endings)]
        if known and self.form not in known[0]:
            return f"the names look like those of form {known[0]}, the recipe says {self.form}: set form"
        return (
            f"form {self.form} was asked for; correct path or form, or num_heads, num_frames and size_px where they are meant"
        )


def _videomae(tensors: Mapping[str, Tensor], geometry: Geometry, statistics: Statistics) -> _Built:
    published = videomae_names.read_published(tensors)
    num_heads = geometry.num_heads or videomae_names.PUBLISHED_HEADS.get(published.width)
    if num_heads is None:
        raise ValueError(f"no tensor tells how many attention heads share the width {published.width}: set num_heads")
    network = videomae_names.build_encoder(
        published,
        num_heads=num_heads,
        num_frames=geometry.num_frames,
        size_px=geometry.size_px,
        norm_epsilon=geometry.norm_epsilon,
        pixel_mean=statistics.mean,
        pixel_std=statistics.deviation,
    )
    return _Built(network, published.patching)


def _vjepa2(tensors: Mapping[str, Tensor], geometry: Geometry, statistics: Statistics) -> _Built:
    if geometry.num_heads is None:
        raise ValueError("no tensor tells how many attention heads share the width: set num_heads, or give the whole folder")
    epsilon = {} if geometry.norm_epsilon is None else {"norm_epsilon": geometry.norm_epsilon}
    config = vjepa2.config_of(tensors, num_heads=geometry.num_heads, **epsilon)
    network = vjepa2.build_encoder(
        tensors,
        config,
        num_frames=geometry.num_frames,
        size_px=geometry.size_px,
        pixel_mean=statistics.mean,
        pixel_std=statistics.deviation,
    )
    return _Built(network, config.patching)


def _said(error: Exception) -> str:
    """What an error says, on one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    return ", ".join(": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in error.errors())


def _side(value: Any) -> Any:
    """One number for the equal sides of a square, which transformers allows to be told apart."""
    return value[0] if isinstance(value, list) and len(set(map(str, value))) == 1 else value


def _has(tensors: Mapping[str, Tensor], ending: str) -> bool:
    return any(name.endswith(ending) for name in tensors)
