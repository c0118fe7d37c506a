"""How a stage tells whoever runs it how far it is, without knowing who that is."""

from collections.abc import Mapping
from typing import Protocol


class Monitor(Protocol):
    """What a stage reports to while it works; the caller draws bars, writes logs or sends metrics."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Start a piece of work of ``total`` units, ``done`` of which an earlier run already finished."""

    def advance(self, amount: int = 1) -> None:
        """Count ``amount`` more units as finished."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record measurements at one step; names are the field's words with units last (``loss``, ``clips_per_s``)."""

    def show(self, step: int, name: str, png: bytes) -> None:
        """Show a picture of the networks as they are at one step; pictures of one name follow each other."""


class Silent:
    """A monitor that shows nothing: for tests and for callers that only want the outcome."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Do nothing."""

    def advance(self, amount: int = 1) -> None:
        """Do nothing."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def show(self, step: int, name: str, png: bytes) -> None:
        """Do nothing."""
