"""Steps that would harm a training: refused where they are computed, replayed once, and left out for good if they come again.

A step is refused when a loss or the norm of a player's gradients is not finite, or when a norm is far above the steps before.
The device decides by itself, so that nobody waits. What is then done about it is written down before it is done: a run that was
killed and continued decides the same again.

Source: PaLM, arXiv 2204.02311, section 5.1, goes back and leaves batches out; Llama 3, arXiv 2407.21783, section 3.3.4, met
hardware that computes wrongly now and then, which a replay tells from data that does harm.
"""

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from models.config import Config
from stages import optimization
from stages.errors import ArtifactDamaged, TrainingDiverged
from stages.storage.artifact import CHECKPOINTS
from stages.storage.publish import canonical_json, publish_bytes

_log = logging.getLogger(__name__)


class Guard:
    """What decides on the device whether a step is applied.

    Args:
        rules: when it is not.
        players: the names of the networks.
        device: where losses and norms are.
    """

    def __init__(self, rules: optimization.Guard, players: Iterable[str], device: torch.device) -> None:
        self._rules = rules
        self._norms = {name: torch.full((rules.window_steps,), math.nan, device=device) for name in players}

    def refuses(self, losses: Sequence[Tensor], norms: Mapping[str, Tensor], *, is_decided: bool) -> Tensor:
        """One where the step must not be applied, zero where it may; ``float32 []`` on the device.

        Args:
            losses: of all parts and players.
            norms: of the gradients, by player; on what is not refused later judgements rest.
            is_decided: the step is to be left out, whatever it is like now.
        """
        found = torch.stack([*(loss.detach().float() for loss in losses), *norms.values()])
        refused = ~torch.isfinite(found).all() | is_decided
        for name, norm in norms.items():
            refused = refused | (norm > self._limit(name))
        for name, norm in norms.items():
            kept = self._norms[name]
            self._norms[name] = torch.where(refused, kept, torch.cat([kept[1:], norm[None]]))
        return refused.float()

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resume needs."""
        return {f"{name}/norms": value for name, value in self._norms.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state.

        Raises:
            KeyError: it lacks a player.
            RuntimeError: it is of another number of steps.
        """
        for name, value in self._norms.items():
            value.copy_(tensors[f"{name}/norms"].to(value.device))

    def _limit(self, name: str) -> Tensor:
        """The largest norm that is no spike."""
        kept = self._norms[name]
        if self._rules.spike_factor is None:
            return torch.full((), math.inf, device=kept.device)
        is_enough = (~kept.isnan()).sum() >= self._rules.window_steps // 2
        return torch.where(is_enough, self._rules.spike_factor * kept.nanmedian(), math.inf)


class Decision(StrEnum):
    """What is done about a refused step."""

    REPLAY = "replay"
    """Go back to the last checkpoint and compute it again."""
    SKIP = "skip"
    """It was refused again: leave it out, now and in every run that continues this one."""
    PASSED = "passed"
    """It was fine the second time: something other than data and weights was at fault."""


class Refusal(Config):
    """A step that was not applied."""

    step: int
    """Optimizer steps done before it."""
    reason: str
    """``non-finite`` or ``spike``."""
    samples: tuple[str, ...]
    """What it was computed on."""
    decision: Decision
    """What is done about it."""


class RolledBack(Exception):
    """The training must go back to its last checkpoint; what to do there is in the ledger."""


class Ledger(Config):
    """All refusals of a training, on disk before anything is done about them."""

    replayed_to: int = 0
    """Steps before this one are never gone back over again."""
    refusals: tuple[Refusal, ...] = ()
    """By step."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The ledger of the artifact in a folder; an empty one where nothing was refused.

        Raises:
            ArtifactDamaged: it is not one.
        """
        path = folder / CHECKPOINTS / "ledger.json"
        if not path.exists():
            return cls()
        try:
            return cls.model_validate(json.loads(path.read_bytes()))
        except ValueError as error:
            raise ArtifactDamaged(f"{path}: no ledger of refused steps; delete {path.parent} to begin anew") from error

    def write(self, folder: Path) -> None:
        """Publish it."""
        publish_bytes(folder / CHECKPOINTS / "ledger.json", canonical_json(self.model_dump(mode="json")))

    def leaves_out(self, step: int) -> bool:
        """Whether a step is to be left out."""
        return any(refusal.step == step and refusal.decision is Decision.SKIP for refusal in self.refusals)

    @property
    def left_out(self) -> tuple[dict[str, Any], ...]:
        """The steps that were left out for good, as plain values."""
        return tuple(refusal.model_dump(mode="json") for refusal in self.refusals if refusal.decision is Decision.SKIP)

    def after(self, first_step: int, last_step: int, refused: Mapping[int, Refusal]) -> Self:
        """The ledger once the steps from ``first_step`` up to but not including ``last_step`` were computed.

        Args:
            first_step: the first one.
            last_step: the one after the last.
            refused: those that were refused, by step.
        """
        known = {refusal.step: refusal for refusal in self.refusals}
        new = {step: refusal for step, refusal in refused.items() if not self.leaves_out(step)}
        is_replay = last_step <= self.replayed_to
        decision = Decision.SKIP if is_replay else Decision.REPLAY
        known |= {step: refusal.model_copy(update={"decision": decision}) for step, refusal in new.items()}
        for step in range(first_step, last_step) if is_replay else ():
            if step in known and step not in refused and known[step].decision is Decision.REPLAY:
                known[step] = known[step].model_copy(update={"decision": Decision.PASSED})
        replayed_to = max(self.replayed_to, last_step) if new else self.replayed_to
        return self.model_copy(update={"refusals": tuple(known[step] for step in sorted(known)), "replayed_to": replayed_to})

    def check(self, rules: optimization.Guard) -> None:
        """Give up where too many steps in a row are left out.

        Raises:
            TrainingDiverged: they are.
        """
        left_out = [refusal.step for refusal in self.refusals if refusal.decision is Decision.SKIP]
        for last in left_out:
            if set(range(last - rules.max_skipped_steps + 1, last + 1)) <= set(left_out):
                raise TrainingDiverged(
                    f"{rules.max_skipped_steps} steps in a row up to step {last} were refused, and again when they were "
                    "replayed: the training has diverged; lower learning_rate or set clip_grad_norm, or look at the clips "
                    "that the log names"
                )


def describe(before: Ledger, after: Ledger) -> None:
    """Say what was decided since."""
    known = {refusal.step: refusal.decision for refusal in before.refusals}
    for refusal in after.refusals:
        if known.get(refusal.step) is not refusal.decision:
            _log.warning(
                "step=%d refused reason=%s decision=%s samples=%s",
                refusal.step, refusal.reason, refusal.decision, ", ".join(refusal.samples),
            )  # fmt: skip
