"""Fine-tuning: the encoder learns one split of a question, or of several asked together, and answers for the tested clips.

A unit is one ``Lesson``: which clips teach, what they show, which clips are tested. Whoever evaluates makes one per label (or
pair such as verb and noun), kind of encoder, split and seed::

    lesson = Lesson(
        name=unit_name(question.label, "pretrained", split=0, seed=seed),
        train=[question.clips[row] for row in split.train],
        test=[question.clips[row] for row in split.test],
        asked=(Asked(question.label, question.truth[split.train], is_exclusive=not question.asking.is_multi_label),),
        views={clip.clip_id: [view_0] for clip in question.clips},
    )
    found = fine_tuned(
        config, lesson, encoder=encoder, geometry=geometry, frames=frames, folder=folder, seed=seed, monitor=monitor
    )
    found[question.label]  # float32 [n_test, n_classes], probabilities in the order of ``test``

The unit's answer is published as ``fine_tuning/<name>.safetensors`` with its curves in ``<name>.json`` beside it, and found
there by the next run. The training has checkpoints of its own below the artifact's ``checkpoints``, so that a killed one is
continued to the same bytes; they are removed once the answer is published.

Every sample sees a clip at a time, a place and with operations drawn for (seed, epoch, clip, repeat). A clip that is shorter
than the view is trained on by its recorded slots alone: the others are there to fill the batch and masked in attention and
pooling, which is exactly as if they were not there. Tests see all tokens of the recorded slots and no others.
"""

import copy
import dataclasses
import functools
import itertools
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models.augmentation import RandAugment
from models.classifier import Classifier, drop_path, seen_slots
from models.config import Config as BaseConfig
from models.extension import extension
from models.grid import gather_tokens, patchify
from models.mixing import Mixing, draw_mix, mixed, mixed_labels, smoothed
from models.pooling import PoolingConfig, mean
from models.vit import Encoder
from stages.augmented import Augmented, Seen, num_slots
from stages.batches import ClipFrames, Sample, Stream, in_order
from stages.device import autocast, device
from stages.draws import generator
from stages.errors import ConfigError
from stages.networks import Geometry
from stages.optimization import Optimization, layer_scales
from stages.player import Player
from stages.progress import Monitor, Silent
from stages.ranks import ALONE, Ranks
from stages.storage import probabilities as store
from stages.storage.artifact import CHECKPOINTS, byte_config
from stages.storage.index import Clip
from stages.storage.probabilities import Probabilities
from stages.storage.publish import canonical_json, publish_bytes, sha256_bytes
from stages.together import together
from stages.training import Losses, Moment, on_stream, train
from stages.views import View, cut

FOLDER = "fine_tuning"
"""Where the answers lie below an evaluation, and the checkpoints below its checkpoints."""

_PLAYER = "classifier"


class Schedule(Optimization):
    """How fine-tuning steps; what is not given is VideoMAE's, arXiv 2203.12602, for a batch of 32.

    The hyper-parameters of arXiv 2411.13683 are not known; these stand in for them.
    """

    batch_clips: int = Field(default=32, gt=0)
    """Samples per step, over all devices; every clip is ``repeats`` of them. Our choice."""
    learning_rate: float = Field(default=6.25e-5, gt=0)
    """Peak rate of the last layer: 5e-4 for a batch of 256, and as much less as the batch is smaller."""
    min_learning_rate: float = 1e-6
    """Rate at the last step of the cosine. Source: the ObjectViViT recipe of Scenic."""
    warmup_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all steps that warms up linearly from zero: 5 of 50 epochs."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the first and second moment."""


