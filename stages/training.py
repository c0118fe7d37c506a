"""The loop that both trainings share: AdamW, warm-up and cosine, checkpoints, and a resume that changes no number."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from models.config import Config
from stages.batches import Loader, Stream, batches
from stages.errors import TrainingDiverged
from stages.progress import Monitor
from stages.storage import checkpoints
from stages.storage.checkpoints import Checkpoint

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
    """Largest global gradient norm; ``None``: unclipped."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of matrix products and convolutions; parameters and losses stay in fp32."""
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


class Batches(Protocol):
    """The batches from a step on."""

    def __call__(self, *, first_step: int) -> Iterator[Batch]:
        """The batch of ``first_step``, then of every later one."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a training stage brings to the loop.

    Args:
        module: whose parameters are trained.
        losses: measures of a batch; ``loss`` is minimised, the others are reported.
        batches: the batches from a step on.
        optimization: how to step.
        total_steps: how often.
        label: what the progress bar calls it.
    """

    module: nn.Module
    losses: Callable[[Batch], Losses]
    batches: Batches
    optimization: Optimization
    total_steps: int
    label: str


def on_stream(
    stream: Stream,
    module: nn.Module,
    losses: Callable[[Batch], Losses],
    *,
    optimization: Optimization,
    num_workers: int,
    label: str,
) -> Training:
    """The training of a module on the clips of a stream, for as many steps as ``optimization`` makes of them."""
    total_steps = optimization.total_steps(stream.num_clips)
    following = functools.partial(
        batches, stream, batch_clips=optimization.batch_clips, last_step=total_steps, num_workers=num_workers
    )
    return Training(module, losses, following, optimization, total_steps, label)


def train(training: Training, *, folder: Path, monitor: Monitor) -> list[dict[str, float]]:
    """Train ``training.module`` in place, from its newest checkpoint if there is one.

    Args:
        training: the module, its losses and its batches.
        folder: the artifact's folder, which holds the checkpoints.
        monitor: told of every step.

    Returns:
        One row per ``log_every_steps``: ``step`` and the mean of every measure, the same whether or not it was interrupted.

    Raises:
        TrainingDiverged: a loss or gradient is not finite.
    """
    config = training.optimization
    optimizer = _adamw(training.module, config)
    first_step, history = _resume(training.module, optimizer, folder)
    monitor.begin(training.label, total=training.total_steps, done=first_step)
    pending: list[Losses] = []
    following = Loader(training.batches(first_step=first_step))
    for step in range(first_step, training.total_steps):
        pending.append(_step(training, optimizer, next(following), step))
        monitor.advance()
        if (step + 1) % config.log_every_steps == 0 or step + 1 == training.total_steps:
            history.append(_mean(pending, step + 1))
            measured = {name: value for name, value in history[-1].items() if name != "step"}
            monitor.log(step + 1, {**measured, "data_wait_share": following.wait_share})  # a time: no part of the history
            pending = []
        if (step + 1) % config.checkpoint_every_steps == 0:
            checkpoints.save(folder, _checkpoint(training.module, optimizer, step + 1, history))
    return history


def device() -> torch.device:
    """Where to compute: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _step(training: Training, optimizer: torch.optim.AdamW, batch: Batch, step: int) -> Losses:
    config = training.optimization
    for group in optimizer.param_groups:
        group["lr"] = config.rate(step, training.total_steps)
    moved = {name: value.to(device(), non_blocking=True) for name, value in batch.items()}
    with torch.autocast(device().type, dtype=torch.bfloat16, enabled=config.precision == "bf16"):
        losses = training.losses(moved)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(losses["loss"])
    limit = math.inf if config.clip_grad_norm is None else config.clip_grad_norm
    norm = nn.utils.clip_grad_norm_(training.module.parameters(), limit)
    optimizer.step()
    return {**{name: value.detach() for name, value in losses.items()}, "grad_norm": norm.detach()}


def _mean(pending: list[Losses], step: int) -> dict[str, float]:
    means = {name: float(torch.stack([losses[name].float() for losses in pending]).mean()) for name in pending[0]}
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


def _checkpoint(module: nn.Module, optimizer: torch.optim.AdamW, step: int, history: list[dict[str, float]]) -> Checkpoint:
    tensors = {f"module/{name}": value for name, value in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    return Checkpoint(step=step, tensors=tensors, values={"history": history})


def _resume(module: nn.Module, optimizer: torch.optim.AdamW, folder: Path) -> tuple[int, list[dict[str, float]]]:
    found = checkpoints.load_newest(folder)
    if found is None:
        return 0, []
    _log.info("resume=%s step=%d", folder, found.step)
    part = "module/"
    module.load_state_dict({name.removeprefix(part): value for name, value in found.tensors.items() if name.startswith(part)})
    for name, parameter in module.named_parameters():
        part = f"optimizer/{name}/"
        state = {key.removeprefix(part): value for key, value in found.tensors.items() if key.startswith(part)}
        if state:
            optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    return found.step, list(found.values["history"])
