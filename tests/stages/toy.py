"""A tiny finished pipeline, by the real stages: a few short clips of a moving square, and everything made of them."""

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.config import Config
from stages import precompute, pretrain, tokenizer, video
from stages.storage.artifact import Artifact
from stages.storage.clips import Dataset, Member
from stages.storage.workspace import Workspace

NUM_FRAMES, SIZE_PX = 32, 32
DIRECTIONS = ("left", "right")
TWO_STEPS = {"num_steps": 2, "batch_clips": 2, "learning_rate": 1e-3, "log_every_steps": 1, "checkpoint_every_steps": 1}
NETWORK = {"top_k": 0.5, "base_channels": 8, "channel_multipliers": [1, 1], "num_res_blocks": 1, "stem_patch_px": 8}
NETWORK |= {"scorer_channels": 8, "quantizer": {"name": "fsq", "levels": [5, 4, 3]}}
NO_HEALTH = {"min_code_entropy_share": 0.0, "min_channel_entropy_bits": 0.0, "min_psnr_over_flat_db": -100.0}
"""What a tokenizer of a few steps reaches."""


def moving_square(index: int, num_frames: int) -> np.ndarray:
    """Frames of a square that crosses the picture once, to the left or to the right, in its own colour and row."""
    source = np.random.default_rng(index)
    frames = source.integers(90, 110, (num_frames, SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    colour, top = source.integers(150, 255, 3), int(source.integers(4, 20))
    for time in range(num_frames):
        left = time * (SIZE_PX - 8) // num_frames
        left = left if DIRECTIONS[index % 2] == "right" else SIZE_PX - 8 - left
        frames[time, top : top + 8, left : left + 8] = colour
    return frames


def member(index: int) -> Member:
    """One clip; every fifth is shorter than the views, every third is tested."""
    frames = moving_square(index, 20 if index % 5 == 4 else NUM_FRAMES)
    with tempfile.TemporaryDirectory() as scratch:
        data = video.encode(frames, fps=25, crf=15, preset="ultrafast", scratch=Path(scratch))
    name = hashlib.sha256(data).hexdigest()
    labels = {
        "class": (DIRECTIONS[index % 2],),
        "row": (str(index % 3),),
        "split": ("test" if index % 3 == 2 else "train",),
        "group": (f"take{index // 2}",),
    }
    row = {
        "source_id": name, "key": f"{index}.mp4", "native_id": "", "start_s": 0.0, "start_frame": 0, "num_frames": len(frames),
        "fps": 25.0, "width_px": SIZE_PX, "height_px": SIZE_PX, "labels": labels, "boxes": (),
    }  # fmt: skip
    return Member(name[:32], data, None, row)


def source_row(one: Member) -> dict[str, object]:
    """The row of the source that made one clip."""
    copied = {name: one.row[name] for name in ("source_id", "key", "num_frames")}
    return {**copied, "size_bytes": 1, "status": "committed", "num_clips": 1}


def snapshot(workspace: Workspace, num_shards: int = 3, per_shard: int = 5) -> Artifact:
    """A dataset of ``num_shards * per_shard`` clips and one source that became none."""
    dataset = Dataset(workspace, "toy-01234567")
    bad = {"source_id": "b" * 64, "key": "<b>bad</b>.mp4", "reason": "corrupt", "detail": "block 3 & 4"}
    for ordinal in range(num_shards):
        members = [member(index) for index in range(ordinal * per_shard, (ordinal + 1) * per_shard)]
        fates = [([one], source_row(one), None) for one in members]
        broken = [([], {"source_id": bad["source_id"], "key": bad["key"], "status": "quarantined"}, bad)]
        dataset.write_unit(ordinal, [*fates, *broken] if ordinal == 0 else fates)
    total = num_shards * per_shard
    counts = {"inputs": total + 1, "committed": total, "quarantined": 1, "pending": 0, "clips": total}
    return dataset.snapshot(config=Config(), fingerprint="f" * 16, counts=counts)


def evaluate_inputs(workspace: Workspace) -> Mapping[str, Artifact]:
    """Everything that an evaluation reads, trained for two steps."""
    shard = snapshot(workspace)
    tokenizing = {
        "model": {"name": "adaptive", **NETWORK},
        "size_px": SIZE_PX,
        "optimization": TWO_STEPS,
        "adversarial": {"discriminator": {"base_channels": 2, "channel_multipliers": [1, 1]}},
        "health": NO_HEALTH,
        "num_preview_windows": 2,
    }
    words = tokenizer.run(tokenizer.Config.model_validate(tokenizing), {"shard": shard}, workspace).artifact
    views = precompute.Config.model_validate({"views": {"num_frames": NUM_FRAMES, "size_px": SIZE_PX}})
    targets = precompute.run(views, {"shard": shard, "tokenizer": words}, workspace).artifact
    made = {"shard": shard, "precompute": targets, "tokenizer": words}
    return {**made, "pretrain": pretrained(workspace, made, target="code_vectors")}


def pretrained(workspace: Workspace, inputs: Mapping[str, Artifact], target: str) -> Artifact:
    """A pretraining towards one target."""
    config = {
        "model": {"encoder": {"width": 16, "depth": 2, "num_heads": 2}, "decoder": {"width": 16, "depth": 1, "num_heads": 2}},
        "encoder_masking": {"name": "tube", "ratio": 0.75},
        "decoder_masking": "priority",
        "target": target,
        "optimization": TWO_STEPS,
        "exclude": {"split": "test"},
    }
    needed = {stage: inputs[stage] for stage in pretrain.INPUTS}
    return pretrain.run(pretrain.Config.model_validate(config), needed, workspace).artifact
