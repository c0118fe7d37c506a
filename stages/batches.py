"""From clips in tars to batches of tensors: reading, decoding, and the order in which training sees them.

Position ``p`` of a training names one clip of one epoch by arithmetic alone, so a run resumes at any step, with any number
of workers, on the same clips in the same order.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from stages.draws import shuffled
from stages.errors import ArtifactMissing
from stages.storage.artifact import Artifact
from stages.storage.clips import Clip, clips, read_clip
from stages.video import decode

Sample = dict[str, Any]


class ClipFrames:
    """Decoded clips of a snapshot, the latest of them kept in memory.

    Args:
        snapshot: where the clips are.
        cache_bytes: how much decoded video to keep.
    """

    def __init__(self, snapshot: Artifact, cache_bytes: int = 0) -> None:
        self._snapshot = snapshot
        self._cache_bytes = cache_bytes
        self._kept: collections.OrderedDict[str, npt.NDArray[np.uint8]] = collections.OrderedDict()
        self._kept_bytes = 0

    def read(self, clip: Clip) -> npt.NDArray[np.uint8]:
        """The frames of a clip, ``uint8 [T H W C]``, verified and decoded."""
        if clip.clip_id in self._kept:
            self._kept.move_to_end(clip.clip_id)
            return self._kept[clip.clip_id]
        frames: npt.NDArray[np.uint8] = decode(read_clip(self._snapshot, clip))
        self._kept[clip.clip_id] = frames
        self._kept_bytes += frames.nbytes
        while self._kept_bytes > self._cache_bytes and self._kept:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames


def training_clips(snapshot: Artifact, exclude: Mapping[str, str]) -> list[Clip]:
    """The clips that a training may see: all but those that carry one of the labels in ``exclude``.

    Raises:
        ArtifactMissing: nothing is left.
    """
    kept = [clip for clip in clips(snapshot) if not any(clip.labels.get(key) == value for key, value in exclude.items())]
    if not kept:
        raise ArtifactMissing(f"{snapshot.manifest_path}: no clip is left after exclude={dict(exclude)}; shard more videos")
    return kept


class Stream(Dataset[Sample]):
    """The endless training stream as a map from position to sample: every clip once per epoch, each epoch in its own order.

    Args:
        clips: the clips of one epoch.
        seed: seed of the order.
        sample: makes the sample of a clip in an epoch.
    """

    def __init__(self, clips: Sequence[Clip], seed: int, sample: Callable[[Clip, int], Sample]) -> None:
        self._clips = clips
        self._seed = seed
        self._sample = sample
        self._order: tuple[int, list[int]] = (-1, [])

    @property
    def num_clips(self) -> int:
        """Clips in one epoch."""
        return len(self._clips)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position."""
        epoch, index = divmod(position, len(self._clips))
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(len(self._clips), self._seed, "order", epoch))
        return self._sample(self._clips[self._order[1][index]], epoch)


def batches(stream: Stream, *, batch_clips: int, last_step: int, num_workers: int, first_step: int) -> Iterator[Sample]:
    """The batches of steps ``first_step`` up to but not including ``last_step``, tensors stacked along a new first axis."""
    positions = range(first_step * batch_clips, last_step * batch_clips)
    loader: DataLoader[Sample] = DataLoader(
        stream,
        sampler=positions,
        batch_size=batch_clips,
        num_workers=num_workers,
        multiprocessing_context="forkserver" if num_workers else None,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)
