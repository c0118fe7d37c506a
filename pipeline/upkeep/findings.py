"""What a check of ``lvmae doctor`` says."""

import dataclasses
from enum import StrEnum


class State(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARN = "warn"
    """It works, and something will go wrong or slowly one day."""
    FAIL = "fail"
    """Something will not work."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    remedy: str = ""

    def record(self) -> dict[str, str]:
        """As one JSON object."""
        return {"check": self.name, "state": self.state.value, "found": self.found, "remedy": self.remedy}


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, State.OK, found)


def warn(name: str, found: str, remedy: str) -> Check:
    """It works for now."""
    return Check(name, State.WARN, found, remedy)


def fail(name: str, found: str, remedy: str) -> Check:
    """It does not work."""
    return Check(name, State.FAIL, found, remedy)
