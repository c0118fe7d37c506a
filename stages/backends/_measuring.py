"""How far a form is from the network it was made of, and how fast it is beside it."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_DIGITS = 3


class Parity(NamedTuple):
    """Errors of a form's tokens on the probe input."""

    max_absolute_error: float
    max_relative_error: float
    """The largest error over the largest absolute value of the right tokens."""


def parity(found: Tensor, expected: Tensor) -> Parity:
    """The errors of some tokens, to three digits.

    Raises:
        ValueError: the shapes differ, or a number is not finite.
    """
    if found.shape != expected.shape:
        raise ValueError(f"tokens have the shape {tuple(found.shape)}, expected was {tuple(expected.shape)}")
    if not torch.isfinite(found).all():
        raise ValueError("some tokens are not finite")
    error = (found.cpu().double() - expected.cpu().double()).abs().max().item()
    return Parity(*(float(f"{value:.{_DIGITS}g}") for value in (error, error / expected.abs().max().item())))


def seconds_per_clip(
    ways: Mapping[str, Callable[[Tensor], Tensor]],
    frames: Tensor,
    *,
    rounds: int,
    device: torch.device,
    limit_s: float = math.inf,
) -> dict[str, float]:
    """What a clip costs in each of several ways, which take turns: the median over the rounds, after one to warm up.

    Args:
        ways: by their names.
        frames: the clips of one batch, on the device.
        rounds: how often each is timed.
        device: on a CPU processor time is counted, on others wall time.
        limit_s: wall time after which no other round is begun, but for the first.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    started_s = time.monotonic()
    for number in range(rounds + 1):
        if number > 1 and time.monotonic() - started_s > limit_s:
            break
        for name, way in ways.items():
            begun = _now_s(device)
            way(frames)
            if number:
                spent[name].append((_now_s(device) - begun) / len(frames))
    return {name: statistics.median(values) for name, values in spent.items()}


def _now_s(device: torch.device) -> float:
    if device.type == "cpu":
        return time.process_time()
    torch.accelerator.synchronize(device)
    return time.perf_counter()
