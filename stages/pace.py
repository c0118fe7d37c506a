"""How fast a training goes, in operations of its networks rather than in clips: comparable between sizes and machines."""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from models.cost import Precision

PEAK_FLOPS_PER_S: Mapping[str, Mapping[Precision, float]] = MappingProxyType(
    {name: MappingProxyType({"bf16": 989e12, "fp32": 67e12}) for name in ("H100 80GB HBM3", "H200")}
)
"""What dense matrix products of a device could reach, by a part of its name. Source: NVIDIA's data sheets of the H100 SXM and
the H200, without sparsity, fp32 without TF32. ``stages.estimate`` plans with what they do reach."""


def model_rates(
    clip_flops: int, clips_per_s: float, *, precision: Precision, place: torch.device, num_devices: int
) -> dict[str, float]:
    """The rate of a training in TFLOP/s, and as a share of the devices' peak where that is known.

    What is computed a second time does not count, so that recomputing activations lowers the rate.

    Args:
        clip_flops: operations of one clip, forward and backward.
        clips_per_s: over all devices.
        precision: of the matrix products.
        place: one of the devices.
        num_devices: that share every batch.

    Source: model FLOPs utilisation (``mfu``), PaLM, arXiv 2204.02311, appendix B.
    """
    reached = clip_flops * clips_per_s
    rates = {"model_tflop_per_s": reached / 1e12}
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else ""
    peak = next((found[precision] for part, found in PEAK_FLOPS_PER_S.items() if part in name), None)
    return rates if peak is None else rates | {"mfu": reached / (peak * num_devices)}
