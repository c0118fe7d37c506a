"""Retrieval: whether the training clips nearest to a tested clip show the same class, by the cosine of their features."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.evals import Classes, Features, MeasureConfig, Sample, directions

CHUNK_QUERIES = 256
"""Clips that ask together; bounds the memory."""


class Config(MeasureConfig):
    """Every tested clip asks once; the training clips of its split are what can be found."""

    name: Literal["retrieval"] = "retrieval"
    """The name in a recipe."""

    ranks: tuple[Annotated[int, Field(gt=0)], ...] = (1, 5, 10)
    """Recall is given within so many nearest clips. The usual ones of video retrieval."""

    @property
    def title(self) -> str:
        """The usual name."""
        return "retrieval"

    def measure(
        self, features: Features, classes: Classes, *, groups: Classes, splits: Sequence[tuple[Classes, Classes]]
    ) -> Mapping[str, Sample]:
        """Recall within each rank, and the mean average precision over the whole order, as ``mAP``."""
        found = [self._of_split(features, classes, *split) for split in splits]
        asking = groups[np.concatenate([test for _, test in splits])]
        return {name: Sample(np.concatenate([one[name] for one in found]), asking) for name in found[0]}

    def _of_split(
        self, features: Features, classes: Classes, train: Classes, test: Classes
    ) -> dict[str, npt.NDArray[np.float64]]:
        gallery, queries = directions(features[train], features[test])
        starts = range(0, len(test), CHUNK_QUERIES)
        chunks = [slice(start, start + CHUNK_QUERIES) for start in starts]
        found = [self._of_queries(queries[rows] @ gallery.T, classes[test][rows], classes[train]) for rows in chunks]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _of_queries(self, cosines: Features, asked: Classes, known: Classes) -> dict[str, npt.NDArray[np.float64]]:
        order = np.argsort(-cosines, axis=1, kind="stable")
        same = known[order] == asked[:, None]  # [queries, gallery], nearest first
        recalls = {f"recall@{rank}": same[:, :rank].any(axis=1).astype(np.float64) for rank in self.ranks}
        return {**recalls, "mAP": average_precision(same)}


def average_precision(same: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Mean precision at the places of the right ones, per row; 0 for a row without any.

    Args:
        same: whether each found clip is right, ``[queries, gallery]``, nearest first.
    """
    precision = same.cumsum(axis=1) / np.arange(1, same.shape[1] + 1)
    found: npt.NDArray[np.float64] = (precision * same).sum(axis=1) / np.maximum(same.sum(axis=1), 1)
    return found
