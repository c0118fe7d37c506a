"""The tokenizer's training as the laboratory runs it: whole, or until it kills itself."""

import hashlib
import multiprocessing.forkserver
import multiprocessing.util
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from stages import tokenizer
from stages.progress import Silent
from stages.storage import checkpoints
from stages.storage.artifact import Artifact, read_manifest
from stages.storage.checkpoints import Checkpoint
from stages.storage.publish import canonical_json
from stages.storage.workspace import Workspace
from tests.faults.resuming import FINAL
from tests.stages import toy

NUM_STEPS, EVERY_STEPS = 24, 3
OPTIMIZATION = {
    "num_steps": NUM_STEPS, "batch_clips": 4, "learning_rate": 2e-3, "warmup_share": 0.2, "clip_grad_norm": 1.0,
    "accumulation_steps": 2, "ema_decay": 0.9, "log_every_steps": EVERY_STEPS, "checkpoint_every_steps": EVERY_STEPS,
}  # fmt: skip
ADVERSARIAL = {
    "start_step": 4, "discriminator": {"base_channels": 2, "channel_multipliers": [1, 1]}, "learning_rate": 1e-3,
    "r1_every_steps": 2, "lecam_weight": 0.1,
}  # fmt: skip
MODEL = {
    "name": "adaptive", "window_frames": 8, "patching": {"patch_px": 8}, "quantizer": {"name": "fsq", "levels": [5, 4, 3]},
    "top_k": 0.5, "selection": "gumbel", "base_channels": 4, "channel_multipliers": [1, 1], "num_res_blocks": 1,
    "stem_patch_px": 4, "scorer_channels": 4,
}  # fmt: skip
SIZE_PX = 16
HEAVY = ("torch._dynamo", "torchmetrics.functional.image", "pandas", "matplotlib.backends.backend_agg")
"""What a run imports in passing, for its optimizers, measures, tables and pictures: seconds, once, before the forks."""


def config(num_workers: int = 0) -> tokenizer.Config:
    """A training with everything that has a state: two players, averages, regularisers, parts of batches, and chance."""
    return tokenizer.Config.model_validate(
        {
            "model": MODEL,
            "size_px": SIZE_PX,
            "optimization": OPTIMIZATION,
            "adversarial": ADVERSARIAL,
            "health": toy.NO_HEALTH,
            "num_preview_windows": 2,
            "num_workers": num_workers,
            "cache_bytes": 10_000_000,
        }
    )


class Watch(Silent):
    """Kills this process after so many steps of this run, and keeps the digest of a finished training's last checkpoint."""

    def __init__(self, root: Path, kill_after_steps: int | None) -> None:
        self.root = root
        self.steps_left = kill_after_steps

    def advance(self, amount: int = 1) -> None:
        if self.steps_left is not None:
            self.steps_left -= amount
            if self.steps_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if any(name.startswith("final_") for name in values):
            (folder,) = self.root.glob("tokenizers/*")
            (self.root / FINAL).write_text(digest(newest(folder)))


def newest(folder: Path) -> Checkpoint:
    found = checkpoints.load_newest(folder)
    assert found is not None
    return found


def digest(checkpoint: Checkpoint) -> str:
    """sha256 over all that a training is: every tensor of every player by name, curves, samples, updates."""
    found = hashlib.sha256()
    for name, value in sorted(checkpoint.tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    found.update(canonical_json({"step": checkpoint.step, **checkpoint.values}))
    return found.hexdigest()


def run(root: str, num_workers: int = 0, kill_after_steps: int | None = None, kill_after_s: float | None = None) -> int:
    """One run of the stage in this process; the steps that it began with are its answer."""
    if num_workers:
        start_fork_server()
    kill_after(kill_after_s)
    workspace = Workspace(Path(root), monitor=Watch(Path(root), kill_after_steps))
    return tokenizer.run(config(num_workers), {"shard": clips(root)}, workspace).units_reused


def kill_after(seconds: float | None) -> None:
    """End this process a while from now."""
    if seconds is not None:
        killer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        killer.daemon = True
        killer.start()


def clips(root: str) -> Artifact:
    """The clips that lie in a root."""
    (manifest,) = Path(root).glob("clips/*/snapshots/*.json")
    return Artifact(manifest.parents[1], read_manifest(manifest), manifest)


def start_fork_server() -> None:
    """The server that loader workers are forked from, as a fork of this process: starting it anew costs seconds of imports."""
    spawn = multiprocessing.util.spawnv_passfds

    def forked(path: bytes, arguments: Sequence[Any], descriptors: Sequence[int]) -> int:
        code = str(arguments[-1])
        if "forkserver" not in code:
            return spawn(path, arguments, descriptors)
        process = os.fork()
        if process:
            return process
        kept = sorted({0, 1, 2, *descriptors})
        for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
            os.closerange(low + 1, high)
        try:
            exec(code, {})
        finally:
            os._exit(0)

    multiprocessing.util.spawnv_passfds = forked
    multiprocessing.forkserver.ensure_running()
