"""From clips in tars to batches of tensors: reading, decoding, and the order in which training sees them.

Position ``p`` of a training names one clip of one epoch by arithmetic alone, and a rank's share of a batch is a slice of
positions. So a run resumes at any step, with any number of ranks and workers, on the same global batches in the same order.
"""

import collections
import functools
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from multiprocessing.context import BaseContext
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from stages.children import begin_worker, fork_server
from stages.errors import ArtifactMissing, ConfigError
from stages.order import ordered
from stages.storage.artifact import Artifact
from stages.storage.index import Clip, Index, read_clip
from stages.video_decode import Crop, Pixels, decode

Sample = dict[str, Any]
Item = TypeVar("Item")

_PRELOADED = ["stages.batches", "stages.storage.targets.chunks"]
"""What every worker imports: read once, by the server that they are forked from."""


class ClipFrames:
    """Decoded clips of a snapshot.

    Args:
        snapshot: where the clips are.
        cache_bytes: how much decoded video to keep in memory, in whole clips; 0 decodes nothing but what is asked for.
    """

    def __init__(self, snapshot: Artifact, cache_bytes: int = 0) -> None:
        self._snapshot = snapshot
        self._cache_bytes = cache_bytes
        self._kept: collections.OrderedDict[str, Pixels] = collections.OrderedDict()
        self._kept_bytes = 0

    def read(self, clip: Clip, start_frame: int = 0, num_frames: int | None = None, box: Crop | None = None) -> Pixels:
        """Frames of a clip, RGB ``uint8 [T H W C]``, verified and decoded; not to be written into.

        Args:
            clip: the clip.
            start_frame: the first frame wanted.
            num_frames: frames wanted; ``None``: all to the end.
            box: the part of every frame that is wanted; ``None``: all of it.

        Raises:
            ArtifactDamaged: the stored bytes are not those that were indexed, or do not hold these frames.
        """
        stop = clip.num_frames if num_frames is None else start_frame + num_frames
        if not self._cache_bytes:
            data = read_clip(self._snapshot, clip)
            return decode(data, start_frame=start_frame, num_frames=stop - start_frame, box=box)
        y_px, x_px, height_px, width_px = box or (0, 0, clip.height_px, clip.width_px)
        return self._whole(clip)[start_frame:stop, y_px : y_px + height_px, x_px : x_px + width_px]

    def _whole(self, clip: Clip) -> Pixels:
        if clip.clip_id in self._kept:
            self._kept.move_to_end(clip.clip_id)
            return self._kept[clip.clip_id]
        frames = decode(read_clip(self._snapshot, clip), num_frames=clip.num_frames)
        self._kept[clip.clip_id] = frames
        self._kept_bytes += frames.nbytes
        while self._kept_bytes > self._cache_bytes and self._kept:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames


def training_clips(snapshot: Artifact, exclude: Mapping[str, str]) -> Index:
    """The clips that a training may see: all but those that carry one of the labels in ``exclude``.

    Raises:
        ArtifactMissing: nothing is left.
    """
    kept = Index(snapshot).without(exclude)
    if not kept:
        raise ArtifactMissing(f"{snapshot.manifest_path}: no clip is left after exclude={dict(exclude)}; shard more videos")
    return kept


def held_out_clips(snapshot: Artifact, exclude: Mapping[str, str], count: int, source: torch.Generator) -> list[Clip]:
    """So many clips, drawn at random, of those that a training does not see; fewer where there are no more."""
    trained, everything = training_clips(snapshot, exclude), Index(snapshot)
    if len(trained) == len(everything):
        return []
    return drawn_clips(everything, count, source, without=frozenset(trained.column("clip_id")))


def drawn_clips(clips: Index, count: int, source: torch.Generator, *, without: Collection[str] = ()) -> list[Clip]:
    """So many clips, drawn at random, none of them one of the clip ids in ``without``; fewer where there are no more."""
    places = [place for place, clip_id in enumerate(clips.column("clip_id")) if clip_id not in without]
    order = torch.randperm(len(places), generator=source)[:count].tolist()
    return [clips[places[place]] for place in order]


class Draw(NamedTuple):
    """What stands at one position of a training."""

    clip: Clip
    epoch: int
    attached: tuple[Any, ...] = ()
    """What the main process knows of it and a worker does not; nothing, or one value."""


