"""A few clips and a frozen tokenizer: all that targets are made of."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from models.config import Config
from models.tokenizers import linear
from stages import precompute
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact
from stages.storage.clips import Dataset, Member
from stages.storage.publish import canonical_json, publish_bytes
from stages.storage.workspace import Workspace
from tests.stages.clip_files import encoded, member, npy, patches, source_row

SIZE_PX, NUM_FRAMES = 32, 32
PER_SHARD = 3


def footage(number: int) -> npt.NDArray[np.uint8]:
    """Frames of patches that move sideways, at a pace of their own; every fourth clip is shorter than a view."""
    frames = patches(21 if number % 4 == 3 else 40)
    return np.stack([np.roll(frame, time * (number + 1), axis=1) for time, frame in enumerate(frames)])


def shard_members(ordinal: int, scratch: Path) -> list[Member]:
    """The clips of one shard, with the motion that is stored with them."""
    found = []
    for number in range(ordinal * PER_SHARD, (ordinal + 1) * PER_SHARD):
        frames = footage(number)
        motion = npy(np.full((len(frames) // 2, 3, 5, 2), number, np.int8))
        found.append(member(encoded(scratch, frames), key=str(number), num_frames=len(frames), motion=motion))
    return found


def grow(workspace: Workspace, ordinal: int, scratch: Path) -> Artifact:
    """A snapshot of a dataset with one more shard."""
    dataset = Dataset(workspace, "toy-1")
    fates = [([one], source_row(one), None) for one in shard_members(ordinal, scratch)]
    dataset.write_unit(ordinal, fates)
    return dataset.snapshot(config=Config(), fingerprint=f"{ordinal:016d}", counts={})


def words(workspace: Workspace, brightness: float = 0.5) -> Artifact:
    """A frozen tokenizer, ready as it is built but for the brightness that it calls 0."""
    config, name = linear.Config(), f"{brightness:016f}"
    module = config.build()
    assert isinstance(module, linear.LinearTokenizer)
    module.mean.fill_(brightness)
    folder = workspace.artifact_folder("tokenizer", name)
    publish_bytes(folder / "config.json", canonical_json(config.model_dump(mode="json")))
    checkpoints.write_tensors(folder / "model.safetensors", module.state_dict())
    return artifact.commit(workspace, stage="tokenizer", name=name, config=Config(), inputs={}, counts={})


def precompute_config(**changes: Any) -> precompute.Config:
    """Two views of every clip, one at a time through the network."""
    fields: dict[str, Any] = {
        "views": {"num_views": 2, "num_frames": NUM_FRAMES, "size_px": SIZE_PX, "seed": 5},
        "windows": {"batch_windows": 2},
        "products": ["codec_motion"],
    }
    return precompute.Config.model_validate({**fields, **changes})
