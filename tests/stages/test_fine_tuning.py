"""Fine-tuning: what a sample is, at which rates it learns, and that a killed one ends with the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.classifier import Classifier
from models.mixing import Mixing
from models.pooling import mean
from stages import fine_tuning
from stages.augmented import Seen
from stages.draws import generator
from stages.errors import ArtifactDamaged, ConfigError
from stages.fine_tuning import Asked, Config, Schedule, Task, unit_name
from stages.optimization import Optimization, layer_scales
from stages.player import Player
from stages.progress import Silent
from stages.storage import checkpoints
from stages.storage.checkpoints import newest_step
from stages.training import Moment
from stages.views import cut, draw_view
from tests.faults.harness import REPOSITORY
from tests.stages import fine_tuning_world
from tests.stages.fine_tuning_world import GEOMETRY, NUM_TRAIN, VIEWS, World, config, encoder, one_hot

NAME = "colour-pretrained-00-0"
PLAIN = {"rand_augment": None, "erasing": 0.0, "flip_share": 0.0, "token_drop": 0.0, "drop_path": 0.0, "label_smoothing": 0.0}
PLAIN |= {"mixing": {"mixup": None, "cutmix": None}}
LONG = {"learning_rate": 2e-2, "ema_decay": None, "checkpoint_every_steps": 100}


class Killed(Exception):
    """Stands for the end of the process."""


class KilledAt(Silent):
    def __init__(self, steps: int) -> None:
        self.steps_left = steps

    def advance(self, amount: int = 1) -> None:
        self.steps_left -= amount
        if self.steps_left == 0:
            raise Killed


class Count(Silent):
    """Steps that were taken, and what was said of them."""

    def __init__(self) -> None:
        self.steps, self.names = 0, set[str]()

    def advance(self, amount: int = 1) -> None:
        self.steps += amount

    def log(self, step: int, values: Any) -> None:
        self.names |= set(values)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return fine_tuning_world.make(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def whole(world: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    world.fine_tuned(folder)
    return files(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def task(world: World, **changes: Any) -> Task:
    return Task(config(**changes), GEOMETRY, world.frames, seed=0)


# What is learned.


@pytest.mark.parametrize("pooling", ["mean", "class_attention"])
def test_it_fits_the_clips_that_teach_and_tells_those_that_do_not(world: World, tmp_path: Path, pooling: str) -> None:
    settings = config({**LONG, "num_steps": 30}, pooling=pooling, **PLAIN)
    lesson = world.lesson(test=world.clips)
    found = world.fine_tuned(tmp_path, settings, lesson=lesson)["colour"]
    assert found.dtype == np.float32
    assert found.shape == (8, 2)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert found.argmax(axis=1).tolist() == [0, 1] * 4
    assert found.max(axis=1).min() > 0.9
    history = json.loads((tmp_path / f"fine_tuning/{NAME}.json").read_bytes())["history"]
    assert history[-1]["loss"] < 0.1 * history[0]["loss"]


def test_without_steps_worth_the_name_nothing_is_known(world: World, tmp_path: Path) -> None:
    found = world.fine_tuned(tmp_path, config({"num_steps": 1, "learning_rate": 1e-9, "min_learning_rate": 0.0}))
    assert found["colour"] == pytest.approx(0.5, abs=1e-3)


def test_several_questions_share_an_encoder_and_one_of_them_may_have_several_answers(world: World, tmp_path: Path) -> None:
    several = np.stack([np.ones(NUM_TRAIN), np.arange(NUM_TRAIN) % 2, np.zeros(NUM_TRAIN)], axis=1).astype(bool)
    asked = (world.lesson().asked[0], Asked("signs", several, is_exclusive=False))
    settings = config({**LONG, "num_steps": 40}, **PLAIN)
    found = world.fine_tuned(tmp_path, settings, lesson=world.lesson(asked=asked))
    assert found["colour"].argmax(axis=1).tolist() == [0, 1]
    assert (found["signs"] > 0.5).tolist() == [[True, False, False], [True, True, False]]
    assert found["signs"].sum(axis=1).max() > 1.5, "no softmax"


def test_the_answer_is_the_mean_over_the_views(world: World) -> None:
    made, lesson = task(world), world.lesson()
    module = fine_tuning._untrained(made, lesson, encoder())
    module.head.weight.data.normal_(generator=generator(0, "head"))
    views = {clip.clip_id: [draw_view(clip, number, VIEWS) for number in range(3)] for clip in lesson.test}

    def answer(views: Any) -> Any:
        return fine_tuning.predicted(made, module, dataclasses.replace(lesson, views=views))["colour"]

    each = [answer({name: (found[number],) for name, found in views.items()}) for number in range(3)]
    np.testing.assert_allclose(answer(views), np.mean(each, axis=0), rtol=1e-5)
    assert not np.array_equal(each[0], each[1])


def test_in_half_precision_it_learns_as_well(world: World, tmp_path: Path) -> None:
    settings = config({"num_steps": 2, "precision": "bf16"}, pooling="class_attention")
    assert np.isfinite(world.fine_tuned(tmp_path, settings)["colour"]).all()


# Losses.


@torch.no_grad()
def losses(world: World, rows: list[int], **changes: Any) -> tuple[float, Classifier, Task, dict[str, torch.Tensor]]:
    made, lesson = task(world, **{**PLAIN, **changes}), world.lesson()
    module = fine_tuning._untrained(made, lesson, encoder())
    module.head.weight.data.normal_(generator=generator(0, "head"))
    stream = fine_tuning._stream(made, lesson)
    truths = [stream._attach(lesson.train[row], 0, 0) for row in rows]
    taken = [made.augmented().sample(lesson.train[row], 0, seen) for row, seen in zip(rows, truths, strict=True)]
    batch = {name: torch.stack([one[name] for one in taken]) for name in taken[0] if name != "sample"}
    found = fine_tuning._losses(made, module, lesson, batch, Moment(0, 0))["classifier"]["loss"]
    return float(found), module, made, batch


@torch.no_grad()
def scores(module: Classifier, world: World, row: int) -> torch.Tensor:
    """What the classifier says of a clip at the place of its sample, recorded slots alone."""
    made, clip = task(world, **PLAIN), world.clips[row]
    seen = made.augmented().sample(clip, 0, Seen(0, ()))
    recorded = seen["clip"][:, : 2 * int(seen["num_slots"])]
    return fine_tuning._scores(made, module, recorded[None])[0][0]


def test_the_loss_is_the_cross_entropy_of_recorded_slots_with_smoothed_labels(world: World) -> None:
    rows = [0, 1, 3]  # the last is short
    for smoothing in (0.0, 0.1):
        found, module, _, batch = losses(world, rows, label_smoothing=smoothing)
        assert batch["num_slots"].tolist() == [4, 4, 2]
        expected = []
        for row in rows:
            likely = scores(module, world, row).log_softmax(0)
            expected.append(-(1 - smoothing) * likely[row % 2] - smoothing / 2 * likely.sum())
        assert found == pytest.approx(float(torch.stack(expected).mean()), rel=1e-4)


def test_a_mixed_batch_counts_as_long_as_the_longer_clip(world: World) -> None:
    seen: list[torch.Tensor] = []

    class Watch(Classifier):
        def forward(self, patches: Any, positions: Any, *, exists: Any = None, branch_scales: Any = None) -> Any:
            seen.append(exists)
            return super().forward(patches, positions, exists=exists, branch_scales=branch_scales)

    made, lesson = task(world, **{**PLAIN, "mixing": Mixing(cutmix=None)}), world.lesson()
    taken = [made.augmented().sample(lesson.train[row], 0, Seen(0, (torch.eye(2)[row % 2],))) for row in (3, 1)]
    batch = {name: torch.stack([one[name] for one in taken]) for name in taken[0] if name != "sample"}
    fine_tuning._losses(made, Watch(encoder(), mean.Config(), [2]), lesson, batch, Moment(0, 0))
    assert seen[0].all()
    unmixed = made._replace(config=config(**PLAIN))
    fine_tuning._losses(unmixed, Watch(encoder(), mean.Config(), [2]), lesson, batch, Moment(0, 0))
    assert seen[1].sum(dim=1).tolist() == [8, 16]


def test_chance_in_the_loss_is_drawn_for_step_and_part(world: World) -> None:
    _, module, _, batch = losses(world, [0, 1, 2, 4])
    lesson = world.lesson()
    for changes in ({"drop_path": 0.5}, {"mixing": {"cutmix": None}}):
        drawn = task(world, **{**PLAIN, **changes})
        found = [
            float(fine_tuning._losses(drawn, module, lesson, batch, moment)["classifier"]["loss"].detach())
            for moment in (Moment(4, 0), Moment(4, 0), Moment(4, 1), Moment(5, 0))
        ]
        assert found[0] == found[1]
        assert len(set(found)) == 3


# Samples.


def test_a_plain_sample_is_a_view_of_the_clip(world: World) -> None:
    made, clip = task(world, **PLAIN), world.clips[0]
    found = made.augmented().sample(clip, 3, Seen(1, (torch.ones(2),)))
    assert found["sample"] == f"{clip.clip_id} 3 1"
    frames = world.frames.read(clip)
    places = [
        (start, y, x)
        for start in range(5)
        for y in range(9)
        for x in range(9)
        if np.array_equal(frames[start : start + 8, y : y + 16, x : x + 16].transpose(3, 0, 1, 2), found["clip"].numpy())
    ]
    assert len(places) == 1
    assert found["positions"].tolist() == list(range(16))
    assert int(found["num_slots"]) == 4
    assert torch.equal(found["truth_0"], torch.ones(2))


def test_samples_differ_by_epoch_and_repeat_and_are_the_same_every_time(world: World) -> None:
    clip = world.clips[0]
    keys = [(0, 0), (0, 1), (1, 0)]
    one, other = (
        {(epoch, repeat): task(world).augmented().sample(clip, epoch, Seen(repeat, ())) for epoch, repeat in order}
        for order in (keys, keys[::-1])
    )
    for key in keys:
        assert all(torch.equal(one[key][name], other[key][name]) for name in ("clip", "positions", "num_slots"))
    assert not torch.equal(one[0, 0]["clip"], one[0, 1]["clip"])
    assert not torch.equal(one[0, 0]["clip"], one[1, 0]["clip"])
    assert len({tuple(found["positions"].tolist()) for found in one.values()}) > 1
    assert all(len(found["positions"]) == 12 for found in one.values()), "a quarter of four tubes is dropped"


def test_a_short_clip_is_looped_and_says_how_much_of_it_counts(world: World) -> None:
    found = task(world).augmented().sample(world.clips[3], 0, Seen(0, ()))
    assert found["clip"].shape == (3, 8, 16, 16)
    assert torch.equal(found["clip"][:, 5:], found["clip"][:, :3])
    assert int(found["num_slots"]) == 2, "five frames fill two slots"


def test_a_clip_is_decoded_once_for_its_repeats(world: World) -> None:
    made, reads = task(world), []

    class Frames:
        def read(self, *given: Any) -> Any:
            reads.append(given)
            return world.frames.read(*given)

    how = made._replace(frames=Frames()).augmented()  # type: ignore[arg-type]
    for repeat in range(3):
        how.sample(world.clips[0], 0, Seen(repeat, ()))
    how.sample(world.clips[0], 1, Seen(0, ()))
    assert len(reads) == 2


def test_the_test_sees_all_tokens_of_recorded_slots(world: World) -> None:
    made, clip = task(world), world.clips[3]
    view = draw_view(clip, 0, VIEWS)
    found = fine_tuning._pixels(made, fine_tuning._Look(0, clip, view, 2))["clip"]
    assert np.array_equal(found.numpy().transpose(1, 2, 3, 0), cut(world.frames, clip, view, 4))


# Rates.


def test_the_rate_falls_from_layer_to_layer() -> None:
    module = Classifier(encoder(), mean.Config(), [2])
    scales = layer_scales(module.layers(), 0.5)
    assert scales["head.weight"] == scales["norm.bias"] == scales["encoder.norm.weight"] == 1.0
    assert scales["encoder.blocks.1.mlp.0.weight"] == 0.5
    assert scales["encoder.blocks.0.attention.q_bias"] == 0.25
    assert scales["encoder.embed.weight"] == 0.125


def test_every_parameter_steps_at_its_own_rate() -> None:
    """One step of AdamW moves each weight by its rate alone, whatever its gradient is."""
    module = Classifier(encoder(), mean.Config(), [2])
    settings = Optimization(num_steps=1, batch_clips=1, learning_rate=1.0, weight_decay=0.0)
    player = Player(module, settings, layer_scales(module.layers(), 0.5))
    before = {name: value.detach().clone() for name, value in module.named_parameters()}
    for value in module.parameters():
        value.grad = torch.full_like(value, 3.0)
    player.update(0.04, player.norm(), torch.zeros(()))
    for name, value in module.named_parameters():
        expected = 0.04 * {0: 0.125, 1: 0.25, 2: 0.5, 3: 1.0}[module.layers()[name]]
        torch.testing.assert_close(before[name] - value.detach(), torch.full_like(value, expected), rtol=1e-3, atol=1e-5)
    decays = {(group["weight_decay"], value.ndim > 1) for group in player.optimizer.param_groups for value in group["params"]}
    assert decays == {(0.0, True), (0.0, False)}


def test_scaled_groups_keep_vectors_from_decaying() -> None:
    module = Classifier(encoder(), mean.Config(), [2])
    settings = Optimization(num_steps=1, batch_clips=1, learning_rate=1.0, weight_decay=0.3)
    groups = Player(module, settings, layer_scales(module.layers(), 0.5)).optimizer.param_groups
    assert {(group["weight_decay"], value.ndim > 1) for group in groups for value in group["params"]} == {
        (0.3, True),
        (0.0, False),
    }
    assert sum(len(group["params"]) for group in groups) == len(list(module.parameters()))


def test_what_is_not_given_of_a_schedule_is_that_of_fine_tuning() -> None:
    settings = Config.model_validate({"optimization": {"num_steps": 7, "batch_clips": 8, "learning_rate": 1e-3}})
    found = settings.optimization
    assert (found.betas, found.min_learning_rate, found.weight_decay) == ((0.9, 0.999), 1e-6, 0.05)
    assert Config().optimization.learning_rate == pytest.approx(5e-4 * Schedule(num_epochs=1).batch_clips / 256)
    with pytest.raises(ValidationError, match="unknown name 'max'"):
        Config.model_validate({"pooling": "max"})


# Resuming.


@pytest.mark.parametrize("killed_at", [1, 4, 8])
def test_a_killed_fine_tuning_ends_with_the_same_bytes(
    world: World, whole: dict[str, bytes], tmp_path: Path, killed_at: int
) -> None:
    with pytest.raises(Killed):
        world.fine_tuned(tmp_path, monitor=KilledAt(killed_at))
    left = tmp_path / "checkpoints" / "fine_tuning" / NAME
    assert newest_step(left) == (killed_at - 1) // 3 * 3
    assert not (tmp_path / "fine_tuning").exists()
    rest = Count()
    world.fine_tuned(tmp_path, monitor=rest)
    assert rest.steps == 9 - (killed_at - 1) // 3 * 3
    assert files(tmp_path) == whole


def test_killed_by_a_signal_it_ends_with_the_same_bytes(world: World, whole: dict[str, bytes], tmp_path: Path) -> None:
    root = world.snapshot.folder.parents[1]
    command = [sys.executable, "-m", "tests.stages.fine_tuning_world", str(root), str(tmp_path), "5"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    died = subprocess.run(command, env=environment, cwd=REPOSITORY, check=False, capture_output=True, timeout=120)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert newest_step(tmp_path / "checkpoints" / "fine_tuning" / NAME) == 3
    world.fine_tuned(tmp_path)
    assert files(tmp_path) == whole


def test_workers_change_no_byte(world: World, whole: dict[str, bytes], tmp_path: Path) -> None:
    world.fine_tuned(tmp_path, config(num_workers=2))
    assert files(tmp_path) == whole


def test_computing_activations_again_changes_no_byte(world: World, whole: dict[str, bytes], tmp_path: Path) -> None:
    world.fine_tuned(tmp_path, config(activation_checkpointing="full"))
    assert files(tmp_path) == whole


def test_another_seed_is_another_training(world: World, whole: dict[str, bytes], tmp_path: Path) -> None:
    world.fine_tuned(tmp_path, seed=1)
    assert files(tmp_path).keys() == whole.keys()
    assert files(tmp_path) != whole


def test_the_encoder_that_is_given_is_left_alone(world: World, tmp_path: Path) -> None:
    given = encoder()
    fine_tuning.fine_tuned(
        config(),
        world.lesson(),
        encoder=given,
        geometry=GEOMETRY,
        frames=world.frames,
        folder=tmp_path,
        seed=0,
        monitor=Silent(),
    )
    assert all(torch.equal(*pair) for pair in zip(given.parameters(), encoder().parameters(), strict=True))


def test_what_was_published_is_found_again_and_the_checkpoints_are_gone(world: World, tmp_path: Path) -> None:
    first = world.fine_tuned(tmp_path)
    assert not (tmp_path / "checkpoints" / "fine_tuning" / NAME).exists()
    again, left = Count(), tmp_path / "checkpoints" / "fine_tuning" / NAME / "checkpoints"
    left.mkdir(parents=True)  # of a run that was killed before it removed them
    found = world.fine_tuned(tmp_path, monitor=again)
    assert again.steps == 0
    assert np.array_equal(found["colour"], first["colour"])
    assert not left.exists()


def test_measures_are_told_apart_by_unit(world: World, tmp_path: Path) -> None:
    said = Count()
    world.fine_tuned(tmp_path, lesson=world.lesson(unit_name("a b", "pretrained", split=3, seed=1)), monitor=said)
    assert "a:20b-pretrained-03-1/loss" in said.names


# Damage.


def test_a_damaged_checkpoint_is_passed_over_and_the_bytes_stay(
    world: World, whole: dict[str, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        world.fine_tuned(tmp_path, monitor=KilledAt(8))
    newest = tmp_path / "checkpoints" / "fine_tuning" / NAME / "checkpoints" / "step-00000006" / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    rest = Count()
    world.fine_tuned(tmp_path, monitor=rest)
    assert "damaged, set aside" in caplog.text
    assert rest.steps == 6
    assert files(tmp_path) == whole


def test_a_checkpoint_of_another_network_is_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        world.fine_tuned(tmp_path, monitor=KilledAt(8))
    with pytest.raises(ArtifactDamaged, match="does not fit this training"):
        world.fine_tuned(tmp_path, config(pooling="class_attention"))


def test_a_damaged_answer_is_refused(world: World, tmp_path: Path) -> None:
    world.fine_tuned(tmp_path)
    path = tmp_path / "fine_tuning" / f"{NAME}.safetensors"
    whole = path.read_bytes()
    for damaged, said in ((whole[:-1] + bytes([whole[-1] ^ 1]), "sha256"), (whole[:40], "not a whole file")):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactDamaged, match=f"{said}.*delete it"):
            world.fine_tuned(tmp_path)
    path.write_bytes(whole)
    world.fine_tuned(tmp_path)


@pytest.mark.parametrize("other", ["config", "truth", "seed", "clips"])
def test_an_answer_to_something_else_is_refused(world: World, tmp_path: Path, other: str) -> None:
    world.fine_tuned(tmp_path)
    flipped = Asked("colour", one_hot(1 - np.arange(NUM_TRAIN) % 2))
    changes: dict[str, dict[str, Any]] = {
        "config": {"settings": config(drop_path=0.2)},
        "truth": {"lesson": world.lesson(asked=(flipped,))},
        "seed": {"seed": 5},
        "clips": {"lesson": world.lesson(test=world.clips[NUM_TRAIN - 1 :])},
    }
    with pytest.raises(ArtifactDamaged, match="made of other clips, labels or settings"):
        world.fine_tuned(tmp_path, **changes[other])


def test_lessons_that_make_no_sense_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot name files"):
        world.fine_tuned(tmp_path, lesson=world.lesson("../colour"))
    with pytest.raises(ConfigError, match="nothing is asked"):
        world.fine_tuned(tmp_path, lesson=world.lesson(asked=()))
    with pytest.raises(ConfigError, match="6 clips teach 'colour' and 2 rows of truth are given"):
        world.fine_tuned(tmp_path, lesson=world.lesson(asked=(Asked("colour", np.eye(2, dtype=bool)),)))


# Ranks.


def test_ranks_give_the_same_bytes_in_the_deterministic_mode(world: World, tmp_path: Path) -> None:
    exact = {"deterministic": True, "num_steps": 3}
    world.fine_tuned(tmp_path / "one", config(exact))
    world.fine_tuned(tmp_path / "two", config(exact, num_ranks=2))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert checkpoints.newest_step(tmp_path / "two") == 0
