"""The pretraining as the laboratory runs it: whole, or until it kills itself."""

from pathlib import Path
from typing import Any

import torch

from stages import pretrain
from stages.storage.artifact import Artifact, read_manifest
from stages.storage.workspace import Workspace
from tests.faults.resuming import FINAL
from tests.faults.tokenizer_work import Watch, digest, kill_after, newest, start_fork_server

NUM_STEPS, EVERY_STEPS = 24, 3
OPTIMIZATION = {
    "num_steps": NUM_STEPS, "batch_clips": 4, "learning_rate": 2e-3, "warmup_share": 0.2, "clip_grad_norm": 1.0,
    "accumulation_steps": 2, "ema_decay": 0.9, "log_every_steps": EVERY_STEPS, "checkpoint_every_steps": EVERY_STEPS,
}  # fmt: skip
PUBLISHED = ("encoder.safetensors", "decoder.safetensors", "metrics.json", "config.json")


def config(num_workers: int = 0) -> pretrain.Config:
    """A training with everything that has a state, on a few masks of every view."""
    small = {"width": 16, "depth": 2, "num_heads": 2}
    return pretrain.Config.model_validate(
        {
            "model": {"encoder": small, "decoder": small},
            "encoder_masking": {"name": "tube", "ratio": 0.75},
            "decoder_masking": "priority",
            "target": "code_vectors",
            "optimization": OPTIMIZATION,
            "masks_per_clip": 2,
            "num_workers": num_workers,
            "cache_bytes": 10_000_000,
        }
    )


def run(root: str, num_workers: int = 0, kill_after_steps: int | None = None, kill_after_s: float | None = None) -> int:
    """One run of the stage in this process; the steps that it began with are its answer."""
    if num_workers:
        start_fork_server()
    kill_after(kill_after_s)
    publish = pretrain._publish

    def noted(task: Any, module: Any, target: Any, course: Any, folder: Path) -> None:
        (Path(root) / FINAL).write_text(digest(newest(folder)))
        publish(task, module, target, course, folder)

    pretrain._publish = noted
    torch.set_num_threads(1)
    workspace = Workspace(Path(root), monitor=Watch(Path(root), kill_after_steps))
    return pretrain.run(config(num_workers), inputs(root), workspace).units_reused


def inputs(root: str) -> dict[str, Artifact]:
    """The clips and the targets that lie in a root."""
    (clips,) = Path(root).glob("clips/*/snapshots/*.json")
    (targets,) = Path(root).glob("targets/*/manifest.json")
    folders = {"shard": (clips.parents[1], clips), "precompute": (targets.parent, targets)}
    return {stage: Artifact(folder, read_manifest(manifest), manifest) for stage, (folder, manifest) in folders.items()}
