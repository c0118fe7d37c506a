"""Where networks compute, and in which precision."""

import logging
from typing import Literal

import torch

Precision = Literal["fp32", "bf16"]
"""Of matrix products and convolutions; parameters and losses stay in fp32."""

_log = logging.getLogger(__name__)


def device() -> torch.device:
    """Where to compute: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(place: torch.device, precision: Precision) -> torch.autocast:
    """Within it, products and convolutions take the precision."""
    return torch.autocast(place.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def precisions(place: torch.device) -> tuple[Precision, ...]:
    """Those that a device computes in by itself, rather than by imitation."""
    if place.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def warn_of_imitation(place: torch.device, precision: Precision, setting: str) -> None:
    """Say so when a device has no such arithmetic: convolutions were 30 to 120 times slower on a CPU with AVX2 alone.

    Args:
        place: the device.
        precision: what is asked for.
        setting: the field that asks for it.
    """
    if precision not in precisions(place):
        _log.warning(
            "%s=%s, which this %s can only imitate, many times slower than fp32: set it to fp32", setting, precision, place.type
        )
