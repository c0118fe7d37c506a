"""Every way to publish a file, with a fault at every call that it makes to the operating system."""

import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import power
from tests.faults.harness import ERRORS, KILLS, Call, Fault, Job, Laboratory
from tests.faults.work import FLAWS

WAYS = ("publish_bytes", "publish_new", "publishing")
OLD, NEW = "old" * 3000, "new!" * 5000


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    with Laboratory("tests.faults.work") as made:
        yield made


def job(way: str, root: Path, data: str = NEW, **arguments: str) -> Job:
    return Job(f"tests.faults.work:{way}", {"path": str(root / "a" / "b" / "file"), "data": data, **arguments}, str(root))


def fresh(root: Path, old: str | None) -> Path:
    """A root of a trial, with an old version in it or with nothing."""
    root.mkdir(parents=True)
    if old is not None:
        (root / "a" / "b").mkdir(parents=True)
        (root / "a" / "b" / "file").write_text(old)
    return root


def files(root: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in root.rglob("*") if path.is_file()}


def assert_whole(root: Path, old: str | None) -> None:
    """A reader sees the old file or the new one; anything else has a name that no reader looks at."""
    seen = files(root)
    assert seen.pop("file", None) in {old, NEW}
    assert all(name.startswith(".file.") and name.endswith(".tmp") for name in seen)


def assert_healed(laboratory: Laboratory, again: Job, root: Path) -> None:
    """The next run sweeps and publishes, and nothing else is left."""
    arguments = {"way": again.work.split(":")[1], "folder": str(root), **again.arguments}
    done = laboratory.run(Job("tests.faults.work:sweep_and", arguments, str(root)))
    assert done.error is None, done.message
    assert files(root) == {"file": NEW}


def no_sync_retried(calls: tuple[Call, ...]) -> bool:
    """A file whose sync failed is never synced again: the kernel may have dropped its pages."""
    failed = [place for place, call in enumerate(calls) if call.name == "fsync" and call.failed]
    return all(later.name != "fsync" or later.file != calls[place].file for place in failed for later in calls[place + 1 :])


# publish_new never replaces, so that an old version makes no sense for it
CASES = [(way, old) for way in WAYS for old in (None, OLD) if way != "publish_new" or old is None]


@pytest.mark.parametrize(("way", "old"), CASES)
@pytest.mark.parametrize("mode", KILLS)
def test_killed_at_any_call_a_file_is_whole_or_absent_and_the_next_run_makes_it(
    laboratory: Laboratory, tmp_path: Path, way: str, old: str | None, mode: str
) -> None:
    trials = 0
    for number, again, _ in laboratory.sweep(lambda number: job(way, fresh(tmp_path / str(number), old)), mode):
        assert_whole(tmp_path / str(number), old)
        assert_healed(laboratory, again, tmp_path / str(number))
        trials += 1
    assert trials >= 7


@pytest.mark.parametrize(("way", "old"), CASES)
@pytest.mark.parametrize("mode", ERRORS)
def test_an_error_at_any_call_is_raised_shows_nothing_half_and_leaves_nothing_behind(
    laboratory: Laboratory, tmp_path: Path, way: str, old: str | None, mode: str
) -> None:
    trials = 0
    for number, again, outcome in laboratory.sweep(lambda number: job(way, fresh(tmp_path / str(number), old)), mode):
        struck = outcome.calls[number]
        root = tmp_path / str(number)
        assert_whole(root, old)
        assert no_sync_retried(outcome.calls)
        # a temporary file that cannot be removed is swept later, and a folder that is there is what was wanted
        if mode == "short" or struck.name == "unlink" or (mode, struck.name) == ("EIO_after", "mkdir"):
            assert outcome.error is None, outcome.message
            assert files(root).get("file") == NEW
        else:
            assert outcome.raised("OSError"), f"{mode} at {struck}: {outcome.message}"
            assert "injected" in outcome.message
            assert set(files(root)) <= {"file"}, f"{mode} at {struck} left a temporary file"
        assert_healed(laboratory, again, root)
        trials += 1
    assert trials >= 7


@pytest.mark.parametrize("way", ["publish_bytes", "publishing"])
def test_a_second_run_at_any_moment_of_the_first_leaves_one_whole_file(
    laboratory: Laboratory, tmp_path: Path, way: str
) -> None:
    for number in range(100):
        root = fresh(tmp_path / str(number), None)
        paused = job(way, root, OLD)._replace(fault=Fault("pause", number))
        first, second = laboratory.race([paused, job(way, root)])
        assert first.error is second.error is None, first.message + second.message
        assert set(files(root)) == {"file"}
        assert files(root)["file"] in {OLD, NEW}
        if not first.fired:
            break
    assert number >= 7


def test_of_two_runs_interleaved_in_any_way_exactly_one_makes_a_new_file(laboratory: Laboratory, tmp_path: Path) -> None:
    for number in range(100):
        root = fresh(tmp_path / str(number), None)
        paused = job("publish_new", root, OLD)._replace(fault=Fault("pause", number))
        first, second = laboratory.race([paused, job("publish_new", root)])
        assert first.error is second.error is None, first.message + second.message
        assert {first.result, second.result} == {True, False}
        assert files(root) == {"file": OLD if first.result else NEW}
        if not first.fired:
            break
    assert number >= 7


