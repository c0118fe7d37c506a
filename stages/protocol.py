"""Who is scored, who teaches and who is tested: from clips with labels to the splits that every probe is judged on.

Nothing here looks at a feature. The splits follow from the labels alone, so all features and probes are judged on the
same clips.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.errors import ConfigError
from stages.evals import Classes
from stages.storage.index import Clip, Index

JOINER = " + "
"""Between the parts of a joint class, such as ``cut + bread``."""

Truth = npt.NDArray[np.bool_]
"""Whether each clip shows each class, ``[n K]``."""


class Split(NamedTuple):
    """Positions of the clips that teach and of those that are tested."""

    train: Classes
    test: Classes


class Asking(NamedTuple):
    """What to ask of the clips."""

    label: str
    """The label column that holds the classes; a name of its own for a joint question."""
    is_multi_label: bool = False
    """Whether a clip may carry several classes."""
    parts: tuple[str, ...] = ()
    """The columns that a joint question is made of: its answer is right only if every part is."""

    def classes(self, clip: Clip) -> tuple[str, ...]:
        """What a clip shows; nothing where it is not asked of this clip.

        Raises:
            ConfigError: it carries several classes and may not.
        """
        if self.is_multi_label:
            return clip.labels.get(self.label, ())
        found = [clip.label(column) for column in self.parts or (self.label,)]
        return (JOINER.join(map(str, found)),) if all(found) else ()


@dataclasses.dataclass(frozen=True)
class Question:
    """One label that a probe has to tell: the clips that carry it, their classes, and how they are split."""

    asking: Asking
    clips: tuple[Clip, ...]
    """Those that carry the label; everything below but ``class_names`` counts within these."""
    rows: Classes
    """Which of the scored clips they are."""
    class_names: tuple[str, ...]
    truth: Truth
    group_names: tuple[str, ...]
    """What each clip belongs to, such as a take."""
    splits: tuple[Split, ...]

    @property
    def label(self) -> str:
        """What it is called."""
        return self.asking.label

    @functools.cached_property
    def classes(self) -> Classes:
        """The class of every clip; the first one of several."""
        found: Classes = self.truth.argmax(axis=1)
        return found

    @functools.cached_property
    def groups(self) -> Classes:
        """The number of each clip's group."""
        return _numbered(self.group_names)

    @property
    def tested(self) -> Classes:
        """Positions of all tested clips, split after split."""
        return np.concatenate([split.test for split in self.splits])

    @property
    def num_shared_groups(self) -> int:
        """Groups that teach and are tested in the same split; above zero, results may be flattering."""
        shared = [np.intersect1d(self.groups[split.train], self.groups[split.test]) for split in self.splits]
        return sum(map(len, shared))

    @property
    def uniform_chance(self) -> float:
        """The accuracy of a blind guess."""
        return float(self.truth[self.tested].mean())

    @property
    def majority_chance(self) -> float:
        """The accuracy of always naming the most frequent class of the clips that teach; the lowest among equals."""
        hits = 0
        for split in self.splits:
            commonest = self.truth[split.train].sum(axis=0).argmax()
            hits += int(self.truth[split.test, commonest].sum())
        return hits / len(self.tested)


def scored_clips(clips: Index, where: Mapping[str, str], labels: Sequence[str]) -> list[Clip]:
    """The clips that carry every value in ``where`` and at least one of the ``labels``, in their order.

    Raises:
        ConfigError: there is none.
    """
    kept = clips.where(where)
    labelled = list(kept.having(labels))
    if not labelled:
        raise ConfigError(
            f"evaluate.where={dict(where)} keeps {len(kept)} of {len(clips)} clips and none of them has a label of "
            f"{list(labels)}; known label columns: {clips.label_columns()}"
        )
    return labelled


def question(
    clips: Sequence[Clip], asking: Asking, *, split_label: str, folds: int | None, group_label: str | None
) -> Question:
    """How one label is asked of the clips that carry it.

    Args:
        clips: the scored clips.
        asking: the label.
        split_label: the column whose values ``train`` and ``test`` (without any: ``val``) split the clips; used when ``folds``
            is ``None``.
        folds: parts of a grouped k-fold instead, in which every clip is tested once.
        group_label: the column of clips that must not be torn apart; ``None``: clips of one source belong together.

    Raises:
        ConfigError: a column is missing, has too few values for the split, or several on one clip.
    """
    carried = {row: found for row, clip in enumerate(clips) if (found := asking.classes(clip))}
    asked = tuple(clips[row] for row in carried)
    if not asked:
        raise ConfigError(f"evaluate.label {asking.label!r} is on none of {len(clips)} scored clips; {_known_labels(clips)}")
    names = tuple(sorted({name for found in carried.values() for name in found}, key=_natural_order))
    truth = np.array([[name in found for name in names] for found in map(set, carried.values())])
    groups = tuple(_group(clip, group_label, required=folds is not None) for clip in asked)
    splits = _by_column(asked, split_label) if folds is None else _by_fold(_numbered(groups), folds)
    for taught in (truth[split.train] for split in splits):
        if not (taught.any(axis=0) & ~taught.all(axis=0)).any():
            raise ConfigError(
                f"evaluate.label {asking.label!r}: the clips to learn from show a single class; a probe needs two or more"
            )
    rows = np.array(list(carried), dtype=np.int64)
    return Question(asking=asking, clips=asked, rows=rows, class_names=names, truth=truth, group_names=groups, splits=splits)


def _group(clip: Clip, group_label: str | None, *, required: bool) -> str:
    group = clip.label(group_label) if group_label else None
    if group is None and group_label is not None and required:
        raise ConfigError(
            f"evaluate.group_label {group_label!r} is not on clip {clip.clip_id} ({clip.key}); {_known_labels([clip])}; "
            "set evaluate.group_label to null to keep only the clips of one source together"
        )
    return clip.source_id if group is None else group


def _by_column(clips: Sequence[Clip], split_label: str) -> tuple[Split, ...]:
    parts = [clip.label(split_label) for clip in clips]
    held_out = "test" if "test" in parts else "val"  # most benchmarks keep the labels of their test split
    train, test = (np.flatnonzero([part == name for part in parts]) for name in ("train", held_out))
    if not len(train) or not len(test):
        raise ConfigError(
            f"evaluate.split_label {split_label!r}: of {len(clips)} clips {len(train)} are 'train' and {len(test)} "
            f"{held_out!r}; {_known_labels(clips)}; without such a column set evaluate.folds, such as 5"
        )
    return (Split(train, test),)


def _by_fold(groups: Classes, folds: int) -> tuple[Split, ...]:
    from sklearn.model_selection import GroupKFold  # takes seconds, and most commands never split

    num_groups = len(np.unique(groups))
    if num_groups < folds:
        raise ConfigError(f"evaluate.folds={folds} needs as many groups; the scored clips have {num_groups}")
    return tuple(Split(train, test) for train, test in GroupKFold(folds).split(groups, groups=groups))


def _numbered(names: Sequence[str]) -> Classes:
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _natural_order(name: str) -> tuple[bool, int, str]:
    """Numbers by value before words by letter, so that class 10 follows class 9."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _known_labels(clips: Sequence[Clip]) -> str:
    return f"known label columns: {sorted({key for clip in clips for key in clip.labels})}"
