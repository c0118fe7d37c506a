"""The loop that both trainings share: AdamW, warm-up and cosine, checkpoints, and a resume that changes no number.

A training has one network or several that play against each other, each with an optimizer of its own. All state is in the
checkpoint: parameters, buffers, moments, averages, curves and the digest of all samples seen; no generator has any.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.config import Config
from stages.batches import Loader, Stream, batches
from stages.device import Precision, autocast, device, warn_of_imitation
from stages.errors import ArtifactDamaged, TrainingDiverged
from stages.progress import Monitor
from stages.storage import checkpoints
from stages.storage.artifact import CHECKPOINTS
from stages.storage.checkpoints import Checkpoint
from stages.storage.publish import sha256_bytes

_log = logging.getLogger(__name__)


class Optimization(Config):
    """How a training steps."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"checkpoint_every_steps"})

    num_steps: int | None = Field(default=None, gt=0)
    """Optimizer steps in all; or give ``num_epochs``."""
    num_epochs: int | None = Field(default=None, gt=0)
    """Passes over the clips; or give ``num_steps``."""
    batch_clips: int = Field(gt=0)
    """Clips (tokenizer: windows) per step, over all devices."""
    learning_rate: float = Field(gt=0)
    """Peak rate, reached at the end of the warm-up."""
    min_learning_rate: float = 1e-5
    """Rate at the last step of the cosine."""
    warmup_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of all steps that warms up linearly from zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay rates of the first and second moment."""
    weight_decay: float = 0.05
    """AdamW's decoupled decay; not applied to biases, norms and single vectors."""
    clip_grad_norm: float | None = None
    """Largest global gradient norm, per network; ``None``: unclipped."""
    accumulation_steps: int = Field(default=1, gt=0)
    """Equal parts into which a batch is cut, one after the other through the networks; bounds the memory."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the exponential moving average of the parameters, which is then what is published; ``None``: none."""
    precision: Precision = "fp32"
    """Of matrix products and convolutions; parameters and losses stay in fp32. bf16 is for devices that have it."""
    log_every_steps: int = 10
    """Steps over which reported measurements are averaged."""
    checkpoint_every_steps: int = 200
    """Steps between checkpoints: what a killed run loses at most."""

    @model_validator(mode="after")
    def _checkpoints_fall_on_reports(self) -> Self:
        if self.checkpoint_every_steps % self.log_every_steps:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} must be a multiple of log_every_steps "
                f"{self.log_every_steps}, or a resumed run would average other steps"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_equal(self) -> Self:
        if self.batch_clips % self.accumulation_steps:
            raise ValueError(
                f"batch_clips {self.batch_clips} does not divide into accumulation_steps {self.accumulation_steps}"
            )
        return self

    @model_validator(mode="after")
    def _has_one_duration(self) -> Self:
        if (self.num_steps is None) == (self.num_epochs is None):
            raise ValueError(f"give exactly one of num_steps ({self.num_steps}) and num_epochs ({self.num_epochs})")
        return self

    def total_steps(self, num_clips: int) -> int:
        """Optimizer steps in all, for epochs of ``num_clips`` clips."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.num_epochs is not None  # the validator saw to it
        return max(1, self.num_epochs * num_clips // self.batch_clips)

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup_steps = int(self.warmup_share * total_steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + math.cos(math.pi * share)) / 2


Batch = dict[str, Tensor]
Losses = dict[str, Tensor]

SAMPLE = "sample"
"""The key of a batch under which every sample says what it is, such as ``<clip_id> <epoch>``; seen by no network."""


class Moment(NamedTuple):
    """When losses are asked for."""

    step: int
    """Optimizer steps done before."""
    part: int
    """Which part of the accumulated batch, from 0."""


class Batches(Protocol):
    """The batches from a step on."""

    def __call__(self, *, first_step: int) -> Iterator[dict[str, Any]]:
        """The batch of ``first_step``, then of every later one; beside tensors, ``SAMPLE`` names its samples."""


class Player:
    """One network of a training, its optimizer, and the moving average of its parameters if there is one.

    Args:
        module: whose parameters are trained.
        optimization: how.
    """

    def __init__(self, module: nn.Module, optimization: Optimization) -> None:
        self.module = module
        self.optimization = optimization
        self.optimizer = _adamw(module, optimization)
        decay = optimization.ema_decay
        following: Any = get_ema_multi_avg_fn(decay) if decay else None  # type: ignore[no-untyped-call]
        self.average = AveragedModel(module, multi_avg_fn=following) if decay else None
        self.num_updates = 0

    @property
    def trained(self) -> nn.Module:
        """What the training came to: the average if there is one."""
        return self.module if self.average is None else self.average.module

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [value for value in self.module.parameters() if value.requires_grad]

    def update(self, rate: float) -> Tensor:
        """Step along the gradients that are there; their norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        limit = self.optimization.clip_grad_norm
        norm = nn.utils.clip_grad_norm_(self.parameters(), math.inf if limit is None else limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.module)
        self.num_updates += 1
        return norm.detach()

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resume needs."""
        tensors = {f"module/{name}": value for name, value in self.module.state_dict().items()}
        for name, parameter in self.module.named_parameters():
            tensors |= {f"optimizer/{name}/{key}": value for key, value in self.optimizer.state[parameter].items()}
        average = {} if self.average is None else self.average.state_dict()
        return tensors | {f"average/{name}": value for name, value in average.items()}

    def restore(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Take over the state that was saved after ``num_updates`` updates.

        Raises:
            RuntimeError: it is not the state of this network and optimizer.
        """
        self.module.load_state_dict(_below(tensors, "module/"))
        if self.average is not None:
            self.average.load_state_dict(_below(tensors, "average/"))
        for name, parameter in self.module.named_parameters():
            state = _below(tensors, f"optimizer/{name}/")
            if set(state) != ({"step", "exp_avg", "exp_avg_sq"} if num_updates and parameter.requires_grad else set()):
                raise RuntimeError(f"the optimizer's state of {name} after {num_updates} updates is {sorted(state)}")
            if state:
                self.optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
        self.num_updates = num_updates


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training stage brings to the loop.

    Args:
        players: the networks by name; the first one's measures are reported without its name before them.
        losses: measures of a part of a batch, by the player that they train; its ``loss`` is minimised, the others are
            reported. A player that is not named is not trained in this step.
        batches: the batches from a step on.
        optimization: how long, how often to report and to save, at which rate.
        total_steps: how often.
        label: what the progress bar calls it.
    """

    players: Mapping[str, Player]
    losses: Callable[[Batch, Moment], Mapping[str, Losses]]
    batches: Batches
    optimization: Optimization
    total_steps: int
    label: str
    judge: Callable[[], Mapping[str, float]] | None = None
    """Measures the networks as they are; its measures join the row of a step. It must leave no trace in them."""
    judge_every_steps: int | None = None
    """Steps between judgements, a multiple of ``log_every_steps``; ``None``: none."""


class Course(NamedTuple):
    """What a training left beside its networks, the same whether or not it was interrupted."""

    history: list[dict[str, float]]
    """One row per ``log_every_steps``: ``step`` and the mean of every measure."""
    sample_digest: str
    """sha256 over the names of all samples in the order in which they were trained on."""


def on_stream(
    stream: Stream,
    players: Mapping[str, Player],
    losses: Callable[[Batch, Moment], Mapping[str, Losses]],
    *,
    optimization: Optimization,
    num_workers: int,
    label: str,
    judge: Callable[[], Mapping[str, float]] | None = None,
    judge_every_steps: int | None = None,
) -> Training:
    """The training of networks on the clips of a stream, for as many steps as ``optimization`` makes of them."""
    total_steps = optimization.total_steps(stream.num_clips)
    following = functools.partial(
        batches, stream, batch_clips=optimization.batch_clips, last_step=total_steps, num_workers=num_workers
    )
    return Training(players, losses, following, optimization, total_steps, label, judge, judge_every_steps)


def train(training: Training, *, folder: Path, monitor: Monitor) -> Course:
    """Train the players in place, from the newest checkpoint if there is one.

    Args:
        training: the networks, their losses and their batches.
        folder: the artifact's folder, which holds the checkpoints.
        monitor: told of every step.

    Raises:
        TrainingDiverged: a loss or gradient is not finite.
        ArtifactDamaged: the newest whole checkpoint is not one of this training.
    """
    config = training.optimization
    warn_of_imitation(device(), config.precision, f"{training.label}.optimization.precision")
    first_step, (history, digest) = _resume(training, folder)
    monitor.begin(training.label, total=training.total_steps, done=first_step)
    pending: list[Losses] = []
    following = Loader(training.batches(first_step=first_step))
    for step in range(first_step, training.total_steps):
        batch = next(following)
        digest = sha256_bytes("\n".join([digest, *batch.pop(SAMPLE)]).encode())
        pending.append(_step(training, batch, step))
        monitor.advance()
        if (step + 1) % config.log_every_steps == 0 or step + 1 == training.total_steps:
            history.append({**_mean(pending, step + 1), **_judged(training, step + 1)})
            measured = {name: value for name, value in history[-1].items() if name != "step"}
            monitor.log(step + 1, {**measured, "data_wait_share": following.wait_share})  # a time: no part of the history
            pending = []
        if (step + 1) % config.checkpoint_every_steps == 0:
            checkpoints.save(folder, _checkpoint(training, step + 1, Course(history, digest)))
    return Course(history, digest)


def _step(training: Training, batch: Mapping[str, Tensor], step: int) -> Losses:
    config, found = training.optimization, []
    for number, part in enumerate(_parts(batch, config.accumulation_steps)):
        moved = {name: value.to(device(), non_blocking=True) for name, value in part.items()}
        with autocast(device(), config.precision):
            losses = training.losses(moved, Moment(step, number))
        for name, measures in losses.items():
            # Only this player's parameters: those of an opponent are passed through.
            wanted = training.players[name].parameters()
            torch.autograd.backward(measures["loss"] / config.accumulation_steps, inputs=wanted)
        found.append({_spelled(training, name, key): value for name in losses for key, value in losses[name].items()})
    rate = config.rate(step, training.total_steps) / config.learning_rate
    for name in losses:
        player = training.players[name]
        found[-1][_spelled(training, name, "grad_norm")] = player.update(rate * player.optimization.learning_rate)
    return _means(found)


def _judged(training: Training, step: int) -> Mapping[str, float]:
    every = training.judge_every_steps
    return training.judge() if training.judge and every and step % every == 0 else {}


def _parts(batch: Mapping[str, Tensor], count: int) -> Iterator[Batch]:
    for index in range(count):
        yield {name: value.chunk(count)[index] for name, value in batch.items()}


def _spelled(training: Training, player: str, measure: str) -> str:
    return measure if player == next(iter(training.players)) else f"{player}_{measure}"


def _means(found: Sequence[Losses]) -> Losses:
    """The mean of every measure over those that have it."""
    names = dict.fromkeys(name for losses in found for name in losses)
    return {name: torch.stack([losses[name].detach().float() for losses in found if name in losses]).mean() for name in names}


def _mean(pending: list[Losses], step: int) -> dict[str, float]:
    means = {name: float(value) for name, value in _means(pending).items()}
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise TrainingDiverged(
            f"{', '.join(broken)} stopped being finite in the {len(pending)} steps before step {step}; lower learning_rate or "
            "set clip_grad_norm, then run again: it continues from the last checkpoint before"
        )
    return {"step": step, **means}


def _adamw(module: nn.Module, config: Optimization) -> torch.optim.AdamW:
    named = [(name, value) for name, value in module.named_parameters() if value.requires_grad]
    decayed = [value for _, value in named if value.ndim > 1]
    plain = [value for _, value in named if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _checkpoint(training: Training, step: int, course: Course) -> Checkpoint:
    players = training.players.items()
    tensors = {f"{name}/{key}": value for name, player in players for key, value in player.state().items()}
    updates = {name: player.num_updates for name, player in players}
    values = {"history": course.history, "sample_digest": course.sample_digest, "num_updates": updates}
    return Checkpoint(step=step, tensors=tensors, values=values)


def _resume(training: Training, folder: Path) -> tuple[int, Course]:
    found = checkpoints.load_newest(folder)
    if found is None:
        return 0, Course([], "")
    _log.info("resume=%s step=%d", folder, found.step)
    try:
        for name, player in training.players.items():
            player.restore(_below(found.tensors, f"{name}/"), found.values["num_updates"][name])
        return found.step, Course(list(found.values["history"]), found.values["sample_digest"])
    except (KeyError, RuntimeError) as error:
        raise ArtifactDamaged(
            f"{folder}: its checkpoint of step {found.step} does not fit this training ({error}); delete "
            f"{folder / CHECKPOINTS} to begin anew"
        ) from error


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
