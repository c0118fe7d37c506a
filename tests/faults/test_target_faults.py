"""Publishing and adopting targets with a fault at every call: nothing half visible, no donor touched, the same bytes."""

import dataclasses
import hashlib
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from stages.errors import ArtifactDamaged
from tests.faults import power, target_work
from tests.faults.harness import Fault, Job, Laboratory, Outcome
from tests.faults.test_publish_faults import kernel_calls, no_sync_retried, traced
from tests.stages.target_files import contents, listing

SEED = 20_250_721
CALLS = ("create", "write", "fsync", "rename", "link", "unlink", "mkdir", "rmdir")
"""All but closing, which changes nothing on the disk."""
HEAVY = ("torch", "pandas")
"""What libraries import in passing, and publishing has no use for."""


@dataclasses.dataclass
class Bench:
    """A laboratory, a root with the targets of an older snapshot, and what an undisturbed run makes of a newer one there."""

    laboratory: Laboratory
    older: Path
    donor: Mapping[str, tuple[int, bytes]]
    expected: Mapping[str, bytes]
    folder: str
    """Of the newer targets, below the root."""

    def fresh(self, root: Path) -> Path:
        """A root with the older targets in it."""
        shutil.copytree(self.older, root)
        return root

    def job(self, root: Path, work: str = "run", **arguments: object) -> Job:
        """A run on the newer snapshot: one unit is adopted, one is written."""
        given = {"root": str(root), "snapshot": 1, **arguments}
        return Job(f"tests.faults.target_work:{work}", given, str(root))

    def sweep(
        self, folder: Path, mode: str, check: Callable[[Path, Outcome], None], calls: tuple[str, ...], heal_every: int = 1
    ) -> int:
        """A fault at every call, and a run after it or after some of them; how many trials there were."""
        trials = 0
        fresh = lambda number: self.fresh(folder / str(number))  # noqa: E731
        for batch in self.laboratory.batches(lambda number: self.job(fresh(number)), mode, calls=calls, at_once=2):
            for trial in batch:
                root = folder / str(trial.number)
                self.assert_nothing_half(root)
                check(root, trial.outcome)
            if trials // 2 % heal_every == 0:
                roots = [folder / str(trial.number) for trial in batch]
                self.heal(roots, f"{mode} at {[trial.number for trial in batch]} of {calls}")
            trials += len(batch)
        return trials

    def assert_nothing_half(self, root: Path) -> None:
        """A reader sees whole targets or none, and the older ones as they were."""
        assert listing(root / self.donor_folder) == self.donor
        newer = target_work.found(str(root), snapshot=1)
        if newer:
            assert visible(newer.folder) == self.expected
            assert len(target_work.readable(newer)) == 3

    @property
    def donor_folder(self) -> str:
        """Of the older targets, below the root."""
        return next(self.older.glob("targets/*")).relative_to(self.older).as_posix()

    def heal(self, roots: list[Path], after: str) -> None:
        """The next run in each ends with the bytes of an undisturbed one, and nothing else."""
        for root, healed in zip(roots, self.laboratory.race([self.job(root) for root in roots]), strict=True):
            assert healed.error is None, f"after {after}: {healed.message}"
            assert visible(root / self.folder) == self.expected, f"after {after}"
            assert listing(root / self.donor_folder) == self.donor, f"after {after}"
            shutil.rmtree(root)


def visible(folder: Path) -> dict[str, bytes]:
    """What a folder holds, but for the temporary name of its manifest: a kill after the manifest was there leaves that."""
    files = contents(folder)
    return {name: data for name, data in files.items() if not (name.startswith(".manifest.json.") and "manifest.json" in files)}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    older, root = tmp_path_factory.mktemp("older") / "root", tmp_path_factory.mktemp("undisturbed") / "root"
    with Laboratory("tests.faults.target_work", without=HEAVY) as laboratory:
        assert laboratory.run(Bench(laboratory, older, {}, {}, "").job(older, snapshot=0)).error is None
        shutil.copytree(older, root)
        outcome = laboratory.run(Bench(laboratory, root, {}, {}, "").job(root))
        assert outcome.error is None, outcome.message
        assert (outcome.result["done"], outcome.result["reused"]) == (1, 1)
        assert Counter(call.name for call in outcome.calls)["link"] == 4 + 1, "four files of a unit, and the manifest"
        made = target_work.found(str(root), snapshot=1)
        assert made
        anew = laboratory.run(Bench(laboratory, root, {}, {}, "").job(root.parent / "alone"))
        assert anew.result["done"] == 2
        assert anew.result["digest"] == outcome.result["digest"]
        donor = listing(next(older.glob("targets/*")))
        yield Bench(laboratory, older, donor, contents(made.folder), made.folder.relative_to(root).as_posix())