def test_of_four_runs_released_together_exactly_one_makes_a_new_file(laboratory: Laboratory, tmp_path: Path) -> None:
    for repetition in range(15):
        root = fresh(tmp_path / str(repetition), None)
        jobs = [job("publish_new", root, str(number) * 9000) for number in range(4)]
        if repetition % 3 == 2:
            jobs[0] = jobs[0]._replace(fault=Fault("kill_before", 4))
        outcomes = laboratory.race(jobs)
        assert outcomes[0].killed == (repetition % 3 == 2)
        makers = [number for number, outcome in enumerate(outcomes) if outcome.result]
        assert len(makers) == 1
        assert [outcome.error for outcome in outcomes] == [None] * 4
        laboratory.run(Job("tests.faults.work:sweep", {"folder": str(root)}, str(root)))
        assert files(root) == {"file": str(makers[0]) * 9000}


def test_after_a_power_cut_at_any_moment_a_file_is_whole_or_absent_and_once_reported_it_is_there(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    total = 0
    for way in WAYS:
        root = fresh(tmp_path / way, None)
        number, found = power_cuts(laboratory, [job(way, root)])
        assert not found
        total += number
    assert total > 60, "the states must have been enumerated"


@pytest.mark.parametrize("way", WAYS)
def test_what_a_killed_run_left_undurable_is_durable_once_the_next_run_reports(
    laboratory: Laboratory, tmp_path: Path, way: str
) -> None:
    total = 0
    for number in range(100):
        root = fresh(tmp_path / str(number), None)
        killed = job(way, root)._replace(fault=Fault("kill_after", number))
        states, found = power_cuts(laboratory, [killed, job(way, root)])
        assert not found, f"killed after call {number}: {found[:3]}"
        total += states
        if states == 0:
            break
    assert total > 300


@pytest.mark.parametrize("flaw", FLAWS)
@pytest.mark.parametrize("way", WAYS)
def test_without_one_step_of_the_protocol_a_power_cut_does_harm(
    laboratory: Laboratory, tmp_path: Path, way: str, flaw: str
) -> None:
    number, found = power_cuts(laboratory, [job(way, fresh(tmp_path / "root", None), flaw=flaw)])
    assert number > 10
    assert found


def test_writing_directly_is_seen_to_do_harm(laboratory: Laboratory, tmp_path: Path) -> None:
    _, found = power_cuts(laboratory, [job("write_directly", fresh(tmp_path / "power", None))])
    assert found
    torn = []
    for number, _, _ in laboratory.sweep(
        lambda number: job("write_directly", fresh(tmp_path / str(number), None)), "kill_within"
    ):
        torn.append(files(tmp_path / str(number)).get("file") not in {None, NEW})
    assert any(torn)


def power_cuts(laboratory: Laboratory, jobs: list[Job]) -> tuple[int, list[str]]:
    """Run the jobs one after the other; the number of states that a power cut may leave, and what is wrong in them.

    Only the last job reports success; the number is 0 when a fault of an earlier one did not fire.
    """
    runs = [laboratory.run(job._replace(record=True)) for job in jobs]
    if not all(run.fired for job, run in zip(jobs, runs, strict=True) if job.fault):
        return 0, []
    assert runs[-1].error is None, runs[-1].message
    calls = power.joined(*(run.calls for run in runs))
    path = str(jobs[-1].arguments["path"])

    def check(state: power.State) -> str | None:
        data = state.tree.get(path)
        if data is not None and data != NEW.encode():
            return f"{len(data)} bytes that nobody published"
        return "reported, and not there" if data is None and state.moment == len(calls) else None

    return power.violations(calls, check)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_call_of_the_publish_path_escapes_the_count(tmp_path: Path) -> None:
    log, root = tmp_path / "strace.txt", fresh(tmp_path / "root", None)
    with Laboratory("tests.faults.work", under=traced(log)) as laboratory:
        counted = [
            call for way in WAYS for call in laboratory.run(job(way, root / way)._replace(below=str(root), sync=True)).calls
        ]
    assert counted
    assert Counter(call.name for call in counted if call.name != "close") == Counter(kernel_calls(log, root))


def traced(log: Path) -> list[str]:
    """The command that writes down all calls which change a disk."""
    names = "openat,open,creat,write,pwrite64,writev,fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
    return ["strace", "-f", "--seccomp-bpf", "-qq", "-y", "-e", f"trace={names},mkdir,mkdirat,rmdir,ftruncate", "-o", str(log)]


def kernel_calls(log: Path, root: Path, but: tuple[str, ...] = ()) -> list[str]:
    """The names of all calls on paths below ``root`` that change the disk, as the laboratory spells them.

    Args:
        log: what ``traced`` wrote.
        root: of what counts.
        but: parts of paths that do not.
    """
    spelled = {"openat": "create", "unlinkat": "unlink", "renameat": "rename", "renameat2": "rename", "linkat": "link"}
    found = []
    for line in log.read_text().splitlines():
        match = re.match(r"\d+ +(\w+)\((.*)", line)
        if not match or f"{root}" not in match[2] or any(part in match[2] for part in but):
            continue
        if match[1] != "openat" or "O_CREAT" in match[2]:
            found.append(spelled.get(match[1], match[1]))
    return found