class Config(BaseConfig):
    """How the encoder is fine-tuned. Defaults whose source is not named are VideoMAE's, arXiv 2203.12602."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_ranks", "num_workers", "activation_checkpointing"})

    optimization: Schedule = Schedule(num_epochs=50)
    """Steps, rates, batch. Source of the epochs: arXiv 2411.13683 for ViT-L on Diving48; 200 is inferred for ViT-B."""
    layer_decay: float | None = Field(default=0.75, gt=0, le=1)
    """What the learning rate is multiplied with from each layer to the one before it; ``None``: the same rate everywhere."""
    pooling: extension("models.pooling", PoolingConfig) = mean.Config()
    """From tokens to one vector."""
    token_drop: float = Field(default=0.2, ge=0, lt=1)
    """Share of the tubes that the encoder does not see in training. Source: arXiv 2411.13683: 0.2 at 128 frames, 0 at 32 and
    64, 0.25 for ViT-L."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Share of the last block's branches that are left out in training; it falls linearly to 0 in the first block."""
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    """Share of a label that is spread over all classes; not where a clip may show several."""
    mixing: Mixing = Mixing()
    """Mixup and cutmix."""
    rand_augment: RandAugment | None = RandAugment()
    """Random operations, the same on all frames; ``None``: none."""
    erasing: float = Field(default=0.25, ge=0, le=1)
    """Share of samples of which a box is erased in all frames."""
    flip_share: float = Field(default=0.0, ge=0, le=1)
    """Share of samples that are mirrored. Our choice: classes may tell left from right; VideoMAE takes 0.5 but for
    Something-Something, whose classes do."""
    repeats: int = Field(default=2, gt=0)
    """Samples in a row of every decoded clip, each augmented by itself. Source: arXiv 1901.09335; VideoMAE takes 2."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of trainings whose answers are reported together. Source: arXiv 2411.13683 takes the mean of 3."""
    test_batch_clips: int = Field(default=8, gt=0)
    """Views per forward pass in the test; bounds the memory."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """Whether blocks keep their input alone and compute the rest again in the backward pass: less memory, more time."""
    num_ranks: int = Field(default=1, gt=0)
    """Processes of this machine that train together, one per GPU; ``optimization.accumulation_steps`` is a multiple of it."""
    num_workers: int = Field(default=0, ge=0)
    """Processes per rank that decode and augment; 0 does it in the training process."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A label that is learned.

    Args:
        label: its name.
        truth: whether each clip that teaches shows each class, ``[n_train, n_classes]``.
        is_exclusive: whether a clip shows one class: then softmax and cross-entropy, else sigmoid and binary cross-entropy.
    """

    label: str
    truth: npt.NDArray[np.bool_]
    is_exclusive: bool = True

    @property
    def num_classes(self) -> int:
        """Classes to choose from."""
        return int(self.truth.shape[1])


@dataclasses.dataclass(frozen=True)
class Lesson:
    """One unit of work.

    Args:
        name: tells it from the others of an evaluation and names its files, see :func:`unit_name`.
        train: the clips that teach.
        test: those that are tested.
        asked: what is learned; several share encoder and pooling and have a layer each, and their losses are added.
        views: of every tested clip, by its id, the views over which its probabilities are averaged.
    """

    name: str
    train: Sequence[Clip]
    test: Sequence[Clip]
    asked: tuple[Asked, ...]
    views: Mapping[str, Sequence[View]]


class Task(NamedTuple):
    """What a unit is made with, beside its lesson."""

    config: Config
    geometry: Geometry
    frames: ClipFrames
    seed: int

    def augmented(self) -> Augmented:
        """How its samples are made."""
        config = self.config
        return Augmented(
            frames=self.frames,
            geometry=self.geometry,
            seed=self.seed,
            token_drop=config.token_drop,
            rand_augment=config.rand_augment,
            erasing=config.erasing,
            flip_share=config.flip_share,
        )


def unit_name(label: str, features: str, *, split: int, seed: int) -> str:
    """The name of a unit, which is a file's name whatever the label is called."""
    return f"{quote(label, safe='')}-{quote(features, safe='')}-{split:02d}-{seed}"


def fine_tuned(
    config: Config,
    lesson: Lesson,
    *,
    encoder: Encoder,
    geometry: Geometry,
    frames: ClipFrames,
    folder: Path,
    seed: int,
    monitor: Monitor,
) -> dict[str, Probabilities]:
    """By label the probabilities of the tested clips' classes, ``float32 [n_test, n_classes]``; trained unless they are there.

    Args:
        config: how to train.
        lesson: what to learn and to answer.
        encoder: what to begin with; it is copied.
        geometry: what it was made for.
        frames: decodes clips.
        folder: the evaluation's.
        seed: of the first weights of what follows the encoder, of order, augmentation and everything else that is drawn.
        monitor: told of every step.

    Raises:
        ConfigError: the lesson's name is no file's name, or a row of truth is missing.
        ArtifactDamaged: the answer that is there is damaged or one to another lesson.
        TrainingDiverged: step after step was refused.
    """
    _check(lesson)
    task = Task(config, geometry, frames, seed)
    path, checkpoints = folder / FOLDER / f"{lesson.name}.safetensors", folder / CHECKPOINTS / FOLDER / lesson.name
    identity = _identity(task, lesson)
    found = store.find(path, identity=identity)
    if found is None:
        given = copy.deepcopy(encoder).cpu()  # processes are not handed what lies on a GPU
        learn = functools.partial(_learn, task, lesson, given, path, checkpoints)
        if config.num_ranks == 1:
            learn(ALONE, monitor)
        else:
            together(learn, num_ranks=config.num_ranks, monitor=monitor)
        found = store.find(path, identity=identity)
    shutil.rmtree(checkpoints, ignore_errors=True)
    assert found is not None  # it was published
    return found