@pytest.mark.parametrize(
    ("mode", "calls", "least"),
    [("kill_before", CALLS, 120), ("kill_within", ("write",), 10), ("kill_after", ("rename", "link", "unlink"), 15)],
)
def test_killed_at_any_call_the_next_run_makes_the_same_bytes(
    bench: Bench, tmp_path: Path, mode: str, calls: tuple[str, ...], least: int
) -> None:
    assert bench.sweep(tmp_path, mode, lambda root, outcome: None, calls) >= least


@pytest.mark.parametrize(
    ("mode", "calls", "least"),
    [
        ("ENOSPC", ("create", "write", "mkdir", "link"), 30),
        ("EIO", ("write", "rename"), 20),
        ("EIO", ("fsync",), 60),
        ("EIO_after", ("rename", "link"), 15),
    ],
)
def test_an_error_at_any_call_ends_the_run_with_a_typed_error_and_the_next_one_makes_the_same_bytes(
    bench: Bench, tmp_path: Path, mode: str, calls: tuple[str, ...], least: int
) -> None:
    def check(root: Path, outcome: Outcome) -> None:
        assert outcome.raised("OSError") or outcome.raised("PipelineError"), outcome
        assert "injected" in outcome.message
        assert str(root) in outcome.message, "it must name the path"
        assert no_sync_retried(outcome.calls)

    assert bench.sweep(tmp_path, mode, check, calls, heal_every=3 if calls == ("fsync",) else 1) >= least


def test_a_kernel_that_takes_half_of_what_is_written_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    def check(root: Path, outcome: Outcome) -> None:
        assert outcome.error is None, outcome.message
        assert contents(root / bench.folder) == bench.expected

    assert bench.sweep(tmp_path, "short", check, ("write",)) >= 10


def test_a_second_run_at_any_moment_of_the_first_gives_way_or_finds_the_work_done(bench: Bench, tmp_path: Path) -> None:
    busy = 0
    for number in range(0, 1000, 12):
        root = bench.fresh(tmp_path / str(number))
        one, other = bench.laboratory.race([bench.job(root)._replace(fault=Fault("pause", number)), bench.job(root)])
        if not one.fired:
            break
        assert one.error is None, one.message
        assert other.error is None or other.raised("ArtifactBusy"), other.message
        busy += other.raised("ArtifactBusy")
        assert contents(root / bench.folder) == bench.expected, f"a second run while the first was at call {number}"
        shutil.rmtree(root)
    assert busy >= 8, "they must have met"


def test_two_writers_of_the_same_units_make_the_same_bytes_even_if_no_lock_holds(bench: Bench, tmp_path: Path) -> None:
    unlocked = {name: data for name, data in bench.expected.items() if name != "manifest.json"}
    met = 0
    for number in range(0, 1000, 5):
        root = bench.fresh(tmp_path / str(number))
        paused = bench.job(root, "fill_unlocked")._replace(fault=Fault("pause", number))
        one, other = bench.laboratory.race([paused, bench.job(root, "fill_unlocked")])
        if not one.fired:
            break
        assert one.error is other.error is None, one.message + other.message
        assert contents(root / bench.folder) == unlocked, f"a second writer while the first was at call {number}"
        assert listing(root / bench.donor_folder) == bench.donor
        met += 1
        shutil.rmtree(root)
    assert met >= 20


def test_a_writer_that_is_killed_beside_another_does_no_harm(bench: Bench, tmp_path: Path) -> None:
    kills = 0
    for number in random.Random(SEED).sample(range(80), 12):
        root = bench.fresh(tmp_path / str(number))
        killed = bench.job(root, "fill_unlocked")._replace(fault=Fault("kill_within", number))
        one, other = bench.laboratory.race([killed, bench.job(root, "fill_unlocked")])
        assert one.killed == one.fired  # the faster the other one is, the fewer calls are left for this one
        assert other.error is None, other.message
        kills += one.killed
        bench.heal([root], f"a kill at call {number}, seed {SEED}, beside another writer")
    assert kills >= 6


