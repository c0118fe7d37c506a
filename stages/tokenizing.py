"""From clips to the values of whole shards: decoding ahead in workers, the network, and some of it all done twice.

What goes through the network together is a function of the shard alone, whichever views are missing: no other grouping could
change a value, where the kernels of large networks depend on it in the last bit.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from models.grid import Patching
from models.shapes import Float, Int, Tensor, UInt8
from models.tokenizers import Tokenizer, WindowConfig
from stages.batches import ClipFrames, Sample, in_order
from stages.device import Precision, autocast
from stages.draws import generator
from stages.products import Footage, ProductConfig
from stages.storage.artifact import Artifact
from stages.storage.index import Clip, read_motion
from stages.storage.targets.chunks import Values
from stages.storage.targets.layout import CODES, PRIORITY
from stages.views import ViewConfig, cut, draw_view

_PIXELS, _PRODUCTS = "pixels", "products"

NamedValues = dict[str, Values]
"""Per array the values of one clip, or of several along a new first axis."""


class Shard(NamedTuple):
    """What is asked for of one shard."""

    ordinal: int
    clips: Sequence[Clip]
    """All of its clips."""
    views: tuple[int, ...]


class ShardValues(NamedTuple):
    """What was asked for."""

    shard: Shard
    values: dict[int, NamedValues]
    """Per view ``[num_clips, t, h, w]`` or with channels behind."""
    again: dict[int, dict[int, NamedValues]]
    """Per view and slot the values of some clips, decoded and computed a second time."""


@dataclasses.dataclass(frozen=True)
class Look:
    """Views of a clip and what the products say of them. Sent to the workers.

    Args:
        snapshot: the clips.
        frames: decodes them.
        views: shape of the views.
        patching: the pixels of a token.
        products: what else to compute.
    """

    snapshot: Artifact
    frames: ClipFrames
    views: ViewConfig
    patching: Patching
    products: tuple[ProductConfig, ...]

    def __call__(self, item: tuple[Clip, tuple[int, ...]]) -> Sample:
        """Per view ``uint8 [T H W C]`` and the values of every product."""
        clip, numbers = item
        views = [draw_view(clip, number, self.views) for number in numbers]
        pixels = [cut(self.frames, clip, view, self.views.num_frames) for view in views]
        needs_motion = any(product.needs_motion for product in self.products)
        motion = read_motion(self.snapshot, clip) if needs_motion else None
        seen = [Footage(part, view, self.patching, motion) for part, view in zip(pixels, views, strict=True)]
        products = {product.name: [product.compute(footage) for footage in seen] for product in self.products}
        return {_PIXELS: pixels, _PRODUCTS: products}


@dataclasses.dataclass(frozen=True)
class Network:
    """The frozen tokenizer as it is applied.

    Args:
        tokenizer: ready to infer, on ``device``.
        windows: how views are cut into its windows.
        num_frames: of a view.
        precision: of matrix products and convolutions.
        device: where it is.
    """

    tokenizer: Tokenizer
    windows: WindowConfig
    num_frames: int
    precision: Precision
    device: torch.device

    @property
    def batch_clips(self) -> int:
        """Clips that go through the network together: as many as there are whole ones in a forward pass."""
        return max(1, self.windows.batch_windows // len(self.tokenizer.window_starts(self.num_frames, self.windows)))

    @torch.inference_mode()
    def __call__(self, pixels: Sequence[UInt8[Tensor, "T H W C"]]) -> tuple[Int[Tensor, "B t h w"], Float[Tensor, "B t h w"]]:
        """Codes and priorities of views of several clips, on the device; does not wait for them."""
        clips = torch.stack([part.to(self.device, non_blocking=True) for part in pixels]).permute(0, 4, 1, 2, 3)
        with autocast(self.device, self.precision):
            codes, priority = self.tokenizer.tokenize(clips.float() / 255, self.windows)
        return codes, priority.float()


class _Group(NamedTuple):
    """Clips that go through the network together, one view after the other."""

    shard: Shard
    first_slot: int
    clips: Sequence[Clip]
    views: tuple[int, ...]
    is_again: bool


def tokenized(
    shards: Sequence[Shard], *, look: Look, network: Network, share: float, num_workers: int, ticked: Callable[[int], None]
) -> Iterator[ShardValues]:
    """The values of one shard after the other.

    Args:
        shards: what to compute.
        look: makes views of clips.
        network: makes codes of views.
        share: of groups of clips that are decoded and computed twice; unless it is 0, the first group is.
        num_workers: processes that decode; 0 decodes in this one.
        ticked: told how many clips were done in one view more.
    """
    plan = functools.partial(_groups, shards, network.batch_clips, share, look.views.seed)
    looks = in_order(look, ((clip, group.views) for group in plan() for clip in group.clips), num_workers=num_workers)
    done = _passed(network, plan(), looks, ticked)
    for shard, parts in itertools.groupby(done, key=lambda part: part[0].shard):
        yield _gathered(shard, parts)


def _groups(shards: Sequence[Shard], size: int, share: float, seed: int) -> Iterator[_Group]:
    for number, shard in enumerate(shards):
        firsts = range(0, len(shard.clips), size)
        for first in firsts:
            yield _Group(shard, first, shard.clips[first : first + size], shard.views, is_again=False)
        for first in firsts:
            clip_id = shard.clips[first].clip_id
            drawn = [view for view in shard.views if _is_drawn(share, seed, clip_id, view)]
            always = shard.views[:1] if share and number == first == 0 else ()
            views = tuple(sorted({*drawn, *always}))
            if views:
                yield _Group(shard, first, shard.clips[first : first + size], views, is_again=True)


def _is_drawn(share: float, seed: int, clip_id: str, view: int) -> bool:
    return bool(torch.rand((), generator=generator(seed, "verify", clip_id, view)) < share)


def _passed(
    network: Network, groups: Iterable[_Group], looks: Iterator[Sample], ticked: Callable[[int], None]
) -> Iterator[tuple[_Group, dict[int, NamedValues]]]:
    """Per group and view the values of its clips; a group is on its way through the network while the one before is fetched."""
    waiting: collections.deque[Callable[[], tuple[_Group, dict[int, NamedValues]]]] = collections.deque()
    for group in groups:
        seen = [next(looks) for _ in group.clips]
        launched = [network([clip[_PIXELS][number] for clip in seen]) for number in range(len(group.views))]
        waiting.append(functools.partial(_fetched, group, [clip[_PRODUCTS] for clip in seen], launched))
        if len(waiting) > 1:
            yield waiting.popleft()()
        ticked(0 if group.is_again else len(group.clips) * len(group.views))
    while waiting:
        yield waiting.popleft()()


def _fetched(
    group: _Group, products: Sequence[dict[str, Sequence[Tensor]]], launched: Sequence[tuple[Tensor, Tensor]]
) -> tuple[_Group, dict[int, NamedValues]]:
    found: dict[int, NamedValues] = {}
    for number, (view, (codes, priority)) in enumerate(zip(group.views, launched, strict=True)):
        others = {name: np.stack([clip[name][number].numpy() for clip in products]) for name in products[0]}
        found[view] = {CODES.name: codes.cpu().numpy(), PRIORITY.name: priority.cpu().numpy(), **others}
    return group, found


def _gathered(shard: Shard, parts: Iterable[tuple[_Group, dict[int, NamedValues]]]) -> ShardValues:
    pieces: dict[int, list[NamedValues]] = {view: [] for view in shard.views}
    again: dict[int, dict[int, NamedValues]] = {view: {} for view in shard.views}
    for group, found in parts:
        for view, values in found.items():
            if not group.is_again:
                pieces[view].append(values)
                continue
            for offset in range(len(group.clips)):
                again[view][group.first_slot + offset] = {name: value[offset] for name, value in values.items()}
    whole = {
        view: {name: np.concatenate([piece[name] for piece in found]) for name in found[0]} for view, found in pieces.items()
    }
    return ShardValues(shard, whole, again)
