"""What leaves the project: an encoder behind the one input that every exported form takes, and the description beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import torch
from einops import rearrange
from pydantic import Field, ValidationError
from torch import Tensor, nn

from models import mae
from models.config import Config
from models.grid import Grid, patchify
from models.vit import Encoder
from stages.errors import ArtifactDamaged, ArtifactMissing
from stages.storage.checkpoints import read_tensors
from stages.storage.publish import canonical_json

DESCRIPTION = "config.json"
WEIGHTS = "encoder.safetensors"


class Sampling(Config):
    """How frames are taken from a video and brought to size: what the stage ``shard`` did for the pretraining."""

    fps: float | None = Field(default=None, gt=0)
    """Frames per second to resample to; null keeps the video's own frames."""
    frame_stride: int = Field(default=1, gt=0)
    """Of the frames (after resampling) every how many-th is kept."""
    short_side_px: int = Field(gt=0, multiple_of=2)
    """Short side of a frame before the square in its centre is cut out."""


class Description(Config):
    """An exported encoder: enough to build it anew, and to make the frames that it takes."""

    model: mae.Config
    """The architecture; of the decoder nothing is exported."""
    num_frames: int = Field(gt=0)
    """Frames of a clip."""
    size_px: int = Field(gt=0)
    """Height and width of a frame."""
    sampling: Sampling
    """Where the frames come from."""
    batch_clips: int | None = Field(default=None, gt=0)
    """Clips that the exported program takes at a time; null: any number."""

    @property
    def grid(self) -> Grid:
        """The token grid of a clip.

        Raises:
            ValueError: frames or pixels do not fill whole patches.
        """
        return self.model.patching.grid(self.num_frames, self.size_px)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The description in a folder of an exported form.

        Raises:
            ArtifactMissing: there is none.
            ArtifactDamaged: it cannot be read.
        """
        path = folder / DESCRIPTION
        if not path.is_file():
            raise ArtifactMissing(f"{path}: not there; name a folder that `lvmae export` or `lvmae pretrain` made")
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise ArtifactDamaged(
                f"{path}: describes no exported encoder ({error.error_count()} faults); export again"
            ) from error

    def write(self, folder: Path) -> None:
        """Lay the description into a folder."""
        (folder / DESCRIPTION).write_bytes(canonical_json(self.model_dump(mode="json")))


class ClipEncoder(nn.Module):
    """An encoder with all that lies between recorded frames and its tokens: scaling, normalisation, patches, positions.

    Args:
        encoder: the network, for clips of the description.
        description: what it is.
    """

    def __init__(self, encoder: Encoder, description: Description) -> None:
        super().__init__()
        self.encoder = encoder
        self.description = description

    @classmethod
    def build(cls, description: Description, tensors: Mapping[str, Tensor]) -> Self:
        """An encoder with the weights of ``Encoder.state_dict()``, ready to infer."""
        encoder = description.model.build_encoder(description.grid)
        encoder.load_state_dict(dict(tensors))
        made = cls(encoder, description)
        made.requires_grad_(False)
        return made.eval()

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The encoder in a folder of the form ``safetensors``."""
        return cls.build(Description.read(folder), read_tensors(folder / WEIGHTS))

    def forward(self, frames: Tensor) -> Tensor:
        """One vector per token, ``float32 [B N D]``, all tokens visible, after the final norm.

        Args:
            frames: RGB, ``[B T H W C]``, 0 ... 255, as bytes or as floats.
        """
        weight = self.encoder.embed.weight
        patches = patchify(rearrange(frames, "B T H W C -> B C T H W"), self.description.model.patching)
        positions = torch.arange(patches.shape[1], device=frames.device).expand(patches.shape[0], -1)
        tokens: Tensor = self.encoder(patches.to(weight.dtype) / 255, positions)
        return tokens.float()
