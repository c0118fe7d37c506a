"""A few clips of two colours and a tiny encoder to fine-tune; killed by itself where a test wants that."""

import dataclasses
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models import mae
from models.vit import Encoder
from stages.batches import ClipFrames
from stages.draws import generator
from stages.fine_tuning import Asked, Config, Lesson, fine_tuned
from stages.networks import Geometry
from stages.progress import Silent
from stages.storage.artifact import Artifact, read_manifest
from stages.storage.clips import Member
from stages.storage.index import Clip, Index
from stages.views import View, ViewConfig, draw_view
from tests.stages.clip_files import encoded, member, snapshot

VIEWS = ViewConfig(num_frames=8, size_px=16)
MODEL = mae.Config.model_validate(
    {
        "encoder": {"width": 16, "depth": 2, "num_heads": 2},
        "decoder": {"width": 16, "depth": 1, "num_heads": 2},
        "patching": {"tubelet_frames": 2, "patch_px": 8},
    }
)
GEOMETRY = Geometry(MODEL, VIEWS, MODEL.patching.grid(VIEWS.num_frames, VIEWS.size_px), target_dim=1)
NUM_CLIPS, NUM_TRAIN = 8, 6
OPTIMIZATION = {
    "num_steps": 9, "batch_clips": 4, "learning_rate": 5e-3, "log_every_steps": 1, "checkpoint_every_steps": 3,
    "accumulation_steps": 2, "ema_decay": 0.5,
}  # fmt: skip


@dataclasses.dataclass
class World:
    """Clips and what is asked of them."""

    snapshot: Artifact

    @property
    def clips(self) -> list[Clip]:
        """All clips; even ones are red, odd ones blue, and the fourth and the last are shorter than the view."""
        return list(Index(self.snapshot))

    @property
    def frames(self) -> ClipFrames:
        """Decodes them."""
        return ClipFrames(self.snapshot)

    def lesson(self, name: str = "colour-pretrained-00-0", **changes: Any) -> Lesson:
        """The first clips teach, the others are tested."""
        clips = self.clips
        truth = one_hot(np.arange(NUM_TRAIN) % 2)
        fields = {"train": clips[:NUM_TRAIN], "test": clips[NUM_TRAIN:], "asked": (Asked("colour", truth),)}
        views: Mapping[str, list[View]] = {clip.clip_id: [draw_view(clip, 0, VIEWS)] for clip in clips}
        return Lesson(**{"name": name, "views": views, **fields, **changes})

    def fine_tuned(
        self, folder: Path, settings: Config | None = None, *, lesson: Lesson | None = None, monitor: Any = None, seed: int = 0
    ) -> dict[str, Any]:
        """What comes of a fine-tuning."""
        return fine_tuned(
            settings or config(),
            lesson or self.lesson(),
            encoder=encoder(),
            geometry=GEOMETRY,
            frames=self.frames,
            folder=folder,
            seed=seed,
            monitor=monitor or Silent(),
        )


def one_hot(classes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """What clips of one of two classes show."""
    return np.eye(2, dtype=bool)[classes]


def config(optimization: Mapping[str, Any] | None = None, **changes: Any) -> Config:
    """A short training with everything that is drawn by chance."""
    fields = {"optimization": {**OPTIMIZATION, **(optimization or {})}, "flip_share": 0.5, "token_drop": 0.25, "drop_path": 0.3}
    return Config.model_validate({**fields, **changes})


def encoder(seed: int = 0) -> Encoder:
    """An encoder that nobody trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODEL.build_encoder(GEOMETRY.grid).eval()


def make(root: Path) -> World:
    """The clips, below a root."""
    return World(snapshot(root, [[_member(number) for number in range(NUM_CLIPS)]]))


def at(root: Path) -> World:
    """Those that were made before."""
    (manifest,) = root.glob("clips/*/snapshots/*.json")
    return World(Artifact(manifest.parents[1], read_manifest(manifest), manifest))


def _member(number: int) -> Member:
    num_frames = 5 if number in (3, NUM_CLIPS - 1) else 12
    noise = torch.randint(0, 40, (num_frames, 24, 24, 3), generator=generator(0, "footage", number), dtype=torch.uint8)
    frames = noise.numpy()
    frames[..., (0, 2)[number % 2]] += 150
    key = f"{number:02d}"
    with tempfile.TemporaryDirectory() as scratch:
        video = encoded(Path(scratch), frames)
    return member(video, key=key, num_frames=num_frames, width_px=24, height_px=24)


class KilledAfter(Silent):
    """Ends this process by a signal after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if self.steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    at(Path(sys.argv[1])).fine_tuned(Path(sys.argv[2]), monitor=KilledAfter(int(sys.argv[3])))