def _check(lesson: Lesson) -> None:
    if not re.fullmatch(r"[\w%.~-]+", lesson.name, flags=re.ASCII) or lesson.name.startswith("."):
        raise ConfigError(f"fine-tuning: {lesson.name!r} cannot name files; make it with unit_name")
    if not lesson.asked:
        raise ConfigError(f"fine-tuning {lesson.name}: nothing is asked")
    for one in lesson.asked:
        if len(one.truth) != len(lesson.train):
            raise ConfigError(
                f"fine-tuning {lesson.name}: {len(lesson.train)} clips teach {one.label!r} and {len(one.truth)} rows of "
                "truth are given; give one row per clip"
            )


def _identity(task: Task, lesson: Lesson) -> str:
    """Digest of all that an answer follows from, but for the encoder's weights, which are the evaluation's."""
    views = {clip.clip_id: [view.row() for view in lesson.views[clip.clip_id]] for clip in lesson.test}
    asked = [
        [one.label, one.is_exclusive, one.num_classes, sha256_bytes(np.ascontiguousarray(one.truth).tobytes())]
        for one in lesson.asked
    ]
    clips = [[clip.clip_id for clip in part] for part in (lesson.train, lesson.test)]
    plain = {"config": byte_config(task.config), "seed": task.seed, "clips": clips, "views": views, "questions": asked}
    return sha256_bytes(canonical_json(plain))


def _learn(task: Task, lesson: Lesson, encoder: Encoder, path: Path, checkpoints: Path, ranks: Ranks, monitor: Monitor) -> None:
    """One rank's part of a unit; the first one publishes."""
    config, module = task.config, _untrained(task, lesson, encoder)
    scales = None if config.layer_decay is None else layer_scales(module.layers(), config.layer_decay)
    player = Player(module, config.optimization, scales)
    training = on_stream(
        _stream(task, lesson),
        {_PLAYER: player},
        functools.partial(_losses, task, module, lesson),
        optimization=config.optimization,
        num_workers=config.num_workers,
        label="fine-tuning",
        ranks=ranks,
    )
    course = train(training, folder=checkpoints, monitor=_OfUnit(monitor, lesson.name))
    if ranks.is_first:
        trained = player.trained
        assert isinstance(trained, Classifier)
        found = predicted(task, trained, lesson)
        publish_bytes(path.with_suffix(".json"), canonical_json(course._asdict()))
        store.write(path, found, identity=_identity(task, lesson))


def _untrained(task: Task, lesson: Lesson, encoder: Encoder) -> Classifier:
    own = copy.deepcopy(encoder)  # what processes are handed lies in memory that they share
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        module = Classifier(own, task.config.pooling, [one.num_classes for one in lesson.asked])
    module.encoder.blocks.is_recomputed = task.config.activation_checkpointing == "full"
    return module.requires_grad_(True).to(device())


class _OfUnit(Silent):
    """A monitor that tells the measures of one unit from those of the others."""

    def __init__(self, monitor: Monitor, name: str) -> None:
        self._monitor, self._name = monitor, name

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Pass it on, with the unit's name."""
        self._monitor.begin(f"{label} {self._name}", total=total, done=done)

    def advance(self, amount: int = 1) -> None:
        """Pass it on."""
        self._monitor.advance(amount)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on below the unit's name."""
        spelled = self._name.replace("%", ":")  # MLflow takes no other sign for what quoting made of a label
        self._monitor.log(step, {f"{spelled}/{name}": value for name, value in values.items()})


def _stream(task: Task, lesson: Lesson) -> Stream:
    rows = {clip.clip_id: row for row, clip in enumerate(lesson.train)}

    def seen(clip: Clip, epoch: int, repeat: int) -> Seen:
        row = rows[clip.clip_id]
        return Seen(repeat, tuple(torch.from_numpy(one.truth[row]).float() for one in lesson.asked))

    return Stream(lesson.train, task.seed, task.augmented().sample, attach=seen, repeats=task.config.repeats)


# Losses.


