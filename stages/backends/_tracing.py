"""One program for all compilers: the clip encoder as a graph of tensor operations, by ``torch.export``."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from stages.backends._clip_encoder import ClipEncoder
from stages.device import Precision

INPUT = "frames"


def traced(encoder: ClipEncoder, example: Tensor, *, any_batch: bool) -> ExportedProgram:
    """The graph of an encoder, without a trace of where its source code lies.

    Args:
        encoder: the network.
        example: two or more clips; of a single one the batch would be taken for a constant.
        any_batch: whether the number of clips stays open, or is that of the example.
    """
    shapes = {INPUT: {0: Dim("batch", min=1)}} if any_batch else None
    with torch.no_grad():
        program = torch.export.export(encoder, (example,), dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)
    return program


def placed(encoder: ClipEncoder, device: torch.device, precision: Precision) -> ClipEncoder:
    """A copy of an encoder on a device, with weights of a precision."""
    return copy.deepcopy(encoder).to(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def in_batches(run: Callable[[Tensor], Tensor], batch_clips: int) -> Callable[[Tensor], Tensor]:
    """A program that takes exactly ``batch_clips`` clips as one that takes any number: the last one is repeated."""

    def apply(frames: Tensor) -> Tensor:
        tokens = []
        for part in torch.split(frames, batch_clips):
            lacking = batch_clips - len(part)
            full = torch.cat([part, part[-1:].expand(lacking, *part.shape[1:])]) if lacking else part
            tokens.append(run(full)[: len(part)])
        return torch.cat(tokens)

    return apply
