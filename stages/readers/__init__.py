"""Readers: where sources come from. A file in this folder is a reader, and its name is the name in the YAML."""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from models.config import Config
from stages.places import Place
from stages.storage.workspace import Workspace

Labels = Mapping[str, tuple[str, ...]]
"""Values by column: one for a single label, several for a multi-label. ``class``, ``split`` and ``group`` have a meaning for
evaluation; data sets of actions on things have ``verb`` and ``noun``."""


class Box(NamedTuple):
    """One annotated box at one moment."""

    time_s: float
    """From the start of the source."""
    left: float
    top: float
    right: float
    bottom: float
    """Edges as shares of width and height, from 0 to 1."""
    track: str
    """Whom or what it follows from moment to moment; empty if that is unknown."""
    labels: tuple[str, ...]
    """Its classes."""


class Span(NamedTuple):
    """A part of a source that becomes clips of its own."""

    native_id: str
    """What the annotation calls it."""
    start_s: float
    end_s: float
    labels: Labels
    boxes: tuple[Box, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """One video that was found."""

    key: str
    """Its name below the reader's root, with slashes: what the index calls it."""
    place: Place
    """Where its bytes lie."""
    labels: Labels = dataclasses.field(default_factory=dict)
    """What is annotated about all of it, column by column, as written: class, split, group ..."""
    spans: tuple[Span, ...] | None = None
    """The parts to cut; null cuts all of it."""
    stamp: str = ""
    """The version of its bytes, where the listing tells it: an object's ETag. Empty asks the place."""


class ReaderConfig(Config, ABC):
    """What every reader offers; a file in this folder holds one subclass named ``Config``."""

    @abstractmethod
    def dataset_name(self) -> str:
        """What to call the clips, unless a recipe says otherwise: letters, digits, ``-`` and ``_``."""

    @abstractmethod
    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """Every source there is, each key once, in an order that depends on nothing but what is there; may be a generator.

        Raises:
            SourceMissing: the place to read from is not there.
            ConfigError: its annotations cannot be understood.
        """

    def num_to_make(self, workspace: Workspace) -> int:
        """Videos that listing the sources would make first; none, but for a reader that makes its own."""
        return 0


def plain_name(name: str) -> str:
    """``name`` as a dataset may be called: everything but letters, digits, ``-`` and ``_`` becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "clips"
