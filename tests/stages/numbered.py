"""A sample that only tells which clip and epoch it is of; by itself, so that a worker has little to import."""

from typing import Any

import torch

from stages.storage.index import Clip


def numbered(clip: Clip, epoch: int) -> dict[str, Any]:
    """The clip's number and the epoch."""
    return {"clip": torch.tensor(int(clip.key)), "epoch": torch.tensor(epoch)}


def clip(key: str = "0", *, num_frames: int = 40, width_px: int = 48, height_px: int = 32) -> Clip:
    """A clip that lies nowhere."""
    return Clip(
        clip_id=key, source_id="s", key=key, num_frames=num_frames, fps=30.0, width_px=width_px, height_px=height_px,
        ordinal=0, slot=0, offset_bytes=0, size_bytes=0, crc32c=0,
    )  # fmt: skip