def test_another_tokenizer_between_runs_makes_other_targets_and_leaves_the_old_ones(bench: Bench, tmp_path: Path) -> None:
    root = bench.fresh(tmp_path / "root")
    killed = bench.laboratory.run(bench.job(root)._replace(fault=Fault("kill_before", 100, CALLS)))
    assert killed.killed
    begun = contents(root / bench.folder)
    assert any(name.startswith("ledger/") for name in begun)
    other = bench.laboratory.run(bench.job(root, tokenizer="another"))
    assert (other.result["done"], other.result["reused"]) == (2, 0), "a unit of another tokenizer is another unit"
    assert contents(root / bench.folder) == begun
    bench.heal([root], "a run with another tokenizer")


def test_after_a_power_cut_at_any_moment_every_promise_is_kept_and_what_was_reported_is_there(
    bench: Bench, tmp_path: Path
) -> None:
    number, found = power_cuts(bench, tmp_path / "root")
    assert not found, found[:5]
    assert number > 300


@pytest.mark.parametrize("flaw", ["file sync", "folder sync"])
def test_without_syncs_a_power_cut_breaks_promises(bench: Bench, tmp_path: Path, flaw: str) -> None:
    number, found = power_cuts(bench, tmp_path / "root", flaw)
    assert number > 300
    assert found


def power_cuts(bench: Bench, root: Path, flaw: str = "") -> tuple[int, list[str]]:
    """The older and then the newer targets are made; states that a power cut may leave, and what is wrong in them."""
    root.mkdir()
    jobs = [bench.job(root, snapshot=snapshot, flaw=flaw)._replace(record=True) for snapshot in (0, 1)]
    runs = [bench.laboratory.run(job) for job in jobs]
    assert [run.error for run in runs] == [None, None]
    calls = power.joined(*(run.calls for run in runs))
    promised = {f"{root}/{name}": data for name, data in contents(root).items()}
    shutil.rmtree(root)

    def check(state: power.State) -> str | None:
        visible = {path: data for path, data in state.tree.items() if not path.endswith(".tmp")}
        complaint = broken_promise(visible, promised)
        if complaint is None and state.moment == len(calls) and visible != promised:
            return "reported, and not all of it is there"
        return complaint

    return power.violations(calls, check, seed=SEED)


def broken_promise(files: power.Tree, whole: Mapping[str, bytes]) -> str | None:
    """What a manifest or a ledger row that is there says of files that are not so; shares no code with the stage."""
    for path, data in files.items():
        folder, _, name = path.partition("/targets/")[2].partition("/")
        base = f"{path.partition('/targets/')[0]}/targets/{folder}/"
        if data != whole.get(path):
            return f"{path} is torn"
        if name == "manifest.json":
            for promised, record in json.loads(data)["files"].items():
                found = files.get(base + promised)
                if found is None or hashlib.sha256(found).hexdigest() != record["sha256"]:
                    return f"{path} promises {promised}, which is {'not there' if found is None else 'another'}"
        elif name.startswith("ledger/"):  # what it names are the files of one unit, and they spell its number
            ordinal = name[len("ledger/part-") :][:6]
            wanted = {other for other in whole if other.startswith(base) and ordinal in other.removeprefix(base)}
            if lost := {other for other in wanted if other not in files and not other.endswith("manifest.json")}:
                return f"{path} promises {sorted(lost)}"
    return None


def test_a_donor_that_is_damaged_is_not_adopted_from_and_its_unit_is_made_anew(bench: Bench, tmp_path: Path) -> None:
    root = bench.fresh(tmp_path / "root")
    hurt = next(root.glob("targets/*/targets.zarr/000000/codes/c.*"))
    data = bytearray(hurt.read_bytes())
    data[10] ^= 1
    hurt.write_bytes(data)
    outcome = bench.laboratory.run(bench.job(root))
    assert (outcome.error, outcome.result["done"]) == (None, 2)
    assert contents(root / bench.folder) == bench.expected
    older = target_work.found(str(root), snapshot=0)
    assert older
    with pytest.raises(ArtifactDamaged, match="crc32c differs"):
        target_work.readable(older)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_call_by_which_targets_are_published_escapes_the_count(bench: Bench, tmp_path: Path) -> None:
    log, root = tmp_path / "strace.txt", bench.fresh(tmp_path / "root")
    with Laboratory("tests.faults.target_work", without=HEAVY, under=traced(log)) as laboratory:
        outcome = laboratory.run(bench.job(root)._replace(sync=True))
    assert outcome.error is None, outcome.message
    counted = Counter(call.name for call in outcome.calls if call.name != "close")
    assert counted == Counter(kernel_calls(log, root))