def _losses(
    task: Task, module: Classifier, lesson: Lesson, batch: Mapping[str, Tensor], moment: Moment
) -> Mapping[str, Losses]:
    """The sum of the errors in all that is asked, of a batch mixed and robbed of branches as drawn for (step, part)."""
    config, grid = task.config, task.geometry.grid
    clips, positions, num_seen = batch["clip"].float() / 255, batch["positions"], batch["num_slots"]
    truths = [batch[f"truth_{number}"] for number in range(len(lesson.asked))]
    height, width = clips.shape[3:]
    mix = draw_mix(config.mixing, height=height, width=width, generator=generator(task.seed, "mix", *moment))
    if mix:
        clips, truths = mixed(clips, mix), [mixed_labels(truth, mix) for truth in truths]
        num_seen = torch.maximum(num_seen, num_seen.flip(0))  # the shorter clip goes on, looped, beside the longer one
    is_short = any(clip.num_frames < task.geometry.views.num_frames for clip in lesson.train)
    source, depth = generator(task.seed, "drop path", *moment), len(module.encoder.blocks)
    scales = drop_path(depth, config.drop_path, len(clips), source)
    scores = module(
        gather_tokens(patchify(clips, task.geometry.model.patching), positions),
        positions,
        exists=seen_slots(positions, grid.slot_tokens, num_seen) if is_short else None,
        branch_scales=None if scales is None else scales.to(clips.device, non_blocking=True),
    )
    told = zip(scores, truths, lesson.asked, strict=True)
    return {_PLAYER: {"loss": torch.stack([_error(*one, config.label_smoothing) for one in told]).sum()}}


def _error(scores: Tensor, truth: Tensor, asked: Asked, label_smoothing: float) -> Tensor:
    if not asked.is_exclusive:
        return functional.binary_cross_entropy_with_logits(scores, truth)
    wanted = smoothed(truth, label_smoothing)
    return -(wanted * scores.log_softmax(dim=1)).sum(dim=1).mean()


# The test.


class _Look(NamedTuple):
    """One view of a tested clip."""

    row: int
    """Which tested clip."""
    clip: Clip
    view: View
    num_slots: int


@torch.no_grad()
def predicted(task: Task, module: Classifier, lesson: Lesson) -> dict[str, Probabilities]:
    """By label the mean probabilities over the views of every tested clip, all tokens of recorded slots visible."""
    looks = [
        _Look(row, clip, view, num_slots(task.geometry, view.num_real_frames))
        for row, clip in enumerate(lesson.test)
        for view in lesson.views[clip.clip_id]
    ]
    looks.sort(key=lambda look: look.num_slots)
    totals = {one.label: np.zeros((len(lesson.test), one.num_classes), np.float64) for one in lesson.asked}
    pixels = in_order(functools.partial(_pixels, task), looks, num_workers=task.config.num_workers)
    module.eval()
    for batch in _equal_batches(looks, task.config.test_batch_clips):
        clips = torch.stack([next(pixels)["clip"] for _ in batch]).to(device())
        for one, scores in zip(lesson.asked, _scores(task, module, clips), strict=True):
            chances = scores.softmax(dim=1) if one.is_exclusive else scores.sigmoid()
            for look, row in zip(batch, chances.cpu().numpy(), strict=True):
                totals[one.label][look.row] += row
    num_views = np.array([len(lesson.views[clip.clip_id]) for clip in lesson.test])[:, None]
    return {label: (total / num_views).astype(np.float32) for label, total in totals.items()}


def _equal_batches(looks: Sequence[_Look], size: int) -> Iterator[Sequence[_Look]]:
    """Views of equal length together; they are sorted by it."""
    for _, same in itertools.groupby(looks, key=lambda look: look.num_slots):
        alike = list(same)
        yield from (alike[first : first + size] for first in range(0, len(alike), size))


def _pixels(task: Task, look: _Look) -> Sample:
    """The recorded slots of a view, ``uint8 [C T H W]``."""
    frames = cut(task.frames, look.clip, look.view, look.num_slots * task.geometry.model.patching.tubelet_frames)
    return {"clip": torch.from_numpy(rearrange(frames, "T H W C -> C T H W").copy())}


def _scores(task: Task, module: Classifier, clips: Tensor) -> tuple[Tensor, ...]:
    """Per question the scores of clips of equal length, ``uint8 [B C T H W]``."""
    patches = patchify(clips.float() / 255, task.geometry.model.patching)
    positions = torch.arange(patches.shape[1], device=patches.device).expand(len(patches), -1)
    with autocast(patches.device, task.config.optimization.precision):
        scores: tuple[Tensor, ...] = module(patches, positions)
    return scores
