"""How a training steps: rates, batches, precision, and what it does about steps that would harm it."""

import math
from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from models.config import Config
from stages.device import Precision


class Guard(Config):
    """Which steps are not applied. Source: the replay of PaLM, arXiv 2204.02311, section 5.1, with limits of our own."""

    spike_factor: float | None = Field(default=10.0, gt=1)
    """A gradient norm above this many times the median of the steps before is a spike; ``None``: none is."""
    window_steps: int = Field(default=64, gt=1)
    """Steps of which the median is taken; with fewer than half of them there are no spikes."""
    max_skipped_steps: int = Field(default=10, gt=0)
    """Steps in a row that may be left out before the training counts as diverged."""


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
    """Equal parts into which the global batch is cut. Each device takes an equal number of them one after the other, so that
    they bound its memory, and more devices change no part."""
    deterministic: bool = False
    """Whether gradients of the parts are summed in one fixed order, whatever the number of devices, by algorithms that give the
    same bits every time; needs all gradients from all devices."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of the exponential moving average of the parameters, which is then what is published; ``None``: none."""
    precision: Precision = "fp32"
    """Of matrix products and convolutions; parameters and losses stay in fp32. bf16 is for devices that have it."""
    guard: Guard = Guard()
    """Which steps are not applied."""
    log_every_steps: int = Field(default=10, gt=0)
    """Steps over which reported measurements are averaged, and after which steps that were refused are seen to."""
    checkpoint_every_steps: int = Field(default=200, gt=0)
    """Steps between checkpoints: what a killed run loses at most."""

    @model_validator(mode="after")
    def _checkpoints_fall_on_reports(self) -> Self:
        if self.checkpoint_every_steps % self.log_every_steps:
            raise ValueError(
                f"checkpoint_every_steps {self.checkpoint_every_steps} must be a multiple of log_every_steps "
                f"{self.log_every_steps}, or a checkpoint might hold steps that nobody has looked at"
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

    def total_steps(self, num_samples: int) -> int:
        """Optimizer steps in all, for epochs of so many samples."""
        if self.num_steps is not None:
            return self.num_steps
        assert self.num_epochs is not None  # the validator saw to it
        return max(1, self.num_epochs * num_samples // self.batch_clips)

    def rate(self, step: int, total_steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        warmup_steps = int(self.warmup_share * total_steps)
        if step < warmup_steps:
            return self.learning_rate * (step + 1) / warmup_steps
        share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return self.min_learning_rate + (self.learning_rate - self.min_learning_rate) * (1 + math.cos(math.pi * share)) / 2


def layer_scales(layers: Mapping[str, int], decay: float) -> dict[str, float]:
    """What the learning rate of each parameter is multiplied with: 1 in the last layer, ``decay`` in the one before, and so on.

    Args:
        layers: the layer of each parameter, by its name, from 0.
        decay: from one layer to the one before it.

    Source: BEiT, arXiv 2106.08254, which fine-tunes with it.
    """
    last = max(layers.values())
    return {name: decay ** (last - layer) for name, layer in layers.items()}
