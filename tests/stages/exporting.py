"""A tiny pretrained encoder as an artifact, made without training, for the tests of everything that hands encoders on."""

import json
from pathlib import Path

import torch
from torch import Tensor

from models import mae
from models.config import Config
from stages.backends._clip_encoder import ClipEncoder, Description, Sampling
from stages.storage import artifact
from stages.storage.artifact import Artifact, Work
from stages.storage.checkpoints import write_tensors
from stages.storage.clips import Dataset
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace
from stages.video_command import ClipConfig

NUM_FRAMES, SIZE_PX, WIDTH = 4, 32, 32
COUNTS = {"inputs": 0, "committed": 0, "quarantined": 0, "pending": 0}


class ShardConfig(Config):
    """The part of the stage's that its readers look for."""

    clip: ClipConfig


def model(positions: str = "flattened") -> mae.Config:
    return mae.Config.model_validate(
        {
            "encoder": {"width": WIDTH, "depth": 1, "num_heads": 2},
            "decoder": {"width": 16, "depth": 1, "num_heads": 2},
            "positions": positions,
        }
    )


def description(positions: str = "flattened", **changed: object) -> Description:
    sampling = Sampling(short_side_px=40)
    plain = {"model": model(positions), "num_frames": NUM_FRAMES, "size_px": SIZE_PX, "sampling": sampling}
    return Description.model_validate({**plain, **changed})


def weights(described: Description) -> dict[str, Tensor]:
    """No tensor is constant, so that none can stand where another belongs."""
    torch.manual_seed(0)
    encoder = described.model.build_encoder(described.grid)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder.state_dict()


def clip_encoder(positions: str = "flattened") -> ClipEncoder:
    described = description(positions)
    return ClipEncoder.build(described, weights(described))


def clips(count: int = 2, seed: int = 0) -> Tensor:
    shape = (count, NUM_FRAMES, SIZE_PX, SIZE_PX, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def snapshot(workspace: Workspace, clip: ClipConfig) -> Artifact:
    """A snapshot without a clip, made as clips of some form."""
    dataset = Dataset(workspace, "tiny-01234567")
    dataset.write_unit(0, [])
    return dataset.snapshot(config=ShardConfig(clip=clip), fingerprint="0" * 16, counts=COUNTS)


def pretrained(workspace: Workspace, positions: str = "flattened", clip: ClipConfig | None = None) -> Artifact:
    """The artifact of a pretraining on clips of 40 px, every second frame of 10 per second."""
    described = description(positions)
    views = {"num_views": 1, "num_frames": NUM_FRAMES, "size_px": SIZE_PX, "seed": 0}
    stored = {"model": described.model.model_dump(mode="json"), "views": views, "target_dim": 6}

    def make(folder: Path) -> Work:
        publish_bytes(folder / "config.json", json.dumps(stored).encode())
        write_tensors(folder / "encoder.safetensors", weights(described))
        return Work(units_done=1, units_reused=0, counts={})

    clips_made = snapshot(workspace, clip or ClipConfig(size_px=40, fps=10, frame_stride=2, num_frames=16))
    inputs = {"shard": clips_made}
    return artifact.produce(
        "pretrain", version=1, config=model(positions), inputs=inputs, workspace=workspace, make=make
    ).artifact
