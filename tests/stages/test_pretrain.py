"""Pretraining in one process or several: what it begins with, what it measures on the way, and what changes no bit."""

import dataclasses
import io
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from models import cost
from models.config import Config
from models.tokenizers import linear
from stages import estimate, precompute, pretrain
from stages.errors import ConfigError
from stages.progress import Silent
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import read_tensors
from stages.storage.clips import Dataset, Member
from stages.storage.publish import sha256_file
from stages.storage.workspace import Workspace
from tests.stages.clip_files import source_row
from tests.stages.target_world import precompute_config, shard_members, words

NUM_STEPS = 6
OPTIMIZATION = {
    "num_steps": NUM_STEPS, "batch_clips": 4, "learning_rate": 1e-3, "log_every_steps": 2, "checkpoint_every_steps": 2,
    "accumulation_steps": 4, "ema_decay": 0.9, "clip_grad_norm": 1.0,
}  # fmt: skip
MODEL = {"encoder": {"width": 16, "depth": 2, "num_heads": 2}, "decoder": {"width": 16, "depth": 1, "num_heads": 2}}


@dataclasses.dataclass
class World:
    """A root with clips and targets, copied for every training."""

    root: Path
    snapshot: Artifact
    targets: Artifact

    def train(self, monitor: Any = None, **changes: Any) -> Artifact:
        """A pretraining from the beginning."""
        shutil.rmtree(self.root / "pretrain", ignore_errors=True)
        return self.run(monitor, **changes)

    def run(self, monitor: Any = None, **changes: Any) -> Artifact:
        """A pretraining, or the rest of it."""
        workspace = Workspace(self.root, monitor=monitor or Silent())
        return pretrain.run(config(**changes), {"shard": self.snapshot, "precompute": self.targets}, workspace).artifact


