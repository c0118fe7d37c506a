"""What a masked autoencoder makes of samples: the losses it is trained on, the same on held-out clips, and a picture."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models import mae
from models.grid import Grid
from models.masking import MaskingConfig
from models.targets import Target
from stages.batches import Sample
from stages.device import Precision, autocast, device
from stages.pictures import token_roles
from stages.training import SAMPLE, Losses
from stages.video_decode import Pixels


class Watched(NamedTuple):
    """A held-out clip that is shown while the training runs."""

    sample: Sample
    frames: Pixels
    """All of its view."""
    num_recorded_frames: int
    grid: Grid
    rule: MaskingConfig
    """Which tokens the decoder predicts."""
    scores: Tensor | None
    """What they may be chosen by, ``[N]``; ``None`` where it is not stored."""


def losses(module: nn.Module, target: Target, batch: Mapping[str, Tensor]) -> Losses:
    """The loss over predicted tokens that were hidden and recorded, its ratio to that of the best constant, and their share.

    Args:
        module: the autoencoder.
        target: what is to be predicted.
        batch: samples of ``stages.pretrain.sample``, stacked, on the device.
    """
    visible, predict = batch["visible"], batch["predict"]
    predicted, wanted = _answers(module, target, batch)
    weight = mae.hidden_weight(visible, predict, batch["real"])
    constant = target.best_constant(wanted, weight).expand(*predict.shape, -1)
    loss = mae.masked_mean(target.error(predicted, wanted), weight)
    baseline = mae.masked_mean(target.error(constant, wanted), weight)
    share = loss.detach() / baseline.clamp_min(1e-12)
    return {"loss": loss, "loss_over_constant": share, "counted_share": weight.mean()}


@torch.no_grad()
def held_out_measures(module: nn.Module, target: Target, held_out: Sequence[Sample], precision: Precision) -> dict[str, float]:
    """The measures of the losses on samples that are not trained on, averaged."""
    with autocast(device(), precision):
        found = [losses(module, target, _batch_of(one)) for one in held_out]
    return {f"held_out_{name}": float(torch.stack([one[name] for one in found]).mean()) for name in found[0]}


@torch.no_grad()
def held_out_picture(module: nn.Module, target: Target, watched: Watched, precision: Precision) -> bytes:
    """A PNG of what the autoencoder on its way makes of a clip that is not trained on."""
    from stages import glimpse  # and matplotlib with it, which the workers of a training need not import

    one, grid = watched.sample, watched.grid
    batch = _batch_of(one)
    with autocast(device(), precision):
        predicted, wanted = _answers(module, target, batch)
    counts = mae.hidden_weight(batch["visible"], batch["predict"], batch["real"])[0].cpu() > 0
    errors = torch.full((grid.num_tokens,), math.nan)
    errors[one["predict"][counts]] = target.error(predicted, wanted)[0].float().cpu()[counts]
    none = torch.zeros(grid.num_tokens) if watched.scores is None else watched.scores
    places = {name: one[name] for name in ("real", "visible", "predict")}
    shown = glimpse.Glimpse(
        frames=watched.frames,
        num_recorded_frames=watched.num_recorded_frames,
        scores=None if watched.scores is None else watched.scores.view(tuple(grid)).numpy(),
        roles=token_roles(watched.rule, grid, scores=none, **places),
        errors=errors.view(tuple(grid)).numpy(),
    )
    return glimpse.drawn(shown)


def _batch_of(one: Sample) -> dict[str, Tensor]:
    return {name: value[None].to(device()) for name, value in one.items() if name != SAMPLE}


def _answers(module: nn.Module, target: Target, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What is predicted of the tokens to predict, and what was wanted."""
    products = {name.removeprefix("product/"): value for name, value in batch.items() if name.startswith("product/")}
    wanted = target(batch["predict_patches"].float() / 255, products)
    return module(batch["visible_patches"].float() / 255, batch["visible"], batch["predict"]), wanted
