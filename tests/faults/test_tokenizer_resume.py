"""The tokenizer's training, killed anywhere and run again, ends with the bits of the one that was not; and every bit counts."""

import copy
import functools
import json
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.draws import generator
from stages.errors import ArtifactDamaged
from stages.optimization import Optimization
from stages.player import Player
from stages.progress import Silent
from stages.rebuilding import DISCRIMINATOR, TOKENIZER, Adversarial, Objective, Opponent
from stages.storage import checkpoints
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import Checkpoint
from stages.storage.workspace import Workspace
from stages.training import SAMPLE, Training, train
from tests.faults import tokenizer_work
from tests.faults.harness import KILLS, Fault, Laboratory
from tests.faults.resuming import Bench, resumed_after_kills
from tests.faults.tokenizer_work import EVERY_STEPS, NUM_STEPS, digest, newest
from tests.stages import toy

SEED = 20_251_126
PUBLISHED = ("model.safetensors", "metrics.json", "config.json", "preview.png")


# Killed anywhere.


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    clips = tmp_path_factory.mktemp("clips") / "root"
    toy.snapshot(Workspace(clips), num_shards=1, per_shard=6)
    with Laboratory("tests.faults.tokenizer_work", *tokenizer_work.HEAVY) as laboratory:
        made = Bench(laboratory, "tests.faults.tokenizer_work:run", clips, "tokenizers", PUBLISHED)
        made.undisturbed(tmp_path_factory.mktemp("whole") / "root")
        yield made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_random_points_the_training_ends_with_the_same_bits(bench: Bench, tmp_path: Path, num_workers: int) -> None:
    resumed_from = resumed_after_kills(bench, tmp_path, kills=20, num_workers=num_workers, seed=SEED + num_workers)
    assert resumed_from <= {*range(0, NUM_STEPS + 1, EVERY_STEPS)}


@pytest.mark.parametrize("mode", KILLS)
def test_killed_while_a_checkpoint_is_saved_the_training_goes_on_from_the_one_before_or_from_it(
    bench: Bench, tmp_path: Path, mode: str
) -> None:
    """Between the second checkpoint and the fourth there are all the calls that saving makes, removing old ones included."""
    source = random.Random(f"{SEED} {mode}")
    root = bench.fresh(tmp_path / "root")
    for number in (source.randrange(25, 45), source.randrange(20, 40), source.randrange(20, 40)):
        outcome = bench.run(root, Fault(mode, number))
        assert outcome.killed, f"the fault at call {number} must fire"
        (folder,) = root.glob("tokenizers/*")
        assert newest(folder).step % EVERY_STEPS == 0
    healed = bench.run(root)
    assert healed.error is None, healed.message
    assert healed.result >= EVERY_STEPS
    assert bench.is_the_same(root), f"seed {SEED}"
    assert not list(root.glob("tokenizers/*/checkpoints")), "nothing of the way is left"


def test_the_number_of_workers_is_no_part_of_what_is_made(bench: Bench, tmp_path: Path) -> None:
    root = bench.fresh(tmp_path / "root")
    assert bench.run(root, num_workers=2).error is None
    assert bench.is_the_same(root)


# Every item counts.


LAST_STEP, SAVED_STEP = 9, 6
VALUES = ("history", "sample_digest", "num_updates", "pending")


class Stop(Exception):
    """Stands for the end of the process."""


class StopAt(Silent):
    """Ends a training as soon as its state is restored, or after so many steps."""

    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        if not self.steps_left:
            raise Stop

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if not self.steps_left:
            raise Stop


def windows(*, first_step: int) -> Iterator[dict[str, Any]]:
    """Batches of random windows."""
    for step in range(first_step, LAST_STEP):
        window = torch.randint(0, 256, (4, 3, 8, 16, 16), generator=generator(0, "window", step), dtype=torch.uint8)
        yield {SAMPLE: [f"{step} {row}" for row in range(4)], "window": window}


