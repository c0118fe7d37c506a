"""Steps that would harm a training leave no trace in it, and what was done about them once is done again."""

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.draws import generator
from stages.errors import TrainingDiverged
from stages.guard import Decision, Ledger, Refusal
from stages.optimization import Guard, Optimization
from stages.player import Player
from stages.progress import Silent
from stages.storage import checkpoints
from stages.storage.checkpoints import Checkpoint
from stages.training import SAMPLE, Batch, Course, Losses, Moment, Training, train

SEED = 20_251_126
NUM_STEPS, NUM_TRAININGS, NUM_FAULTS = 200, 20, 50
"""A thousand faults in all."""
KINDS = ("nan", "inf", "-inf", "spike")
FIRST_STEP = 16
"""Before it too few steps were seen to tell a spike."""


class Killed(Exception):
    """Stands for the end of the process."""


class KilledAt(Silent):
    """Ends a training after so many steps of this run."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if self.steps_left == 0:
            raise Killed


class Faults:
    """What goes wrong at which step, every time or the first time only."""

    def __init__(self, kinds: Mapping[int, str], *, is_transient: bool = False) -> None:
        self.left, self.is_transient = dict(kinds), is_transient
        self.fired: list[int] = []

    def harm(self, x: Tensor, step: int) -> Tensor:
        kind = self.left.get(step)
        if kind is None:
            return x
        self.fired.append(step)
        if self.is_transient:
            del self.left[step]
        return x * 1e4 if kind == "spike" else x.index_fill(0, torch.tensor([1]), float(kind))


def drawn(source: random.Random) -> dict[int, str]:
    steps = source.sample(range(FIRST_STEP, NUM_STEPS), NUM_FAULTS)
    return {step: source.choice(KINDS) for step in steps}


def optimization(**changes: Any) -> Optimization:
    rules = Guard(spike_factor=100, window_steps=16, max_skipped_steps=NUM_STEPS)
    values = {"num_steps": NUM_STEPS, "batch_clips": 4, "learning_rate": 0.01, "log_every_steps": 5, "ema_decay": 0.9}
    return Optimization.model_validate({"checkpoint_every_steps": 10, "guard": rules, **values, **changes})


def training(faults: Faults, **changes: Any) -> Training:
    """A network that learns to add three numbers, whose inputs are harmed on their way."""
    config = optimization(**changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def batches(*, first_step: int) -> Iterator[dict[str, Any]]:
        for step in range(first_step, NUM_STEPS):
            x = torch.randn(4, 3, generator=generator(0, "x", step))
            yield {"x": faults.harm(x, step), SAMPLE: [f"{step} {row}" for row in range(4)]}

    def losses(batch: Batch, moment: Moment) -> Mapping[str, Losses]:
        error = module(batch["x"])[:, 0] - batch["x"].sum(1)
        return {"adder": {"loss": error.square().mean()}}

    return Training({"adder": Player(module, config)}, losses, batches, config, NUM_STEPS, label="toy")


def state(task: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.players["adder"].state().items()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def decided(folder: Path, kinds: Mapping[int, str]) -> None:
    """A ledger that leaves steps out from the beginning."""
    refusals = [Refusal(step=step, reason="spike", samples=(), decision=Decision.SKIP) for step in sorted(kinds)]
    Ledger(replayed_to=NUM_STEPS, refusals=tuple(refusals)).write(folder)


@pytest.mark.parametrize("number", range(NUM_TRAININGS))
def test_no_harmful_step_is_ever_in_committed_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    kinds = drawn(random.Random(SEED + number))
    save, saved = checkpoints.save, []

    def noted(folder: Path, checkpoint: Checkpoint) -> None:
        saved.append(
            all(bool(torch.isfinite(value).all()) for name, value in checkpoint.tensors.items() if "guard" not in name)
        )
        save(folder, checkpoint)

    monkeypatch.setattr(checkpoints, "save", noted)
    faults = Faults(kinds)
    harmed = training(faults)
    course = train(harmed, folder=tmp_path / "harmed", monitor=Silent())
    assert set(faults.fired) == set(kinds), "every fault fires"
    assert [left_out["step"] for left_out in course.left_out] == sorted(kinds)
    assert {left_out["reason"] for left_out in course.left_out} <= {"non-finite", "spike"}
    assert all(saved)
    # The same as if these steps had been left out from the beginning, on sound data.
    decided(tmp_path / "oracle", kinds)
    sound = training(Faults({}))
    train(sound, folder=tmp_path / "oracle", monitor=Silent())
    assert same(state(harmed), state(sound))


@pytest.mark.parametrize("number", range(5))
def test_what_does_not_come_again_changes_nothing(tmp_path: Path, number: int) -> None:
    kinds = drawn(random.Random(SEED - number))
    faults = Faults(kinds, is_transient=True)
    harmed, sound = training(faults), training(Faults({}))
    course = train(harmed, folder=tmp_path / "harmed", monitor=Silent())
    assert set(faults.fired) == set(kinds)
    assert course == train(sound, folder=tmp_path / "sound", monitor=Silent())
    assert same(state(harmed), state(sound))
    assert {refusal.decision for refusal in Ledger.read(tmp_path / "harmed").refusals} == {Decision.PASSED}


@pytest.mark.parametrize("number", range(5))
def test_a_killed_run_decides_the_same_again(tmp_path: Path, number: int) -> None:
    source = random.Random(SEED + 1000 + number)
    kinds = drawn(source)
    whole = training(Faults(kinds))
    course: Course = train(whole, folder=tmp_path / "whole", monitor=Silent())
    kills = 0
    while True:
        killed = training(Faults(kinds))
        try:
            again = train(killed, folder=tmp_path / "killed", monitor=KilledAt(source.randint(20, 60)))
            break
        except Killed:
            kills += 1
    assert kills > 4
    assert again == course
    assert same(state(killed), state(whole))


def test_a_training_that_is_refused_step_after_step_has_diverged(tmp_path: Path) -> None:
    faults = Faults(dict.fromkeys(range(30, NUM_STEPS), "nan"))
    with pytest.raises(
        TrainingDiverged, match="10 steps in a row up to step 39 were refused, and again when they were replayed"
    ):
        train(training(faults, guard=Guard(max_skipped_steps=10)), folder=tmp_path, monitor=Silent())
    assert checkpoints.newest_step(tmp_path) == 30, "the last one before"


def test_spikes_are_taken_where_they_are_not_to_be_refused(tmp_path: Path) -> None:
    task = training(Faults({40: "spike"}), guard=Guard(spike_factor=None))
    assert train(task, folder=tmp_path, monitor=Silent()).left_out == ()


def test_the_samples_of_a_refused_step_and_the_count_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    course = train(training(Faults({40: "nan"})), folder=tmp_path, monitor=Silent())
    assert course.left_out == (
        {"step": 40, "reason": "non-finite", "samples": ["40 0", "40 1", "40 2", "40 3"], "decision": "skip"},
    )
    assert [row["step"] for row in course.history if row.get("refused_steps")] == [45]
    assert "step=40 refused reason=non-finite decision=replay samples=40 0, 40 1, 40 2, 40 3" in caplog.text
