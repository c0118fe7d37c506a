"""The processes of one training: who is who, and what they add up together.

Every rank computes its own parts of a batch. Gradients are summed over all parts: in the fast mode as it comes, in the
deterministic one along a fixed tree over the parts, so that any number of ranks gives the same bits.

Source of the tree: EasyScale, SC 2023, trains with the same results on changing numbers of devices.
"""

import contextlib
import datetime
import functools
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from stages.children import follow
from stages.errors import ConfigError

_BUCKET_BYTES = 100_000_000
TIMEOUT = datetime.timedelta(minutes=30)
"""How long ranks wait for each other."""


class Ranks(NamedTuple):
    """One process among those of a training."""

    rank: int = 0
    """Which one, from 0; the first one writes."""
    size: int = 1
    """How many there are."""

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def parts(self, count: int) -> range:
        """Which of so many parts of a batch are this rank's.

        Raises:
            ConfigError: they do not divide among the ranks.
        """
        if count % self.size:
            raise ConfigError(
                f"optimization.accumulation_steps={count} parts of a batch do not divide among {self.size} ranks; "
                "make it a multiple"
            )
        share = count // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def gathered(self, value: Any) -> list[Any]:
        """What every rank has, values of JSON in the order of the ranks."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        distributed.all_gather(lengths, torch.tensor([len(data)]))
        longest = max(int(length) for length in lengths)
        found = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        distributed.all_gather(found, torch.cat([data, data.new_zeros(longest - len(data))]))
        return [json.loads(bytes(part[: int(length)].tolist())) for part, length in zip(found, lengths, strict=True)]

    def wait(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            distributed.barrier()

    def add_up(self, tensors: Sequence[Tensor], *, in_order: bool) -> None:
        """Replace tensors by their sums over the ranks.

        Args:
            tensors: the same shapes in every rank.
            in_order: the sum is taken along a tree over the ranks, the same on every machine.
        """
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            total = torch.cat([tensor.reshape(-1) for tensor in bucket])
            if in_order:
                total = self._tree_sum(total)
            else:
                distributed.all_reduce(total)
            parts = torch.split(total, [tensor.numel() for tensor in bucket])
            for tensor, value in zip(bucket, parts, strict=True):
                tensor.copy_(value.view_as(tensor))

    def _tree_sum(self, flat: Tensor) -> Tensor:
        found = [torch.empty_like(flat) for _ in range(self.size)]
        distributed.all_gather(found, flat)
        tree = TreeSum()
        for value in found:
            tree.add([value])
        (total,) = tree.total()
        return total


class TreeSum:
    """The sum of lists of tensors along a balanced tree, which any run of 2, 4, 8 ... of them is a branch of."""

    def __init__(self) -> None:
        self._branches: list[tuple[int, list[Tensor]]] = []

    def add(self, tensors: list[Tensor]) -> None:
        """One list more."""
        level = 0
        while self._branches and self._branches[-1][0] == level:
            _, older = self._branches.pop()
            tensors = [first + second for first, second in zip(older, tensors, strict=True)]
            level += 1
        self._branches.append((level, tensors))

    def total(self) -> list[Tensor]:
        """The sum of all lists."""
        sums = [tensors for _, tensors in self._branches]
        return functools.reduce(lambda older, newer: [a + b for a, b in zip(older, newer, strict=True)], sums)


ALONE = Ranks()
"""The only process."""


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that a launcher such as ``torchrun`` started this process as one of; alone without one.

    Such a process ends with its launcher, also when that is killed: nobody else would end it.
    """
    if "WORLD_SIZE" in os.environ:
        follow(os.getppid())
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(backend(), timeout=TIMEOUT)
    try:
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
    finally:
        distributed.destroy_process_group()


def backend() -> str:
    """What ranks speak to each other through."""
    return "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"


def is_first_process() -> bool:
    """Whether this process speaks for all: the only one, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def check_order(count: int, ranks: Ranks) -> None:
    """Refuse a number of parts whose tree the ranks would cut between its branches.

    Raises:
        ConfigError: parts per rank are not a power of two.
    """
    share = len(ranks.parts(count))
    if ranks.size > 1 and share & (share - 1):
        raise ConfigError(
            f"optimization.deterministic takes 1, 2, 4, 8 ... parts per rank, and accumulation_steps={count} gives each of "
            f"{ranks.size} ranks {share}"
        )


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one type together, up to so many bytes."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        for tensor in (tensor for tensor in tensors if tensor.dtype == dtype):
            if bucket and sum(kept.nbytes for kept in bucket) + tensor.nbytes > _BUCKET_BYTES:
                yield bucket
                bucket = []
            bucket.append(tensor)
        if bucket:
            yield bucket
