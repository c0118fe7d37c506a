"""A training stage, killed anywhere and run again, beside the run that was not."""

import collections
import dataclasses
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.storage.artifact import Artifact, read_manifest
from tests.faults.harness import KILLS, Fault, Job, Laboratory, Outcome

FINAL = "final_state.txt"
"""Where a run says what its last checkpoint was, before that is removed."""


@dataclasses.dataclass
class Bench:
    """A laboratory, a root with the inputs of a stage, and what an undisturbed run makes of them.

    Args:
        laboratory: runs the work.
        work: ``module:function`` that runs the stage; its result is the step that it began with.
        inputs: the root to copy.
        stage_folder: where the stage's artifacts are, below a root; calls there count.
        published: the files that must come out the same.
    """

    laboratory: Laboratory
    work: str
    inputs: Path
    stage_folder: str
    published: tuple[str, ...]
    state: str = ""
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    num_calls: int = 0

    def undisturbed(self, root: Path) -> None:
        """Make what all others are held against."""
        outcome = self.run(self.fresh(root))
        assert outcome.error is None, outcome.message
        assert outcome.result == 0
        self.state, self.files = self.ended(root)
        self.num_calls = len(outcome.calls)

    def fresh(self, root: Path) -> Path:
        """A root with the inputs in it."""
        shutil.copytree(self.inputs, root)
        return root

    def run(self, root: Path, fault: Fault | None = None, **arguments: Any) -> Outcome:
        """One run of the stage in a child, of whose calls those below its folder count."""
        return self.laboratory.run(Job(self.work, {"root": str(root), **arguments}, str(root / self.stage_folder), fault))

    def ended(self, root: Path) -> tuple[str, dict[str, bytes]]:
        """The digest of the last checkpoint before publishing, and the published bytes."""
        (manifest,) = root.glob(f"{self.stage_folder}/*/manifest.json")
        made = Artifact(manifest.parent, read_manifest(manifest), manifest)
        return (root / FINAL).read_text(), {name: made.verified(name).read_bytes() for name in self.published}

    def is_the_same(self, root: Path) -> bool:
        """Whether a root ended as the undisturbed one."""
        return self.ended(root) == (self.state, self.files)


def drawn(kind: str, source: random.Random, num_calls: int, most_s: float) -> tuple[Fault | None, dict[str, Any]]:
    """A kill: after a step, at a call to the operating system (saving and publishing make them all), or at any time."""
    if kind == "step":
        return None, {"kill_after_steps": source.randint(1, 9)}
    if kind == "call":
        return Fault(source.choice(KILLS), source.randrange(num_calls)), {}
    return None, {"kill_after_s": source.uniform(0.05, most_s)}


def resumed_after_kills(bench: Bench, place: Path, *, kills: int, num_workers: int, seed: int, most_s: float = 1.5) -> set[int]:
    """Trainings with kills at random points, several each, all of which end as the undisturbed one.

    Returns:
        the steps that the last runs began with.
    """
    source, fired, resumed_from = random.Random(seed), collections.Counter[str](), set[int]()
    for number in range(kills + 1):
        root, story = bench.fresh(place / str(number)), [f"seed {seed}"]
        while fired.total() < kills:
            kind = ("step", "call", "time")[fired.total() % 3]
            fault, arguments = drawn(kind, source, bench.num_calls // 2, most_s)
            story.append(f"{kind} {fault} {arguments}")
            outcome = bench.run(root, fault, num_workers=num_workers, **arguments)
            assert outcome.error is None, f"{story}: {outcome.message}"
            if not outcome.killed:
                break
            fired[kind] += 1
        else:
            last = bench.run(root, num_workers=num_workers)
            assert last.error is None, f"{story}: {last.message}"
            resumed_from.add(last.result)
        assert bench.is_the_same(root), story
        shutil.rmtree(root)
        if fired.total() == kills:
            break
    assert fired.total() == kills, "the faults must fire"
    assert min(fired.values()) >= kills // 3, fired
    return resumed_from
