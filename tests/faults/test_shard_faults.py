"""The stage ``shard`` with a fault at every publishing call: nothing lost, nothing twice, the same bytes in the end."""

import dataclasses
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import power
from tests.faults.harness import Fault, Job, Laboratory, Outcome
from tests.faults.shard_work import BAD
from tests.faults.test_publish_faults import kernel_calls, no_sync_retried, traced

SEED = 20_250_716
SOURCES = {"a.mp4": b"a" * 500, "b.mp4": b"b" * 700, "c.mp4": BAD, "d.mp4": b"d" * 300}
"""Two units of two sources; one source makes no clips, the others two each."""
NUM_CLIPS = 6
CACHE = "seen.parquet"
"""Depends on where and when the sources were seen, and is no part of the dataset."""
CALLS = ("create", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
"""All but closing, which changes nothing on the disk."""
HEAVY = ("torch", "pandas")
"""What libraries import in passing, and publishing has no use for."""


@dataclasses.dataclass
class Bench:
    """A laboratory, sources, and what a run that nothing happens to makes of them."""

    laboratory: Laboratory
    sources: Path
    expected: dict[str, str]

    def job(self, root: Path, **arguments: object) -> Job:
        """A run of the stage; calls for half-made clips do not count, for threads make them."""
        given = {"root": str(root), "sources": str(self.sources), **arguments}
        return Job("tests.faults.shard_work:run", given, str(root), beside=str(root / ".scratch"))

    def sweep(self, folder: Path, mode: str, check: Callable[[Path, Outcome], None], calls: tuple[str, ...] = ()) -> int:
        """A fault at every call, and a run after it; how many trials there were."""
        trials = 0
        for batch in self.laboratory.batches(lambda number: self.job(folder / str(number)), mode, calls=calls, at_once=2):
            roots = [folder / str(trial.number) for trial in batch]
            for root, trial in zip(roots, batch, strict=True):
                check(root, trial.outcome)
            self.heal(roots, f"{mode} at call {[trial.number for trial in batch]} of {calls}")
            trials += len(batch)
        return trials

    def heal(self, roots: list[Path], after: str) -> None:
        """The next run in each ends with the bytes of an undisturbed one, and nothing else."""
        for root, healed in zip(roots, self.laboratory.race([self.job(root) for root in roots]), strict=True):
            assert healed.error is None, f"after {after}: {healed.message}"
            assert tree(root) == self.expected, f"after {after}"
            shutil.rmtree(root)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("sources")
    for name, data in SOURCES.items():
        (folder / name).write_bytes(data)
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    with Laboratory("tests.faults.shard_work", without=HEAVY) as laboratory:
        made = Bench(laboratory, folder, {})
        outcome = laboratory.run(made.job(root))
        assert outcome.error is None, outcome.message
        counts = {name: outcome.result["counts"][name] for name in ("inputs", "committed", "quarantined", "pending")}
        assert counts == {"inputs": 4, "committed": 3, "quarantined": 1, "pending": 0}
        clips = laboratory.run(Job("tests.faults.shard_work:read", {"root": str(root)}, str(root))).result
        assert len({clip_id for clip_id, _ in clips}) == len(clips) == NUM_CLIPS
        made.expected = tree(root)
        yield made


def tree(root: Path) -> dict[str, str]:
    """Every file below ``root`` with its digest, caches aside."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != CACHE]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_promises_kept(root: Path, _: Outcome | None = None) -> None:
    """Whatever a record of a unit or a snapshot names is there, as it says: what a reader sees is whole."""
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    complaint = broken_promise(files)
    assert complaint is None, complaint


def broken_promise(files: power.Tree) -> str | None:
    """What a committed record says of files that are not so; a second opinion that shares no code with the stage."""
    for record, data in files.items():
        kind = record.split("/")[-2]
        if kind not in ("units", "snapshots") or not record.endswith(".json"):
            continue
        try:
            promises = json.loads(data)["files"]
        except ValueError:
            return f"{record} is torn"
        for name, promised in promises.items():
            found = files.get(f"{record.split(f'/{kind}/')[0]}/{name}")
            if found is None or hashlib.sha256(found).hexdigest() != promised["sha256"]:
                return f"{record} promises {name}, which is {'not there' if found is None else 'another'}"
    return None


def test_killed_at_any_call_the_next_run_makes_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    assert bench.sweep(tmp_path / "before", "kill_before", assert_promises_kept, CALLS) >= 90
    assert bench.sweep(tmp_path / "within", "kill_within", assert_promises_kept, ("write",)) >= 12


@pytest.mark.parametrize(
    ("mode", "calls"),
    [
        ("ENOSPC", ("create", "write", "mkdir", "link")),
        ("EIO", ("write", "fsync", "rename")),
        ("EIO_after", ("rename", "link")),
    ],
)
def test_an_error_at_any_call_ends_the_run_with_a_typed_error_and_the_next_one_makes_the_same_bytes(
    bench: Bench, tmp_path: Path, mode: str, calls: tuple[str, ...]
) -> None:
    def check(root: Path, outcome: Outcome) -> None:
        assert outcome.raised("OSError") or outcome.raised("PipelineError"), outcome
        assert "injected" in outcome.message
        assert no_sync_retried(outcome.calls)
        assert_promises_kept(root)

    assert bench.sweep(tmp_path, mode, check, calls) >= 12


def test_a_second_run_at_any_moment_of_the_first_gives_way_or_finds_the_work_done(bench: Bench, tmp_path: Path) -> None:
    busy = 0
    for number in range(0, 1000, 6):
        root = tmp_path / str(number)
        one, other = bench.laboratory.race([bench.job(root)._replace(fault=Fault("pause", number)), bench.job(root)])
        if not one.fired:
            break
        assert one.error is None, one.message
        assert other.error is None or other.raised("ArtifactBusy"), other.message
        busy += other.raised("ArtifactBusy")
        assert tree(root) == bench.expected, f"a second run while the first was at call {number}"
        shutil.rmtree(root)
    assert busy >= 10, "they must have met"


def test_runs_released_together_make_one_snapshot_even_if_one_is_killed(bench: Bench, tmp_path: Path) -> None:
    generator = random.Random(SEED)
    for repetition in range(8):
        root = tmp_path / str(repetition)
        jobs = [bench.job(root) for _ in range(3)]
        number = generator.randrange(20)
        if repetition % 2:
            jobs[0] = jobs[0]._replace(fault=Fault("kill_before", number))
        outcomes = bench.laboratory.race(jobs)
        assert outcomes[0].killed == outcomes[0].fired
        assert all(outcome.error is None or outcome.raised("ArtifactBusy") for outcome in outcomes)
        assert any(outcome.error is None for outcome in outcomes)
        assert_promises_kept(root)
        bench.heal([root], f"a race, seed {SEED}, repetition {repetition}")


def test_after_a_power_cut_at_any_moment_every_promise_is_kept_and_what_was_reported_is_there(
    bench: Bench, tmp_path: Path
) -> None:
    number, found = power_cuts(bench, tmp_path / "root", [])
    assert not found, found[:5]
    assert number > 150


def test_what_a_killed_run_left_undurable_is_durable_once_the_next_run_reports(bench: Bench, tmp_path: Path) -> None:
    total = 0
    for number in range(0, 1000, 6):
        states, found = power_cuts(bench, tmp_path / str(number), [Fault("kill_after", number)])
        assert not found, f"killed after call {number}: {found[:3]}"
        total += states
        if not states:
            break
    assert total > 3000


@pytest.mark.parametrize("flaw", ["file sync", "folder sync"])
def test_without_syncs_a_power_cut_breaks_promises(bench: Bench, tmp_path: Path, flaw: str) -> None:
    number, found = power_cuts(bench, tmp_path / "root", [], flaw=flaw)
    assert number > 150
    assert any("promises" in complaint for complaint in found) or flaw == "folder sync"
    assert found


def power_cuts(bench: Bench, root: Path, faults: list[Fault], **arguments: object) -> tuple[int, list[str]]:
    """A run per fault and one without; the states that a power cut may leave of them, and what is wrong in those."""
    job = bench.job(root, **arguments)._replace(record=True)
    root.mkdir()
    runs = [bench.laboratory.run(job._replace(fault=fault)) for fault in [*faults, None]]
    if not all(run.fired for run in runs[:-1]):
        return 0, []
    assert runs[-1].error is None, runs[-1].message
    calls = [call for call in power.joined(*(run.calls for run in runs)) if CACHE not in call.path]
    promised = len(bench.expected)
    shutil.rmtree(root)

    def check(state: power.State) -> str | None:
        visible = {path: data for path, data in state.tree.items() if not path.endswith(".tmp")}
        complaint = broken_promise(visible)
        if complaint is None and state.moment == len(calls) and len(visible) != promised:
            return f"reported {promised} files, and {len(visible)} are there"
        return complaint

    return power.violations(calls, check, seed=SEED)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_call_by_which_the_stage_publishes_escapes_the_count(bench: Bench, tmp_path: Path) -> None:
    log, root = tmp_path / "strace.txt", tmp_path / "root"
    with Laboratory("tests.faults.shard_work", without=HEAVY, under=traced(log)) as laboratory:
        outcome = laboratory.run(bench.job(root)._replace(sync=True))
    assert outcome.error is None, outcome.message
    counted = Counter(call.name for call in outcome.calls if CACHE not in call.path and call.name != "close")
    kernel = Counter(kernel_calls(log, root, but=(CACHE, ".scratch")))
    assert counted == kernel
