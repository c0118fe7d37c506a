"""The loop that both trainings share: AdamW, warm-up and cosine, checkpoints, and a resume that changes no number.

A training has one network or several that play against each other, each with an optimizer of its own. All state is in the
checkpoint: parameters, buffers, moments, averages, curves and the digest of all samples seen; no generator has any. It runs in
one process or in several ranks, of which the first one writes.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stages.batches import Loader, Stream, batches
from stages.device import autocast, device, warn_of_imitation
from stages.errors import ArtifactDamaged, TrainingDiverged
from stages.guard import Decision, Guard, Ledger, Refusal, RolledBack, describe
from stages.optimization import Optimization
from stages.pace import model_rates
from stages.player import Player, below
from stages.progress import Monitor
from stages.ranks import ALONE, Ranks, TreeSum, check_order
from stages.signals import Ended, in_good_order
from stages.storage import checkpoints
from stages.storage.artifact import CHECKPOINTS
from stages.storage.checkpoints import Checkpoint
from stages.storage.publish import sha256_bytes

_log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]

SAMPLE = "sample"
"""The key of a batch under which every sample says what it is, such as ``<clip_id> <epoch>``; seen by no network."""
_GUARD = "guard"
_MISSES = 3
"""Checkpoints in a row that may fail to be written before the training ends."""


class Moment(NamedTuple):
    """When losses are asked for."""

    step: int
    """Optimizer steps done before."""
    part: int
    """Which part of the global batch, from 0."""


class Batches(Protocol):
    """The batches from a step on."""

    def __call__(self, *, first_step: int) -> Iterator[dict[str, Any]]:
        """The rank's part of the batch of ``first_step``, then of every later one; ``SAMPLE`` names its samples."""


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
        ranks: this process among those that train together.
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
    pictures: Callable[[], Mapping[str, bytes]] | None = None
    """PNG files, by name, of what the networks do as they are, shown after every judgement. It must leave no trace either."""
    clip_flops: int | None = None
    """Operations of one clip, forward and backward, for the rate that is reported; ``None``: not counted."""
    ranks: Ranks = ALONE
    """This process among those that train together."""


class Course(NamedTuple):
    """What a training left beside its networks, the same whether or not it was interrupted."""

    history: list[dict[str, float]]
    """One row per ``log_every_steps``: ``step`` and the mean of every measure over the steps that were applied."""
    sample_digest: str
    """sha256 over the names of all samples in the order in which they were trained on."""
    left_out: Sequence[Mapping[str, Any]] = ()
    """The steps that were refused and left out, with reason and samples."""


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
    pictures: Callable[[], Mapping[str, bytes]] | None = None,
    clip_flops: int | None = None,
    ranks: Ranks = ALONE,
) -> Training:
    """The training of networks on the clips of a stream, for as many steps as ``optimization`` makes of them."""
    total_steps = optimization.total_steps(stream.num_samples)
    following = functools.partial(
        batches,
        stream,
        batch_clips=optimization.batch_clips,
        last_step=total_steps,
        num_workers=num_workers,
        rank=ranks.rank,
        world_size=ranks.size,
    )
    return Training(
        players,
        losses,
        following,
        optimization,
        total_steps,
        label,
        judge=judge,
        judge_every_steps=judge_every_steps,
        pictures=pictures,
        clip_flops=clip_flops,
        ranks=ranks,
    )


def train(training: Training, *, folder: Path, monitor: Monitor) -> Course:
    """Train the players in place, from the newest checkpoint if there is one.

    A step that is refused is not applied: the training goes back to its last checkpoint and replays once, and leaves out what
    is refused again. Asked to end by SIGTERM, it saves a checkpoint after the step in hand and lets the signal do its work.

    Args:
        training: the networks, their losses and their batches.
        folder: the artifact's folder, which holds the checkpoints.
        monitor: told of every step.

    Raises:
        TrainingDiverged: too many steps in a row were refused.
        ArtifactDamaged: the newest whole checkpoint is not one of this training.
        ConfigError: the batch does not divide among the ranks.
        OSError: checkpoints could not be written, again and again.
    """
    config = training.optimization
    warn_of_imitation(device(), config.precision, f"{training.label}.optimization.precision")
    if config.deterministic:
        check_order(config.accumulation_steps, training.ranks)
    with _exact(config.deterministic):
        return in_good_order(functools.partial(_trained, training, folder, monitor))


