"""Situations from which a run is resumed, and how many units that executes beside how many are needed.

A run of the whole recipe fails in the stage precompute over a clip that cannot be read; the clip is made good again; something
else may happen as well; then a person resumes. Needed is what is not there, counted before. Executed is what the stages report,
held against the times of change of the files that stand for units.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stages.storage.artifact import read_manifest
from stages.storage.workspace import FOLDERS
from tests.faults.chaos import WHOLE, Attempt, Episode, Site
from tests.faults.harness import REPOSITORY
from tests.pipelines import STAGES

UNIT_FILES = {"shard": "clips/*/units/*.json", "precompute": "targets/*/ledger/*.parquet"}
"""The file that a unit has when it is done, in the stages whose units have one."""
_LINE = re.compile(r"(\w+)\s+(?:done|reused)\s+([\d,]+) done, ([\d,]+) reused")
_EDITED = "the edited code runs"
_COPIED = ("models", "stages", "pipeline", "tests")


class Row(NamedTuple):
    """What resuming from a situation took."""

    situation: str
    resumed_by: str
    total: int
    needed: int
    executed: int
    by_stage: dict[str, int]
    """Executed, of the stages that executed anything."""
    files_changed: dict[str, int]
    """Of the files that stand for units: those written since."""


def copy_of_project(place: Path) -> Path:
    """A copy of the code that runs, to be edited."""
    for name in _COPIED:
        shutil.copytree(REPOSITORY / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "prefect.yaml", place / "prefect.yaml")
    return place


class Table:
    """Rows, measured one after the other on a root on which all stages are made.

    Args:
        site: where; its project is a copy.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.units = {stage: _units(site.root, stage) for stage in STAGES}

    @property
    def total(self) -> int:
        """Units of all stages."""
        return sum(self.units.values())

    def retry(self) -> Row:
        """The button, after a failure."""
        return self._after_failure("failed run", "Retry")

    def new_run(self) -> Row:
        """A new run with the same parameters."""
        return self._after_failure("failed run", "new run")

    def one_stage(self) -> Row:
        """The deployment of the failed stage alone."""
        return self._after_failure("failed run", "run of the stage's deployment", stage="precompute")

    def edited_code(self) -> Row:
        """The source of the failed stage was changed, and its VERSION was not."""

        def edit() -> None:
            module = self.site.project / "stages" / "precompute.py"
            text = module.read_text()
            changed = text.replace("    by_shard = Index(", f"    print({_EDITED!r}, flush=True)\n    by_shard = Index(", 1)
            assert changed != text
            module.write_text(changed)

        row = self._after_failure("failed run, code edited since", "Retry", edit, is_cold=True)
        assert self.site.worker_log("gpu").read_text().count(_EDITED) == 1, "the edited code must have run"
        return row

    def lost_result_storage(self) -> Row:
        """Whatever Prefect keeps beside its database is gone, as in a new container."""

        def lose() -> None:
            shutil.rmtree(self.site.server.home / "storage", ignore_errors=True)
            self._restart_workers(PREFECT_HOME=str(self.site.folder / f"home-{time.monotonic_ns()}"))

        return self._after_failure("failed run, result storage lost, worker in a new container", "Retry", lose)

    def lost_database(self) -> Row:
        """The server begins with an empty database."""

        def lose() -> None:
            server = self.site.server
            server.kill()
            for path in server.home.glob("prefect.db*"):
                path.unlink()
            server.restart()
            self.site.deploy()
            self._restart_workers()

        return self._after_failure("failed run, server's database lost", "new run", lose)

    def nothing_missing(self) -> Row:
        """A run when everything is there."""
        return self._run("everything made", WHOLE, needed=0)

    def one_stage_made(self) -> Row:
        """A stage's deployment when it is there."""
        return self._run("everything made", "precompute", needed=0)

    def lost_file(self, stage: str, pattern: str, needed: int) -> Row:
        """One file of a finished stage was deleted."""
        lost = sorted(self.site.root.glob(pattern))[-1]
        lost.unlink()
        return self._run(f"file deleted: {Path(pattern).name} of {stage}", WHOLE, needed=needed)

    def changed_parameter(self) -> Row:
        """Another value of what decides bytes: its stage and all that read it."""
        needed = sum(self.units[stage] for stage in ("pretrain", "evaluate", "export"))
        return self._run("everything made, pretrain.seed changed", WHOLE, needed=needed, overrides=["pretrain.seed=1"])

    def changed_execution(self) -> Row:
        """Another value of what only decides how it is run."""
        return self._run("everything made, pretrain.num_workers changed", WHOLE, needed=0, overrides=["pretrain.num_workers=1"])

    def _restart_workers(self, **more: str) -> None:
        for pool, process in self.site.workers.items():
            process.kill()
            process.wait()
            self.site.start_worker(pool, **more)

    def _after_failure(
        self,
        situation: str,
        how: str,
        happens: Callable[[], None] = lambda: None,
        *,
        stage: str = WHOLE,
        is_cold: bool = False,
    ) -> Row:
        self.site.reset("precompute")
        attempt = Attempt(self.site, Episode(WHOLE, is_cold, ()))
        with _spoilt_clip(self.site.root):
            attempt.start()
            assert (ended := attempt.ended()) == "FAILED", f"it must fail, and is {ended}"
        happens()
        needed = self.units["precompute"] - len(list(self.site.root.glob(UNIT_FILES["precompute"])))
        assert 0 < needed < self.units["precompute"], "it must have failed in the middle"
        if stage != WHOLE:
            attempt = Attempt(self.site, Episode(stage, is_cold, ()))
        resume = attempt.resume if how == "Retry" else lambda _: attempt.start()
        return self._measured(situation, how, attempt, lambda: resume("retry"), needed=needed)

    def _run(self, situation: str, stage: str, *, needed: int, overrides: list[str] | None = None) -> Row:
        attempt = Attempt(self.site, Episode(stage, False, ()), overrides=overrides or [])
        how = "new run" if stage == WHOLE else "run of the stage's deployment"
        return self._measured(situation, how, attempt, attempt.start, needed=needed)

    def _measured(self, situation: str, how: str, attempt: Attempt, begin: Callable[[], None], *, needed: int) -> Row:
        log = self.site.worker_log(attempt.pool)
        said, began_ns = log.stat().st_size, time.time_ns()
        begin()
        assert attempt.ended() == "COMPLETED", attempt.state()
        attempt.finish("retry")
        time.sleep(1)  # the worker passes on what its flow run said
        reported = {stage: int(done.replace(",", "")) for stage, done, _ in _LINE.findall(log.read_text()[said:])}
        assert reported, "the stages must have reported"
        executed = {stage: done for stage, done in reported.items() if done}
        changed = {
            stage: sum(path.stat().st_mtime_ns >= began_ns for path in self.site.root.glob(pattern))
            for stage, pattern in UNIT_FILES.items()
        }
        assert all(changed[stage] == executed.get(stage, 0) for stage in UNIT_FILES), (changed, executed)
        return Row(situation, how, self.total, needed, sum(executed.values()), executed, changed)


def _units(root: Path, stage: str) -> int:
    if stage in UNIT_FILES:
        return len(list(root.glob(UNIT_FILES[stage])))
    (manifest,) = root.glob(f"{FOLDERS[stage]}/*/manifest.json")
    return read_manifest(manifest).counts["units"]


@contextlib.contextmanager
def _spoilt_clip(root: Path) -> Iterator[None]:
    """The last shard of clips with other bytes in its middle."""
    path = max(root.glob("clips/*/shards/*.tar"))
    data, times = path.read_bytes(), path.stat()
    half = len(data) // 2
    path.write_bytes(data[:half] + bytes(255 - byte for byte in data[half : half + 4096]) + data[half + 4096 :])
    try:
        yield
    finally:
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