def labelled(workspace: Workspace, members: Sequence[Member]) -> Artifact:
    """A snapshot of clips, every third of which is for testing."""
    splits = ["test" if number % 3 == 2 else "train" for number in range(len(members))]
    told = [one._replace(row={**one.row, "labels": {"split": (split,)}}) for one, split in zip(members, splits, strict=True)]
    dataset = Dataset(workspace, "toy-1")
    dataset.write_unit(0, [([one], source_row(one), None) for one in told])
    return dataset.snapshot(config=Config(), fingerprint="0" * 16, counts={})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    workspace, scratch = Workspace(root), tmp_path_factory.mktemp("scratch")
    snapshot = labelled(workspace, [one for ordinal in range(2) for one in shard_members(ordinal, scratch)])
    inputs = {"shard": snapshot, "tokenizer": words(workspace)}
    return World(root, snapshot, precompute.run(precompute_config(), inputs, workspace).artifact)


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    """As many threads as every rank has on two cores: products are summed in another order with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(optimization: Mapping[str, Any] | None = None, **changes: Any) -> pretrain.Config:
    fields: dict[str, Any] = {
        "model": MODEL,
        "encoder_masking": {"name": "tube", "ratio": 0.75},
        "decoder_masking": "priority",
        "target": "code_vectors",
        "optimization": {**OPTIMIZATION, **(optimization or {})},
        "seed": 3,
    }
    return pretrain.Config.model_validate({**fields, **changes})


def weights(made: Artifact) -> dict[str, Tensor]:
    return {
        f"{part}/{name}": value
        for part in ("encoder", "decoder")
        for name, value in read_tensors(made.verified(f"{part}.safetensors")).items()
    }


def files(made: Artifact) -> dict[str, str]:
    return {name: record.sha256 for name, record in made.manifest.files.items()}


def course(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.verified("metrics.json").read_bytes())
    return found


# Ranks.


def test_any_number_of_ranks_gives_the_same_bits_in_the_deterministic_mode(world: World) -> None:
    exact = {"deterministic": True}
    made = {number: files(world.train(optimization=exact, num_ranks=number)) for number in (1, 2, 4)}
    assert made[1] == made[2] == made[4]


def test_ranks_see_the_same_samples_and_learn_nearly_the_same_in_the_fast_mode(world: World) -> None:
    class Log(Silent):
        """What the first rank said."""

        def __init__(self) -> None:
            self.steps = 0
            self.rows: list[int] = []

        def advance(self, amount: int = 1) -> None:
            self.steps += amount

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self.rows.append(step)

    alone, log = world.train(), Log()
    alone_course, alone_weights = course(alone), weights(alone)
    together = world.train(monitor=log, num_ranks=2)
    assert (log.steps, log.rows) == (NUM_STEPS, [2, 4, 6])
    assert course(together)["sample_digest"] == alone_course["sample_digest"]
    for one, other in zip(alone_course["history"], course(together)["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in weights(together).items():
        torch.testing.assert_close(value, alone_weights[name], rtol=1e-3, atol=1e-4)


def test_parts_that_do_not_divide_among_ranks_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="accumulation_steps=1 parts of a batch do not divide among 2 ranks"):
        world.train(optimization={"accumulation_steps": 1}, num_ranks=2)
    with pytest.raises(ConfigError, match=r"takes 1, 2, 4, 8 \.\.\. parts per rank, and accumulation_steps=6"):
        world.train(optimization={"accumulation_steps": 6, "batch_clips": 6, "deterministic": True}, num_ranks=2)


# What changes no bit.


def test_computing_activations_again_changes_no_bit(world: World) -> None:
    plain = files(world.train())
    assert files(world.train(activation_checkpointing="full")) == plain


# What it begins with.


def given(made: Artifact, part: str, folder: Path) -> dict[str, str]:
    """A file of weights, out of the way of the next training."""
    copy = Path(shutil.copy(made.verified(f"{part}.safetensors"), folder))
    return {"path": str(copy), "sha256": sha256_file(copy)}


def test_a_training_begins_with_the_weights_of_an_earlier_one(world: World, tmp_path: Path) -> None:
    earlier = world.train()
    before, parts = weights(earlier), {part: given(earlier, part, tmp_path) for part in ("encoder", "decoder")}
    still = {"learning_rate": 1e-30, "min_learning_rate": 0.0, "weight_decay": 0.0}
    after = weights(world.train(optimization=still, initial=parts))
    assert all(torch.equal(after[name], before[name]) for name in before)
    alone = weights(world.train(optimization=still, initial={"encoder": parts["encoder"]}))
    assert all(torch.equal(alone[name], before[name]) for name in before if name.startswith("encoder/"))
    assert not torch.equal(alone["decoder/head.weight"], before["decoder/head.weight"])


def test_weights_of_another_network_are_refused(world: World, tmp_path: Path) -> None:
    parts = {"encoder": given(world.train(), "encoder", tmp_path)}
    wide = {**MODEL, "encoder": {"width": 24, "depth": 2, "num_heads": 2}}
    with pytest.raises(ConfigError, match=r"encoder\.safetensors: not the weights of pretrain\.model"):
        world.train(model=wide, initial=parts)
    with pytest.raises(ConfigError, match="not the weights"):
        world.train(initial={**parts, "form": "videomae"})


# What it measures on the way.


def test_the_loss_on_clips_that_are_not_trained_on_joins_the_curves(world: World) -> None:
    made = world.train(exclude={"split": "test"}, held_out_every_steps=4, num_held_out_clips=2)
    with_it = [row["step"] for row in course(made)["history"] if "held_out_loss" in row]
    assert with_it == [4]
    measured = weights(made)
    plain = weights(world.train(exclude={"split": "test"}))
    assert all(torch.equal(plain[name], measured[name]) for name in plain), "measuring leaves no trace"
    with pytest.raises(ValidationError, match="held_out_every_steps 3 must be a multiple"):
        config(held_out_every_steps=3)


def test_after_every_measurement_a_clip_that_is_not_trained_on_is_shown(world: World) -> None:
    class Shown(Silent):
        """The pictures and the measures beside them."""

        def __init__(self) -> None:
            self.pictures: list[tuple[int, str, bytes]] = []
            self.measures: dict[str, float] = {}

        def show(self, step: int, name: str, png: bytes) -> None:
            self.pictures.append((step, name, png))

        def log(self, step: int, values: Mapping[str, float]) -> None:
            self.measures = dict(values)

    shown = Shown()
    for num_ranks in (1, 2):
        world.train(exclude={"split": "test"}, held_out_every_steps=2, num_held_out_clips=2, num_ranks=num_ranks, monitor=shown)
    assert [(step, name) for step, name, _ in shown.pictures] == [(2, "held-out"), (4, "held-out"), (6, "held-out")] * 2
    first, *_, last = (np.array(Image.open(io.BytesIO(png)).convert("RGB")) for _, _, png in shown.pictures[:3])
    assert first.shape == last.shape
    assert (first != last).any(), "the errors become others"
    workload = estimate.run_of(config(), precompute_config().views, linear.Config().quantizer).workload
    measured = shown.measures["model_tflop_per_s"] * 1e12 / shown.measures["clips_per_s"]
    assert measured == pytest.approx(cost.flops(workload).training)