class Stream:
    """The endless training stream: every clip once per epoch, or several times in a row, each epoch in its own order.

    Args:
        clips: the clips of one epoch.
        seed: seed of the order.
        sample: makes the sample of a clip in an epoch; sent to the workers, so it holds no more than they need.
        attach: looks something up for a clip in an epoch at one of its repeats, in the main process; it is the third argument
            of ``sample``.
        repeats: how often in a row a clip comes, so that it is decoded once for all of them.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        seed: int,
        sample: Callable[..., Sample],
        attach: Callable[[Clip, int, int], Any] | None = None,
        repeats: int = 1,
    ) -> None:
        self._clips = clips
        self._seed = seed
        self._attach = attach
        self._repeats = repeats
        self.sample = sample

    @property
    def num_samples(self) -> int:
        """Samples in one epoch."""
        return len(self._clips) * self._repeats

    def draw(self, position: int) -> Draw:
        """The clip at a position, its epoch, and what is attached to it."""
        number, repeat = divmod(position, self._repeats)
        epoch, within = divmod(number, len(self._clips))
        clip = self._clips[ordered(within, count=len(self._clips), seed=self._seed, epoch=epoch)]
        return Draw(clip, epoch, () if self._attach is None else (self._attach(clip, epoch, repeat),))

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position."""
        return _sampled(self.sample, self.draw(position))


def _sampled(sample: Callable[..., Sample], draw: Draw) -> Sample:
    return sample(draw.clip, draw.epoch, *draw.attached)


def batches(
    stream: Stream,
    *,
    batch_clips: int,
    first_step: int,
    last_step: int,
    num_workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Sample]:
    """A rank's part of the batches of steps ``first_step`` up to but not including ``last_step``.

    Args:
        stream: the samples.
        batch_clips: samples of a global batch; each rank gets an equal part of consecutive ones.
        first_step: the step to begin with.
        last_step: the step to stop before.
        num_workers: processes that make samples; 0 makes them in this one.
        rank: which part.
        world_size: how many parts.

    Returns:
        The parts in order, tensors stacked along a new first axis.

    Raises:
        ConfigError: the batch does not divide into equal parts.
    """
    if batch_clips % world_size or not 0 <= rank < world_size:
        raise ConfigError(f"batch_clips={batch_clips} does not divide among {world_size} ranks, of which {rank} asks")
    share = batch_clips // world_size
    first_positions = range(first_step * batch_clips + rank * share, last_step * batch_clips, batch_clips)
    loader: DataLoader[Sample] = DataLoader(
        _Looks(functools.partial(_sampled, stream.sample)),
        batch_sampler=_Drawn(stream, first_positions, share),
        num_workers=num_workers,
        multiprocessing_context=_context(num_workers),
        worker_init_fn=_begin,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def in_order(look: Callable[[Item], Sample], items: Iterable[Item], *, num_workers: int) -> Iterator[Sample]:
    """What ``look`` makes of every item, one by one, made ahead by worker processes or here when it is asked for.

    Args:
        look: makes tensors; sent to the workers, so it holds no more than they need.
        items: taken a few ahead, and sent to the workers.
        num_workers: processes; 0 makes them in this one.
    """
    loader: DataLoader[Sample] = DataLoader(
        _Looks(look),
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        multiprocessing_context=_context(num_workers),
        worker_init_fn=_begin,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def _context(num_workers: int) -> BaseContext | None:
    """How workers are started."""
    return fork_server(_PRELOADED) if num_workers else None


def _begin(number: int) -> None:
    begin_worker()


class Loader(Iterator[Sample]):
    """Batches, and the share of the time that was spent waiting for them.

    Args:
        batches: where they come from.
    """

    def __init__(self, batches: Iterator[Sample]) -> None:
        self._batches = batches
        self._began_s: float | None = None
        self._waited_s = 0.0

    def __next__(self) -> Sample:
        asked_s = time.perf_counter()
        batch = next(self._batches)
        if self._began_s is None:
            self._began_s = time.perf_counter()
        else:
            self._waited_s += time.perf_counter() - asked_s
        return batch

    @property
    def wait_share(self) -> float:
        """Time blocked in ``next`` over the time since the first batch, from 0 to 1; 0 before that."""
        return 0.0 if self._began_s is None else self._waited_s / max(time.perf_counter() - self._began_s, 1e-9)


class _Looks(Dataset[Sample], Generic[Item]):
    """What the workers hold: how a sample is made, without the index that says of what."""

    def __init__(self, look: Callable[[Item], Sample]) -> None:
        self._look = look

    def __getitem__(self, item: Item) -> Sample:
        return self._look(item)


class _Drawn:
    """Per batch the draws that it is made of, looked up here and sent to the workers."""

    def __init__(self, stream: Stream, first_positions: range, share: int) -> None:
        self._stream = stream
        self._first_positions = first_positions
        self._share = share

    def __len__(self) -> int:
        return len(self._first_positions)

    def __iter__(self) -> Iterator[list[Draw]]:
        for first in self._first_positions:
            yield [self._stream.draw(position) for position in range(first, first + self._share)]
