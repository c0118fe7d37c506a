"""A training that was killed and continued is the training that was not; and what the loop does in between."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from stages.draws import generator
from stages.errors import ArtifactDamaged, TrainingDiverged
from stages.optimization import Optimization
from stages.player import Player
from stages.progress import Silent
from stages.storage import checkpoints
from stages.storage.publish import sha256_bytes
from stages.training import SAMPLE, Batch, Course, Losses, Moment, Training, train


class Killed(Exception):
    """Stands for the end of the process at one step."""


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.steps_left = step

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if self.steps_left == 0:
            raise Killed


class Log(Silent):
    """What was said of every step."""

    def __init__(self) -> None:
        self.rows: dict[int, Mapping[str, float]] = {}

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.rows[step] = dict(values)


def optimization(**changes: object) -> Optimization:
    values = {"num_steps": 12, "batch_clips": 4, "learning_rate": 0.05, "warmup_share": 0.25, "log_every_steps": 2}
    return Optimization.model_validate({**values, "checkpoint_every_steps": 4, **changes})


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 1))


def batches(batch_clips: int, poison_step: int | None = None, shuffled: bool = False) -> Any:
    """Numbers whose names say when they were drawn; ``shuffled``: the same ones in another order within a batch."""

    def following(*, first_step: int) -> Iterator[dict[str, Any]]:
        for step in range(first_step, 100):
            x = torch.randn(batch_clips, 3, generator=generator(0, "x", step))
            names = [f"{step} {row}" for row in range(batch_clips)]
            if step == poison_step:
                x = x * float("nan")
            yield {"x": x.flip(0), SAMPLE: names[::-1]} if shuffled else {"x": x, SAMPLE: names}

    return following


def training(config: Optimization, *, poison_step: int | None = None, **changes: Any) -> tuple[nn.Module, Training]:
    """One network that learns to add three numbers."""
    module = network()

    def losses(batch: Batch, moment: Moment) -> Mapping[str, Losses]:
        return {"adder": {"loss": (module(batch["x"])[:, 0] - batch["x"].sum(1)).square().mean()}}

    values = {"players": {"adder": Player(module, config)}, "losses": losses, "optimization": config, "label": "toy"}
    values |= {"batches": batches(config.batch_clips, poison_step), "total_steps": config.total_steps(0)}
    return module, Training(**{**values, **changes})


def two_players(config: Optimization, *, start_step: int = 0, seen: list[Moment] | None = None) -> Training:
    """An adder, and a rival that learns where the adder is wrong, from ``start_step`` on."""
    adder, rival = Player(network(0), config), Player(network(1), config.model_copy(update={"learning_rate": 0.01}))

    def losses(batch: Batch, moment: Moment) -> Mapping[str, Losses]:
        if seen is not None:
            seen.append(moment)
        error = (adder.module(batch["x"])[:, 0] - batch["x"].sum(1)).abs()
        blamed = rival.module(batch["x"])[:, 0]
        found = {"adder": {"loss": (error * functional.softplus(blamed)).mean(), "error": error.detach().mean()}}
        if moment.step >= start_step:
            found["rival"] = {"loss": (blamed - error.detach()).square().mean()}
        return found

    players = {"adder": adder, "rival": rival}
    return Training(players, losses, batches(config.batch_clips), config, config.total_steps(0), label="toy")


def equal(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(*pair) for pair in zip(one.parameters(), two.parameters(), strict=True))


# Resuming. The tokenizer's training is killed in tests/faults/test_tokenizer_resume.py.


@pytest.mark.parametrize("killed_at", [1, 4, 5, 9, 11])
def test_a_killed_training_ends_with_the_same_weights_and_course(tmp_path: Path, killed_at: int) -> None:
    whole, task = training(optimization())
    course = train(task, folder=tmp_path / "whole", monitor=Silent())
    with pytest.raises(Killed):
        train(training(optimization())[1], folder=tmp_path / "killed", monitor=KilledAt(killed_at))
    resumed, task = training(optimization())
    assert checkpoints.newest_step(tmp_path / "killed") == (killed_at - 1) // 4 * 4
    assert train(task, folder=tmp_path / "killed", monitor=Silent()) == course
    assert equal(whole, resumed)


@pytest.mark.parametrize("killed_at", [2, 6, 10])
def test_two_players_with_averages_are_continued_where_they_were(tmp_path: Path, killed_at: int) -> None:
    config = optimization(ema_decay=0.8, accumulation_steps=2)
    whole = two_players(config, start_step=5)
    course = train(whole, folder=tmp_path / "whole", monitor=Silent())
    with pytest.raises(Killed):
        train(two_players(config, start_step=5), folder=tmp_path / "killed", monitor=KilledAt(killed_at))
    resumed = two_players(config, start_step=5)
    assert train(resumed, folder=tmp_path / "killed", monitor=Silent()) == course
    for name, player in whole.players.items():
        assert equal(player.module, resumed.players[name].module)
        assert equal(player.trained, resumed.players[name].trained)
        assert not equal(player.module, player.trained)


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
    saved.tensors[f"adder/{lost}"] = saved.tensors[f"adder/{lost}"] * 0 + 1
    checkpoints.save(tmp_path / "killed", saved)
    resumed, task = training(optimization())
    train(task, folder=tmp_path / "killed", monitor=Silent())
    assert not equal(whole, resumed)


def test_a_checkpoint_of_another_network_is_refused_and_says_what_to_delete(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(training(optimization())[1], folder=tmp_path, monitor=KilledAt(9))
    other = optimization()
    wide = nn.Sequential(nn.Linear(3, 9), nn.LayerNorm(9), nn.Linear(9, 1))
    strangers = {
        "another shape": {"adder": Player(wide, other)},
        "another name": {"subtracter": Player(network(), other)},
        "an average more": {"adder": Player(network(), optimization(ema_decay=0.9))},
        "a player more": {"adder": Player(network(), other), "rival": Player(network(), other)},
    }
    said = r"(?s)checkpoint of step 8 does not fit this training .*; delete .*/checkpoints to begin anew"
    for why, players in strangers.items():
        with pytest.raises(ArtifactDamaged, match=said):
            train(training(other, players=players)[1], folder=tmp_path, monitor=Silent())
        assert checkpoints.newest_step(tmp_path) == 8, why


def test_a_finished_training_is_restored_and_trains_no_step_more(tmp_path: Path) -> None:
    whole, task = training(optimization())
    course = train(task, folder=tmp_path, monitor=Silent())
    again, task = training(optimization())
    assert train(task, folder=tmp_path, monitor=KilledAt(1)) == course
    assert equal(whole, again)


# The moving average.


def test_the_average_follows_its_definition(tmp_path: Path) -> None:
    decay, seen = 0.7, []
    config = optimization(ema_decay=decay)
    module, task = training(config)
    player = task.players["adder"]

    class Watch(Silent):
        def advance(self, amount: int = 1) -> None:
            seen.append([value.detach().clone() for value in module.parameters()])

    train(task, folder=tmp_path, monitor=Watch())
    average = seen[0]  # after the first step there is nothing to average it with
    for values in seen[1:]:
        average = [decay * old + (1 - decay) * new for old, new in zip(average, values, strict=True)]
    for found, wanted in zip(player.trained.parameters(), average, strict=True):
        torch.testing.assert_close(found.detach(), wanted)
    assert not equal(player.trained, module)


def test_an_average_changes_nothing_of_the_training_itself(tmp_path: Path) -> None:
    plain, averaged = training(optimization()), training(optimization(ema_decay=0.9))
    courses = [train(task, folder=tmp_path / name, monitor=Silent()) for name, (_, task) in (("p", plain), ("a", averaged))]
    assert courses[0] == courses[1]
    assert equal(plain[0], averaged[0])
    assert plain[1].players["adder"].trained is plain[0]


def test_buffers_are_kept_as_they_are_in_the_average() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    player = Player(module, optimization(ema_decay=0.9))
    for _ in range(3):
        module(torch.randn(8, 2)).square().sum().backward()
        player.update(0.01, player.norm(), torch.zeros(()))
    trained: Any = player.trained
    assert torch.equal(trained[1].running_mean, module[1].running_mean)
    assert trained[1].num_batches_tracked == 3


# Accumulation.


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_same_batch(tmp_path: Path, parts: int) -> None:
    config = optimization(clip_grad_norm=0.5)
    whole, task = training(config)
    course = train(task, folder=tmp_path / "whole", monitor=Silent())
    cut, task = training(config.model_copy(update={"accumulation_steps": parts}))
    cut_course = train(task, folder=tmp_path / "cut", monitor=Silent())
    for one, two in zip(whole.parameters(), cut.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert cut_course.sample_digest == course.sample_digest
    for one, two in zip(course.history, cut_course.history, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-5)


def test_losses_are_told_the_step_and_the_part(tmp_path: Path) -> None:
    seen: list[Moment] = []
    train(two_players(optimization(num_steps=2, accumulation_steps=2), seen=seen), folder=tmp_path, monitor=Silent())
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match="batch_clips 4 does not divide into accumulation_steps 3"):
        optimization(accumulation_steps=3)


# Several players.


def test_a_player_that_joins_late_is_untouched_until_then(tmp_path: Path) -> None:
    task = two_players(optimization(), start_step=8)
    before = copy.deepcopy(task.players["rival"].module)
    with pytest.raises(Killed):
        train(task, folder=tmp_path, monitor=KilledAt(8))
    assert equal(task.players["rival"].module, before)
    assert task.players["rival"].num_updates == 0
    saved = checkpoints.load_newest(tmp_path)
    assert saved is not None
    assert saved.values["num_updates"] == {"adder": 4, "rival": 0}
    assert not [name for name in saved.tensors if name.startswith("rival/optimizer/")]
    resumed = two_players(optimization(), start_step=8)
    history = train(resumed, folder=tmp_path, monitor=Silent()).history
    assert not equal(resumed.players["rival"].module, before)
    assert (resumed.players["adder"].num_updates, resumed.players["rival"].num_updates) == (12, 4)
    assert [row["step"] for row in history if "rival_loss" in row] == [10, 12]


def test_the_loss_of_a_player_moves_nobody_else() -> None:
    task = two_players(optimization(num_steps=1))
    adder, rival = task.players["adder"], task.players["rival"]
    x = next(task.batches(first_step=0))["x"]
    found = task.losses({"x": x}, Moment(0, 0))
    torch.autograd.backward(found["adder"]["loss"], inputs=adder.parameters())
    assert all(value.grad is None for value in rival.module.parameters())
    assert all(value.grad is not None for value in adder.module.parameters())


def test_the_first_players_measures_go_by_their_names_and_the_others_by_both(tmp_path: Path) -> None:
    history = train(two_players(optimization()), folder=tmp_path, monitor=Silent()).history
    names = {"step", "loss", "error", "grad_norm", "rival_loss", "rival_grad_norm"}
    assert all(set(row) == names for row in history)
    assert [row["step"] for row in history] == [2, 4, 6, 8, 10, 12]


def test_every_player_steps_at_its_own_rate_along_the_shared_schedule(tmp_path: Path) -> None:
    config = optimization(learning_rate=0.05, min_learning_rate=0.0)
    task = two_players(config)
    train(task, folder=tmp_path, monitor=Silent())
    for name, share in (("adder", 1), ("rival", 5)):
        rates = [group["lr"] for group in task.players[name].optimizer.param_groups]
        assert rates == [pytest.approx(config.rate(11, 12) / share)] * 2


def test_vectors_are_not_decayed() -> None:
    groups = Player(network(), optimization(weight_decay=0.3)).optimizer.param_groups
    assert [(group["weight_decay"], sorted({value.ndim for value in group["params"]})) for group in groups] == [
        (0.3, [2]),
        (0.0, [1]),
    ]


def test_what_is_frozen_in_a_network_is_neither_trained_nor_asked_for_when_it_is_continued() -> None:
    module = network()
    module[0].requires_grad_(False)
    player, before = Player(module, optimization()), copy.deepcopy(module)
    module(torch.ones(2, 3)).square().sum().backward()
    player.update(0.05, player.norm(), torch.zeros(()))
    changed = [not torch.equal(*pair) for pair in zip(before.parameters(), module.parameters(), strict=True)]
    assert changed == [False, False, True, True, True, True]
    player.restore(player.state(), num_updates=1)


# What is reported.


def test_rows_are_means_over_the_steps_since_the_last(tmp_path: Path) -> None:
    every, pairs = Log(), Log()
    train(training(optimization(log_every_steps=1))[1], folder=tmp_path / "every", monitor=every)
    history = train(training(optimization())[1], folder=tmp_path / "pairs", monitor=pairs).history
    for row in history:
        step = int(row["step"])
        for name in ("loss", "grad_norm"):
            assert row[name] == pytest.approx((every.rows[step - 1][name] + every.rows[step][name]) / 2, rel=1e-5)
            assert pairs.rows[step][name] == row[name]
        assert 0 <= pairs.rows[step]["data_wait_share"] <= 1
        assert "data_wait_share" not in row, "a time would differ from run to run"


def test_gradients_are_reported_as_they_were_before_clipping(tmp_path: Path) -> None:
    limits = (None, 1e-3)
    tasks = [training(optimization(num_steps=2, clip_grad_norm=limit))[1] for limit in limits]
    free, clipped = (train(task, folder=tmp_path / str(number), monitor=Silent()).history for number, task in enumerate(tasks))
    assert clipped[0]["grad_norm"] > 1e-2
    assert clipped[0]["grad_norm"] == pytest.approx(free[0]["grad_norm"], rel=0.5)


def test_a_judge_adds_to_the_rows_of_its_steps(tmp_path: Path) -> None:
    asked: list[int] = []

    def judge() -> dict[str, float]:
        asked.append(1)
        return {"verdict": float(len(asked))}

    log = Log()
    task = training(optimization(), judge=judge, judge_every_steps=4)[1]
    history = train(task, folder=tmp_path, monitor=log).history
    assert [row.get("verdict") for row in history] == [None, 1.0, None, 2.0, None, 3.0]
    assert log.rows[8]["verdict"] == 2.0
    assert len(asked) == 3


def test_the_digest_of_samples_is_over_their_names_in_order(tmp_path: Path) -> None:
    digest = ""
    for step in range(12):
        digest = sha256_bytes("\n".join([digest, *(f"{step} {row}" for row in range(4))]).encode())
    course = train(training(optimization())[1], folder=tmp_path / "in order", monitor=Silent())
    assert course.sample_digest == digest
    other = train(training(optimization(), batches=batches(4, shuffled=True))[1], folder=tmp_path / "other", monitor=Silent())
    assert other.sample_digest != digest
    shorter = train(training(optimization(num_steps=11))[1], folder=tmp_path / "shorter", monitor=Silent())
    assert shorter.sample_digest != digest


def test_a_course_survives_its_checkpoint(tmp_path: Path) -> None:
    course = train(training(optimization())[1], folder=tmp_path, monitor=Silent())
    saved = checkpoints.load_newest(tmp_path)
    assert saved is not None
    assert Course(saved.values["history"], saved.values["sample_digest"]) == course


def test_a_run_under_bf16_keeps_parameters_and_losses_in_full_precision(tmp_path: Path) -> None:
    module, task = training(optimization(precision="bf16"))
    plain, _ = training(optimization())
    course = train(task, folder=tmp_path, monitor=Silent())
    assert {value.dtype for value in module.parameters()} == {torch.float32}
    assert course.history[-1]["loss"] < course.history[0]["loss"]
    assert not equal(plain, module)


# The rest of the loop.


def test_the_loss_goes_down(tmp_path: Path) -> None:
    _, task = training(optimization(num_steps=100))
    history = train(task, folder=tmp_path, monitor=Silent()).history
    assert history[-1]["loss"] < history[0]["loss"] / 4


def test_a_measure_that_is_not_finite_stops_the_training_and_says_which(tmp_path: Path) -> None:
    module, task = training(optimization())

    def losses(batch: Batch, moment: Moment) -> Mapping[str, Losses]:
        loss = (module(batch["x"])[:, 0] - batch["x"].sum(1)).square().mean()
        return {"adder": {"loss": loss, "ratio": loss.detach() / (moment.step - 6)}}

    with pytest.raises(TrainingDiverged, match="ratio stopped being finite before step 8"):
        train(dataclasses.replace(task, losses=losses), folder=tmp_path, monitor=Silent())
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


def test_a_saved_checkpoint_is_a_copy_of_the_players(tmp_path: Path) -> None:
    module, task = training(optimization(num_steps=4))
    train(task, folder=tmp_path, monitor=Silent())
    saved = checkpoints.load_newest(tmp_path)
    assert saved is not None
    state: dict[str, Tensor] = {f"adder/{name}": value for name, value in task.players["adder"].state().items()}
    assert set(saved.tensors) == {*state, "guard/adder/norms"}
    assert all(torch.equal(saved.tensors[name], state[name]) for name in state)
    assert torch.equal(saved.tensors["adder/module/0.weight"], module.state_dict()["0.weight"])
