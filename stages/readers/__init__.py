"""Readers: where sources come from. One file per kind, named as in a recipe.

A reader lists sources and opens none of them: their bytes are hostile until the shard stage has made clips of them.
"""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path

from models.config import Config
from stages.storage.workspace import Workspace


@dataclasses.dataclass(frozen=True)
class Source:
    """One video file that was found."""

    key: str
    """Its name below the reader's root, with slashes: what the index calls it."""
    path: Path
    """Where it lies, absolute."""
    labels: Mapping[str, str]
    """Everything that is annotated about it, column by column, as written: class, split, group ..."""


class ReaderConfig(Config, ABC):
    """What every reader offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def dataset_name(self) -> str:
        """What to call the clips, unless a recipe says otherwise: letters, digits, ``-`` and ``_``."""

    @abstractmethod
    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """Every source there is, each key once, in any order.

        Raises:
            SourceMissing: the place to read from is not there.
            ConfigError: its annotations cannot be understood.
        """


def plain_name(name: str) -> str:
    """``name`` as a dataset may be called: everything but letters, digits, ``-`` and ``_`` becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "clips"
