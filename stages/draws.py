"""Randomness as a pure function of what it is for: no generator state is ever saved, shared or advanced elsewhere.

Any step can be replayed alone, and the number of workers, ranks or restarts cannot change a draw.
"""

import hashlib

import torch


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A fresh generator for one purpose, such as ``generator(seed, "visible", epoch, clip_id)``."""
    spelled = "\x1f".join(str(part) for part in (seed, *purpose))
    digest = hashlib.sha256(spelled.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def below(bound: int, source: torch.Generator) -> int:
    """A number in ``[0, bound)``."""
    return int(torch.randint(bound, (), generator=source))