def training() -> Training:
    """The stage's own players and losses on random windows."""
    config = tokenizer_work.config()
    optimization = Optimization.model_validate({**tokenizer_work.OPTIMIZATION, "num_steps": LAST_STEP})
    rules = Adversarial.model_validate({**tokenizer_work.ADVERSARIAL, "start_step": 2})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, opponent = config.model.build(), Opponent(rules.discriminator)
    settings = optimization.model_copy(update={"learning_rate": 1e-3, "ema_decay": None})
    players = {TOKENIZER: Player(module, optimization), DISCRIMINATOR: Player(opponent, settings)}
    losses = Objective(module, seed=0, opponent=opponent, adversarial=rules, perceptual=None)  # type: ignore[arg-type]
    return Training(players, losses, windows, optimization, LAST_STEP, "tokenizer")


def kind_of(name: str) -> str:
    """What kind of tensor stands under a name: that of its player, and what it is there."""
    player, role, rest = name.split("/", 2)
    if role == "optimizer":
        return f"{player} {rest.rsplit('/', 1)[1]}"
    return f"{player} lecam" if rest.startswith("lecam.") else f"{player} {role}" + (" count" if rest == "n_averaged" else "")


KINDS = (
    "tokenizer module", "tokenizer exp_avg", "tokenizer exp_avg_sq", "tokenizer step", "tokenizer average",
    "tokenizer average count",
    "discriminator module", "discriminator exp_avg", "discriminator exp_avg_sq", "discriminator step", "discriminator lecam",
    "guard tokenizer", "guard discriminator",
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The checkpoint of a training that was stopped between two of them."""
    folder = tmp_path_factory.mktemp("saved")
    with pytest.raises(Stop):
        train(training(), folder=folder, monitor=StopAt(SAVED_STEP + 1))
    found = newest(folder)
    assert found.step == SAVED_STEP
    return found


@pytest.fixture(scope="module")
def expected(saved: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the undisturbed training ends with, and the one that goes on from the checkpoint."""
    folder = tmp_path_factory.mktemp("undisturbed")
    train(training(), folder=folder, monitor=Silent())
    whole = digest(newest(folder))
    assert outcome_of(saved, tmp_path_factory.mktemp("resumed")) == whole
    return whole


def outcome_of(changed: Checkpoint, folder: Path) -> str:
    """What a training ends with that goes on from a checkpoint: its digest, or that it is refused."""
    checkpoints.save(folder, changed)
    try:
        train(training(), folder=folder, monitor=Silent())
    except ArtifactDamaged:
        return "refused"
    finally:
        last = newest(folder)
        shutil.rmtree(folder)
    assert last.step == LAST_STEP
    return digest(last)


@functools.cache
def initial() -> Mapping[str, Tensor]:
    """Every tensor as it is before the first step; moments and counts of an optimizer begin at zero."""
    players = training().players
    return {f"{name}/{key}": value.clone() for name, player in players.items() for key, value in player.state().items()}


def with_tensors(saved: Checkpoint, **changes: Any) -> Checkpoint:
    return saved._replace(tensors={**saved.tensors, **changes})


def test_the_kinds_of_tensors_are_all_here(saved: Checkpoint) -> None:
    assert {kind_of(name) for name in saved.tensors} == set(KINDS)
    assert set(saved.values) == set(VALUES)
    assert saved.values["num_updates"] == {TOKENIZER: SAVED_STEP, DISCRIMINATOR: SAVED_STEP - 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_without_any_one_tensor_is_refused(
    saved: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    task, found = training(), saved
    monkeypatch.setattr(checkpoints, "load_newest", lambda folder: found)  # without writing it: there are hundreds
    for name in [name for name in saved.tensors if kind_of(name) == kind]:
        found = saved._replace(tensors={key: value for key, value in saved.tensors.items() if key != name})
        with pytest.raises(ArtifactDamaged, match="does not fit this training"):
            train(task, folder=tmp_path, monitor=StopAt(0))
    found = saved
    with pytest.raises(Stop):  # with all of them it is taken
        train(task, folder=tmp_path, monitor=StopAt(0))


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_was_set_back_to_its_start_changes_the_end(
    saved: Checkpoint, expected: str, tmp_path: Path, kind: str
) -> None:
    starts = {
        name: initial().get(name, torch.zeros_like(value)) for name, value in saved.tensors.items() if kind_of(name) == kind
    }
    changed = [name for name, start in starts.items() if not torch.equal(start, saved.tensors[name])]
    assert changed, "a training moves them"
    for name in random.Random(f"{SEED} {kind}").sample(changed, min(2, len(changed))):
        ended = outcome_of(with_tensors(saved, **{name: starts[name]}), tmp_path / "run")
        assert ended != expected, name


def test_every_tensor_that_is_left_as_it_was_at_the_start_is_one_without_a_gradient(saved: Checkpoint) -> None:
    still = [name for name, value in saved.tensors.items() if torch.equal(value, initial().get(name, torch.zeros_like(value)))]
    assert [name for name in still if "scorer.second.bias" not in name] == [], "it cancels in the difference of two slots"


@pytest.mark.parametrize("value", VALUES)
def test_a_checkpoint_without_any_one_value_is_refused(saved: Checkpoint, tmp_path: Path, value: str) -> None:
    values = {key: kept for key, kept in saved.values.items() if key != value}
    assert outcome_of(saved._replace(values=values), tmp_path / "run") == "refused"


@pytest.mark.parametrize("player", [TOKENIZER, DISCRIMINATOR])
def test_a_players_updates_are_neither_forgotten_nor_miscounted(saved: Checkpoint, tmp_path: Path, player: str) -> None:
    for change in ("drop", "reset"):
        values = copy.deepcopy(saved.values)
        values["num_updates"].pop(player)
        if change == "reset":
            values["num_updates"][player] = 0
        assert outcome_of(saved._replace(values=values), tmp_path / "run") == "refused", change


@pytest.mark.parametrize(("value", "start"), [("history", []), ("sample_digest", "")])
def test_a_value_that_was_set_back_to_its_start_changes_the_end(
    saved: Checkpoint, expected: str, tmp_path: Path, value: str, start: Any
) -> None:
    assert outcome_of(saved._replace(values={**saved.values, value: start}), tmp_path / "run") != expected


def test_a_step_that_was_set_back_to_its_start_changes_the_end(saved: Checkpoint, expected: str, tmp_path: Path) -> None:
    assert outcome_of(saved._replace(step=0), tmp_path / "run") != expected


@pytest.mark.parametrize("key", ["step", "sha256", "values"])
def test_a_checkpoint_whose_record_lacks_anything_is_passed_over_for_the_one_before(
    saved: Checkpoint, tmp_path: Path, key: str
) -> None:
    checkpoints.save(tmp_path, saved._replace(step=EVERY_STEPS))
    checkpoints.save(tmp_path, saved)
    assert checkpoints.newest_step(tmp_path) == SAVED_STEP
    place = max(tmp_path.glob("checkpoints/step-*")) / "state.json"
    record = json.loads(place.read_bytes())
    del record[key]
    place.write_text(json.dumps(record))
    assert checkpoints.newest_step(tmp_path) == EVERY_STEPS


def test_halves_of_checkpoints_that_a_kill_left_are_removed_with_the_next(saved: Checkpoint, tmp_path: Path) -> None:
    half = tmp_path / "checkpoints" / "step-00000001"
    half.mkdir(parents=True)
    (half / "state.safetensors").write_bytes(b"half")
    for step in (3, 6, 9):
        checkpoints.save(tmp_path, saved._replace(step=step))
    assert sorted(path.name for path in half.parent.iterdir()) == ["step-00000006", "step-00000009"]


def test_the_digest_tells_two_states_apart_by_any_bit(saved: Checkpoint) -> None:
    same = digest(saved)
    assert digest(Checkpoint(*copy.deepcopy(tuple(saved)))) == same
    for name, value in {kind_of(name): (name, value) for name, value in saved.tensors.items()}.values():
        flipped = value.clone()
        flipped.view(-1).view(torch.uint8)[0] ^= 1
        assert digest(with_tensors(saved, **{name: flipped})) != same, name
    assert digest(saved._replace(step=3)) != same


def test_the_made_artifact_is_an_artifact(bench: Bench) -> None:
    assert isinstance(tokenizer_work.clips(str(bench.inputs)), Artifact)
    assert json.loads(bench.files["metrics.json"])["history"][-1]["step"] == NUM_STEPS
    assert "discriminator_r1" in json.loads(bench.files["metrics.json"])["history"][-1]
