"""How far a piece of work is, in numbers and in words."""

import dataclasses
import time

from pipeline.wording import duration

_ENOUGH_S = 10.0
"""From less than this no remaining time is foretold."""


@dataclasses.dataclass
class Pace:
    """A piece of work that is under way.

    Args:
        label: what is done.
        total: its units.
        done: those that are finished; ``before`` of them by an earlier run.
    """

    label: str
    total: int
    done: int
    before: int = dataclasses.field(init=False)
    started_s: float = dataclasses.field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.before = self.done

    @property
    def percent(self) -> float:
        """The finished share, from 0 to 100."""
        return min(100.0, 100 * self.done / self.total) if self.total else 100.0

    def words(self) -> str:
        """For example ``precompute: 13 of 45 (29 %), about 4 min 10 s left``."""
        text = f"{self.label}: {self.done} of {self.total} ({self.percent:.0f} %)"
        passed_s, made = time.monotonic() - self.started_s, self.done - self.before
        if made and passed_s >= _ENOUGH_S and self.done < self.total:
            text += f", about {duration(passed_s / made * (self.total - self.done))} left"
        return text