def _trained(training: Training, folder: Path, monitor: Monitor, is_asked_to_end: Callable[[], bool]) -> Course:
    run = _Run(training, folder, monitor, is_asked_to_end)
    while True:
        try:
            return run.to_the_end()
        except RolledBack:
            training.ranks.wait()  # until the decision is written
            run.go_back()


class _Step(NamedTuple):
    """What is known of a step that was computed."""

    step: int
    samples: list[str]
    """Of the global batch."""
    measures: dict[str, list[float]]
    """Of every part, or one for all."""
    is_refused: bool


class _Unread(NamedTuple):
    """The same while it lies on the device, of this rank's parts."""

    step: int
    samples: list[str]
    measures: dict[str, list[Tensor]]
    refused: Tensor


class _Run:
    """A training from a checkpoint on."""

    def __init__(self, training: Training, folder: Path, monitor: Monitor, is_asked_to_end: Callable[[], bool]) -> None:
        self.training, self.folder, self.monitor = training, folder, monitor
        self.is_asked_to_end = is_asked_to_end
        self.guard = Guard(training.optimization.guard, training.players, device())
        self.history: list[dict[str, float]] = []
        self.digest = ""
        self.unread: list[_Unread] = []
        self.pending: list[_Step] = []
        self.misses, self.first_step, self.saved_step = 0, 0, 0
        self.ledger = Ledger.read(folder)
        self.ledger.check(training.optimization.guard)
        self._resume()
        training.ranks.wait()  # nobody writes before everybody has read

    def go_back(self) -> None:
        """Become what the newest checkpoint holds.

        Raises:
            ArtifactDamaged: there is none.
        """
        self.unread = []
        newest = checkpoints.load_newest(self.folder)
        if newest is None:
            raise ArtifactDamaged(f"{self.folder}: no checkpoint to go back to; run again to begin anew")
        self._take_over(newest)
        self.training.ranks.wait()

    def to_the_end(self) -> Course:
        """Every step that is left."""
        training, config = self.training, self.training.optimization
        self.monitor.begin(training.label, total=training.total_steps, done=self.first_step)
        following = Loader(training.batches(first_step=self.first_step))
        since_s, since_step = time.perf_counter(), self.first_step
        for step in range(self.first_step, training.total_steps):
            batch = next(following)
            self.unread.append(self._step(batch, step))
            self.monitor.advance()
            if (step + 1) % config.log_every_steps == 0 or step + 1 == training.total_steps:
                step_s = (time.perf_counter() - since_s) / (step + 1 - since_step)
                self._report(step + 1, {"data_wait_share": following.wait_share, "step_s": step_s})
                since_s, since_step = time.perf_counter(), step + 1
            if (step + 1) % config.checkpoint_every_steps == 0:
                self._save(step + 1)
            self._end_if_asked(step + 1)
        return Course(self.history, self.digest, self.ledger.left_out)

    def _step(self, batch: dict[str, Any], step: int) -> _Unread:
        training, config = self.training, self.training.optimization
        samples = batch.pop(SAMPLE)
        found, sums = [], {name: TreeSum() for name in training.players}
        parts = training.ranks.parts(config.accumulation_steps)
        for number, part in zip(parts, _parts(batch, len(parts)), strict=True):
            moved = {name: value.to(device(), non_blocking=True) for name, value in part.items()}
            with autocast(device(), config.precision):
                losses = training.losses(moved, Moment(step, number))
            for name, measures in losses.items():
                player = training.players[name]
                # Only this player's parameters: those of an opponent are passed through.
                torch.autograd.backward(measures["loss"] / config.accumulation_steps, inputs=player.parameters())
                if config.deterministic:
                    sums[name].add(player.take_gradients())
            found.append(losses)
        played = {name: training.players[name] for name in found[0]}
        for name, player in played.items():
            if config.deterministic:
                player.put_gradients(sums[name].total())
            training.ranks.add_up(player.gradients(), in_order=config.deterministic)
        refused, norms = self._judged(found, played, step)
        rate = config.rate(step, training.total_steps) / config.learning_rate
        for name, player in played.items():
            player.update(rate * player.optimization.learning_rate, norms[name], refused)
        measured = {
            self._spelled(name, key): [losses[name][key].detach().float() for losses in found]
            for name in found[0]
            for key in found[0][name]
        }
        measured |= {self._spelled(name, "grad_norm"): [norm] for name, norm in norms.items()}
        return _Unread(step, samples, measured, refused)

    def _judged(
        self, found: Sequence[Mapping[str, Losses]], played: Mapping[str, Player], step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Whether the step is refused, the same in all ranks, and the norms of the gradients."""
        norms = {name: player.norm() for name, player in played.items()}
        losses = [measures["loss"].detach().float() for part in found for measures in part.values()]
        total = torch.stack(losses).sum()[None]
        self.training.ranks.add_up([total], in_order=False)  # of all ranks: one that is not finite makes the sum so
        return self.guard.refuses([total[0]], norms, is_decided=self.ledger.leaves_out(step)), norms

    def _spelled(self, player: str, measure: str) -> str:
        return measure if player == next(iter(self.training.players)) else f"{player}_{measure}"

    def _read(self) -> None:
        """Fetch what the device knows of the steps since the last time, from all ranks."""
        own = [
            [unread.samples, {name: [float(value) for value in values] for name, values in unread.measures.items()}]
            for unread in self.unread
        ]
        for unread, *parts in zip(self.unread, *self.training.ranks.gathered(own), strict=True):
            samples = [name for names, _ in parts for name in names]
            measures = {
                name: values if _is_of_all(name) else [value for _, found in parts for value in found[name]]
                for name, values in parts[0][1].items()
            }
            self.digest = sha256_bytes("\n".join([self.digest, *samples]).encode())
            self.pending.append(_Step(unread.step, samples, measures, bool(unread.refused)))
        self.unread = []

    def _report(self, step: int, pace: Mapping[str, float]) -> None:
        """See to what was refused, then add a row to the curves."""
        self._read()
        self._settle(step)
        applied = [pending for pending in self.pending if not pending.is_refused]
        row = {"step": step, **_means([pending.measures for pending in applied])}
        if len(applied) < len(self.pending):
            row["refused_steps"] = len(self.pending) - len(applied)
        broken = [name for name, value in row.items() if not math.isfinite(value)]
        if broken:
            raise TrainingDiverged(
                f"{', '.join(broken)} stopped being finite before step {step} while losses and gradients were finite"
            )
        self.history.append({**row, **self._judgement(step)})
        measured = {name: value for name, value in self.history[-1].items() if name != "step"}
        self.monitor.log(step, {**measured, **pace, **self._rates(pace["step_s"])})  # times: no part of the history
        self._show(step)
        self.pending = []

    def _settle(self, step: int) -> None:
        """Write down what is done about refused steps.

        Raises:
            RolledBack: to go back and compute them again.
            TrainingDiverged: there are too many.
        """
        refused = {pending.step: _refusal(pending) for pending in self.pending if pending.is_refused}
        settled = self.ledger.after(self.pending[0].step, step, refused)
        if settled == self.ledger:
            return
        describe(self.ledger, settled)
        if self.training.ranks.is_first:
            settled.write(self.folder)
        is_new = settled.replayed_to > self.ledger.replayed_to
        self.ledger = settled
        settled.check(self.training.optimization.guard)
        if is_new:
            raise RolledBack

    def _rates(self, step_s: float) -> dict[str, float]:
        training = self.training
        precision, clips_per_s = training.optimization.precision, training.optimization.batch_clips / max(step_s, 1e-9)
        if training.clip_flops is None:
            return {"clips_per_s": clips_per_s}
        num_devices = training.ranks.size
        rates = model_rates(training.clip_flops, clips_per_s, precision=precision, place=device(), num_devices=num_devices)
        return {"clips_per_s": clips_per_s, **rates}

    def _judgement(self, step: int) -> Mapping[str, float]:
        judge = self.training.judge
        return judge() if judge and self._is_judged(step) else {}

    def _show(self, step: int) -> None:
        pictures = self.training.pictures
        for name, png in (pictures() if pictures and self._is_judged(step) else {}).items():
            self.monitor.show(step, name, png)

    def _is_judged(self, step: int) -> bool:
        every = self.training.judge_every_steps
        return every is not None and step % every == 0 and self.training.ranks.is_first

    def _save(self, step: int) -> None:
        """Write a checkpoint; where that fails, go on with those that there are."""
        if not self.training.ranks.is_first:
            return
        try:
            checkpoints.save(self.folder, self._checkpoint(step))
            self.misses, self.saved_step = 0, step
        except OSError as error:
            self.misses += 1
            if self.misses == _MISSES:
                raise
            _log.warning(
                "checkpoint of step %d not written (%s); a run that ends now continues from step %d",
                step, error, self.saved_step,
            )  # fmt: skip

    def _checkpoint(self, step: int) -> Checkpoint:
        players = self.training.players.items()
        tensors = {f"{name}/{key}": value for name, player in players for key, value in player.state().items()}
        tensors |= {f"{_GUARD}/{key}": value for key, value in self.guard.state().items()}
        values = {
            "history": self.history,
            "sample_digest": self.digest,
            "num_updates": {name: player.num_updates for name, player in players},
            "pending": [list(pending) for pending in self.pending],
        }
        return Checkpoint(step=step, tensors=tensors, values=values)

    def _resume(self) -> None:
        """Take over the newest checkpoint, or make one of the beginning: what the first steps go back to."""
        found = checkpoints.load_newest(self.folder)
        if found is None:
            self._save(0)
        else:
            self._take_over(found)

    def _take_over(self, found: Checkpoint) -> None:
        _log.info("resume=%s step=%d", self.folder, found.step)
        try:
            for name, player in self.training.players.items():
                player.restore(below(found.tensors, f"{name}/"), found.values["num_updates"][name])
            self.guard.restore(below(found.tensors, f"{_GUARD}/"))
            self.history, self.digest = list(found.values["history"]), found.values["sample_digest"]
            self.pending = [_Step(*pending) for pending in found.values["pending"]]
        except (KeyError, RuntimeError) as error:
            raise ArtifactDamaged(
                f"{self.folder}: its checkpoint of step {found.step} does not fit this training ({error}); delete "
                f"{self.folder / CHECKPOINTS} to begin anew"
            ) from error
        self.first_step = self.saved_step = found.step

    def _end_if_asked(self, step: int) -> None:
        """Save and end, if this process was asked to; ranks agree on it where they speak to each other anyway."""
        if self.training.ranks.size > 1 and self.unread:
            return
        if not any(self.training.ranks.gathered(self.is_asked_to_end())):
            return
        self._read()
        if not any(pending.is_refused for pending in self.pending):  # those are replayed from the checkpoint before
            self._save(step)
        if self.training.ranks.is_first:
            _log.warning("asked to end: the training continues from step %d when it is run again", self.saved_step)
        raise Ended


@contextlib.contextmanager
def _exact(is_wanted: bool) -> Iterator[None]:
    """Within it the same computation gives the same bits, if that is wanted."""
    if is_wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses, says torch's documentation
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or is_wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _parts(batch: Mapping[str, Tensor], count: int) -> Iterator[Batch]:
    for index in range(count):
        yield {name: value.chunk(count)[index] for name, value in batch.items()}


def _is_of_all(measure: str) -> bool:
    """Whether a measure is one of the whole batch, the same in all ranks."""
    return measure.endswith("grad_norm")


def _refusal(pending: _Step) -> Refusal:
    values = [value for name, parts in pending.measures.items() if name.endswith(("loss", "grad_norm")) for value in parts]
    is_finite = bool(torch.isfinite(torch.tensor(values)).all())
    reason = "spike" if is_finite else "non-finite"
    return Refusal(step=pending.step, reason=reason, samples=tuple(pending.samples), decision=Decision.REPLAY)


def _means(found: Sequence[Mapping[str, list[float]]]) -> dict[str, float]:
    """The mean of every measure over the steps that have it."""
    names = dict.fromkeys(name for measures in found for name in measures)
    return {name: statistics.fmean(statistics.fmean(one[name]) for one in found if name in one) for name in names}
