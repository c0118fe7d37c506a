"""What reading the weights of others has in common: other names for the same tensors, and networks filled with them.

Networks are made without starting weights and then filled, so that no random number is drawn and nothing lies in memory twice.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from einops import rearrange
from torch import nn

from models.grid import Patching
from models.shapes import Float, Tensor

Names = dict[str, tuple[str, ...]]
"""By the name of one of our tensors those of the peer's that make it up; several are joined along their first axis."""

Network = TypeVar("Network", bound=nn.Module)

_SHOWN = 4


def renamed(tensors: Mapping[str, Tensor], names: Names, network: str) -> dict[str, Tensor]:
    """The peer's tensors under our names, as copies.

    Args:
        tensors: exactly those that ``names`` asks for.
        names: which of the peer's make up each of ours.
        network: what they must be the weights of, for the message.

    Raises:
        ValueError: names are missing or unexpected; the message lists them.
    """
    refuse_others(tensors, [name for theirs in names.values() for name in theirs], network)
    return {ours: torch.cat([tensors[name] for name in theirs]) for ours, theirs in names.items()}


def refuse_others(found: Iterable[str], expected: Iterable[str], network: str) -> None:
    """Raise a ``ValueError`` that lists what is missing and what is unexpected, if anything is."""
    missing, unexpected = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    if missing or unexpected:
        raise ValueError(
            f"these are not the weights of {network}: missing {', '.join(missing) or 'nothing'}; "
            f"unexpected {', '.join(unexpected) or 'nothing'}"
        )


def layers(pairs: Mapping[str, str]) -> Names:
    """Weight and bias of layers that differ in their names alone."""
    return {f"{ours}.{kind}": (f"{theirs}.{kind}",) for ours, theirs in pairs.items() for kind in ("weight", "bias")}


def num_blocks(names: Iterable[str], prefix: str) -> int:
    """How many blocks have names of a prefix and a number."""
    return len({name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)})


def prefix_of(names: Iterable[str], ending: str) -> str | None:
    """What stands before the one name that has an ending; ``None`` where no name has it.

    Raises:
        ValueError: several names have it: the weights of several networks in one file.
    """
    found = sorted(name for name in names if name == ending or name.endswith(f".{ending}"))
    if len(found) > 1:
        raise ValueError(f"the weights of more than one network: {', '.join(found)}; keep one of them in the file")
    return found[0].removesuffix(ending) if found else None


def examples(names: Iterable[str]) -> str:
    """A few of the names, for a message."""
    shown = sorted(names)
    return ", ".join(shown[:_SHOWN]) + (f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else "")


def patching_of(kernel: Tensor) -> Patching:
    """The pixels of one token, from the kernel ``[D, C, t, h, w]`` of the convolution that embeds them.

    Raises:
        ValueError: it is no such kernel, or one for patches that are not square or not RGB.
    """
    shape = tuple(kernel.shape)
    if len(shape) != 5 or shape[1] != 3 or shape[3] != shape[4]:
        raise ValueError(f"the patch embedding has the shape {list(shape)}; square RGB patches have [D, 3, t, p, p]")
    return Patching(tubelet_frames=shape[2], patch_px=shape[3])


def flat_kernel(kernel: Float[Tensor, "D C t h w"]) -> Float[Tensor, "D patch_dim"]:
    """The kernel of a convolution over patches as the matrix of a linear layer over what ``models.grid.patchify`` gives."""
    return rearrange(kernel, "D C t h w -> D (t h w C)")


def mlp_ratio(width: int, hidden: int) -> float:
    """The ratio that gives an MLP exactly so many hidden features when their number is rounded down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def filled(build: Callable[[], Network], state: Mapping[str, Tensor]) -> Network:
    """A network with given weights in fp32, ready to infer.

    Args:
        build: makes it; the buffers that are no part of its state dict must be given to it, not computed in it, but for the
            pixels' statistics, which ``normalise`` sets.
        state: all of its state dict, in any precision.

    Raises:
        ValueError: names or shapes differ.
    """
    with torch.device("meta"):
        network = build()
    try:
        network.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError as error:  # the library has no other for wrong shapes
        raise ValueError(str(error)) from error
    return network.requires_grad_(False).eval()


def normalise(network: nn.Module, mean: Sequence[float], deviation: Sequence[float], patching: Patching) -> None:
    """Set the RGB statistics, in [0, 1], with which a network normalises the pixels of its patches."""
    for name, values in (("pixel_mean", mean), ("pixel_std", deviation)):
        network.register_buffer(name, torch.tensor(values).repeat(patching.patch_dim // 3), persistent=False)
