"""A training that was killed and continued is the training that was not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from stages.draws import generator
from stages.errors import TrainingDiverged
from stages.progress import Silent
from stages.storage import checkpoints
from stages.training import Losses, Optimization, Training, train


class Killed(Exception):
    """Stands for the end of the process at one step."""


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.steps_left = step

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if self.steps_left == 0:
            raise Killed


def optimization(**changes: object) -> Optimization:
    values = {"num_steps": 12, "batch_clips": 4, "learning_rate": 0.05, "warmup_share": 0.25, "log_every_steps": 2}
    return Optimization.model_validate({**values, "checkpoint_every_steps": 4, **changes})


def training(config: Optimization, *, poison_step: int | None = None) -> tuple[nn.Module, Training]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1))

    def batches(*, first_step: int) -> Iterator[dict[str, Tensor]]:
        for step in range(first_step, 100):
            x = torch.randn(config.batch_clips, 3, generator=generator(0, "x", step))
            yield {"x": x * float("nan") if step == poison_step else x}

    def losses(batch: dict[str, Tensor]) -> Losses:
        return {"loss": (module(batch["x"])[:, 0] - batch["x"].sum(1)).square().mean()}

    return module, Training(module, losses, batches, config, config.total_steps(0), label="toy")


@pytest.mark.parametrize("killed_at", [1, 4, 5, 9, 11])
def test_a_killed_training_ends_with_the_same_weights_and_curve(tmp_path: Path, killed_at: int) -> None:
    whole, task = training(optimization())
    curve = train(task, folder=tmp_path / "whole", monitor=Silent())
    with pytest.raises(Killed):
        train(training(optimization())[1], folder=tmp_path / "killed", monitor=KilledAt(killed_at))
    resumed, task = training(optimization())
    assert checkpoints.newest_step(tmp_path / "killed") == (killed_at - 1) // 4 * 4
    assert train(task, folder=tmp_path / "killed", monitor=Silent()) == curve
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(
    "lost", ["module/0.weight", "optimizer/0.weight/exp_avg", "optimizer/2.bias/exp_avg_sq", "optimizer/0.weight/step"]
)
def test_every_saved_item_matters(tmp_path: Path, lost: str) -> None:
    whole, task = training(optimization())
    train(task, folder=tmp_path / "whole", monitor=Silent())
    with pytest.raises(Killed):
        train(training(optimization())[1], folder=tmp_path / "killed", monitor=KilledAt(9))
    saved = checkpoints.load_newest(tmp_path / "killed")
    assert saved is not None
    saved.tensors[lost] = saved.tensors[lost] * 0 + 1
    checkpoints.save(tmp_path / "killed", saved)
    resumed, task = training(optimization())
    train(task, folder=tmp_path / "killed", monitor=Silent())
    assert not all(torch.equal(one, two) for one, two in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_loss_goes_down(tmp_path: Path) -> None:
    _, task = training(optimization(num_steps=100))
    curve = train(task, folder=tmp_path, monitor=Silent())
    assert curve[-1]["loss"] < curve[0]["loss"] / 4


def test_a_loss_that_is_not_finite_stops_the_training_and_says_where(tmp_path: Path) -> None:
    _, task = training(optimization(), poison_step=6)
    with pytest.raises(TrainingDiverged, match="before step 8"):
        train(task, folder=tmp_path, monitor=Silent())
    assert checkpoints.newest_step(tmp_path) == 4


def test_the_rate_warms_up_and_falls_to_its_minimum() -> None:
    config = optimization(num_steps=100, warmup_share=0.1, min_learning_rate=0.001)
    rates = [config.rate(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.005)
    assert max(rates) == rates[9] == pytest.approx(0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[99] == pytest.approx(0.001, rel=0.05)


def test_epochs_are_counted_in_steps() -> None:
    assert optimization(num_steps=None, num_epochs=3).total_steps(10) == 7
    with pytest.raises(ValidationError, match="exactly one of num_steps"):
        optimization(num_epochs=3)
    with pytest.raises(ValidationError, match="checkpoint_every_steps 5 must be a multiple"):
        optimization(checkpoint_every_steps=5)
