"""A stage's pieces of work as Prefect tasks: the same results and bytes as without, whatever runner they are given to."""

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prefect import flow
from prefect.settings import PREFECT_LOCAL_STORAGE_PATH, temporary_settings
from prefect.states import Failed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner

from pipeline.orchestration import fan_out
from pipeline.orchestration.fan_out import DASK_ADDRESS, RUNNER, OverTasks, as_task, chosen_runners
from stages.errors import ArtifactDamaged, ConfigError
from stages.fan_out import AHEAD, over_processes
from tests.pipeline.errands import Errand, errands, refuse, write, write_slowly, write_with_one_fault, write_with_one_kill
from tests.pipelines import SMOKE, artifact_files

if TYPE_CHECKING:
    from distributed import LocalCluster

OVERLAYS = [name for name in SMOKE[2:] if not name.startswith("--")]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own


def custom_runner(num_workers: int) -> TaskRunner[Any]:
    return ThreadPoolTaskRunner(max_workers=num_workers + 1)


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """Where Prefect would keep results."""
    with temporary_settings({PREFECT_LOCAL_STORAGE_PATH: tmp_path / "storage"}):
        yield tmp_path / "storage"


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (RUNNER, DASK_ADDRESS, fan_out.RAY_ADDRESS):
        monkeypatch.delenv(name, raising=False)


def in_flow(stage: Callable[[OverTasks], Any]) -> Any:
    """What ``stage`` returns, called as a stage is: in a task of a flow, with a fan-out that the flow made."""

    @flow(name="fan-out", persist_result=False)
    def run() -> Any:
        over = OverTasks("toy-unit", chosen_runners())
        return as_task(lambda: stage(over), name="toy")()

    return run()


def test_pieces_are_numbered_tasks_that_are_repeated_when_the_system_fails_them(
    server: None, storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "_RETRY_DELAYS_S", [0.0, 0.0])
    ticks: list[None] = []
    taken: list[int] = []
    endless = (Errand(taken.append(place) or place, tmp_path) for place in itertools.count())

    def stage(over: OverTasks) -> list[tuple[int, str, int]]:
        made = list(over(write_with_one_fault, errands(tmp_path, 6), num_workers=2, ticked=lambda: ticks.append(None), total=6))
        with pytest.raises(ConfigError, match="not to be tried again"):
            list(over(refuse, errands(tmp_path, 1), num_workers=2, ticked=lambda: None))
        results = over(write, endless, num_workers=2, ticked=lambda: None)
        assert len(list(itertools.islice(results, 3))) == 3
        results.close()
        return made

    results = sorted(in_flow(stage))
    assert results == [(place, f"toy-unit {place:06d}", 2 if place == 3 else 1) for place in range(6)]
    assert len(ticks) == 12, "those of an attempt that failed do not count"
    assert [folder.name for folder in tmp_path.glob("refused-*")] == ["refused-1"]
    assert len(taken) <= 3 + AHEAD * 2
    assert not [path for path in storage.rglob("*") if path.is_file()]


def test_more_pieces_than_a_flow_run_may_have_tasks_go_in_batches(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "_MAX_TASKS", 3)
    ticks: list[None] = []

    def stage(over: OverTasks) -> list[tuple[int, str, int]]:
        return list(over(write, errands(tmp_path, 8), num_workers=2, ticked=lambda: ticks.append(None), total=8))

    results = sorted(in_flow(stage))
    names = ["toy-unit 000000 to 000002"] * 3 + ["toy-unit 000003 to 000005"] * 3 + ["toy-unit 000006 to 000007"] * 2
    assert results == [(place, name, 1) for place, name in enumerate(names)]
    assert len(ticks) == 16


def test_a_killed_process_is_replaced_and_its_piece_done_again(
    server: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNNER, "processes")
    assert written(tmp_path, write_with_one_kill, num_workers=1) == expected(3)
    assert (tmp_path / "first").exists()


def test_a_dask_worker_is_killed_and_what_it_had_done_may_be_done_again(
    server: None, cluster: "LocalCluster", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNNER, "dask")
    monkeypatch.setenv(DASK_ADDRESS, cluster.scheduler_address)
    killed: list[int] = []

    def kill() -> None:
        """End the worker that did the first errand, once others are done as well."""
        while len(names := sorted(tmp_path.glob("ran-*"), key=lambda path: path.stat().st_mtime_ns)) < 3:
            time.sleep(0.02)
        killed.append(int(names[0].name.split("-")[2]))
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert written(tmp_path, write_slowly, num_workers=2, count=8) == expected(8)
    killer.join()
    ran = [path.name.split("-") for path in tmp_path.glob("ran-*")]
    assert killed
    assert {int(pid) for _, _, pid, _ in ran} > {*killed}, "another worker went on"
    assert len(ran) >= 8, "what was in its hands may have been begun again"


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_shards_and_targets_from_a_cluster_are_those_of_a_run_without_prefect(
    server: None, name: str, smoke_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    from pipeline.orchestration import flows

    monkeypatch.setenv(RUNNER, name)
    variable, address = request.getfixturevalue(f"{name}_address")
    monkeypatch.setenv(variable, address)
    asked = {"recipe": "lvmae", "overlays": OVERLAYS, "root": str(tmp_path), "tracking": False}
    (report,) = flows.run_shard(**asked, overrides=["shard.num_workers=2"])
    assert report.outcome.units_done > 1
    shutil.copytree(smoke_root / "tokenizers", tmp_path / "tokenizers")
    (report,) = flows.run_precompute(**asked, overrides=["precompute.num_shards_at_once=2"])
    assert report.outcome.units_done > 1
    for folder in ("clips", "targets"):
        assert data_files(tmp_path / folder) == data_files(smoke_root / folder)


def data_files(folder: Path) -> dict[str, str]:
    """All files but those that tell how a run was asked for: the resolved recipe, and the manifests that name it."""
    told = (".recipe.yaml", "/recipe.yaml", "manifest.json")
    found = artifact_files(folder).items()
    return {name: digest for name, digest in found if not name.endswith(told) and "/snapshots/" not in name}


@pytest.fixture(scope="module")
def cluster() -> Iterator["LocalCluster"]:
    """Two worker processes of Dask."""
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as made:
        yield made


@pytest.fixture
def dask_address(cluster: "LocalCluster") -> tuple[str, str]:
    return DASK_ADDRESS, cluster.scheduler_address


@pytest.fixture
def ray_address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """A Ray of this machine."""
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield fan_out.RAY_ADDRESS, context.address_info["gcs_address"]
    finally:
        ray.shutdown()


def written(
    folder: Path, function: Callable[[Errand], tuple[int, str, int]], *, num_workers: int, count: int = 3
) -> dict[str, bytes]:
    """The files that some errands make."""

    def stage(over: OverTasks) -> int:
        return len(list(over(function, errands(folder, count), num_workers=num_workers, ticked=lambda: None)))

    assert in_flow(stage) == count
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def expected(count: int) -> dict[str, bytes]:
    return {f"{place}.bin": bytes(place) for place in range(count)}


def test_shards_from_a_flow_are_those_of_a_run_without_one(server: None, smoke_root: Path, tmp_path: Path) -> None:
    from pipeline.orchestration import flows  # here, so that worker processes need not import the stages

    (report,) = flows.run_shard(recipe="lvmae", overlays=OVERLAYS, root=str(tmp_path), tracking=False)
    assert report.outcome.units_done > 1
    assert artifact_files(tmp_path / "clips") == artifact_files(smoke_root / "clips")


def test_a_stage_fans_out_over_processes_unless_it_is_told_otherwise() -> None:
    from pipeline.runner import Run

    assert Run.__dataclass_fields__["fan_out"].default is over_processes


@pytest.mark.parametrize(
    ("name", "kind"),
    [("", ThreadPoolTaskRunner), ("threads", ThreadPoolTaskRunner), ("processes", ProcessPoolTaskRunner)],
)
def test_runners_go_by_short_names(name: str, kind: type[TaskRunner[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER, name)
    assert isinstance(chosen_runners()(2), kind)


def test_a_runner_may_be_a_function_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER, f"{__name__}:custom_runner")
    assert chosen_runners()(2) == ThreadPoolTaskRunner(max_workers=3)


@pytest.mark.parametrize("name", ["thread", "tests.pipeline", f"{__name__}:absent", "absent_module:runner"])
def test_an_unknown_runner_is_an_error_of_the_setting(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUNNER, name)
    with pytest.raises(ConfigError, match=f"{RUNNER}='{name}'"):
        chosen_runners()


@pytest.mark.parametrize("name", ["dask", "ray"])
def test_a_runner_that_is_not_installed_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, f"prefect_{name}", None)
    monkeypatch.setenv(RUNNER, name)
    with pytest.raises(ConfigError, match=rf"pip install 'lvmae\[{name}\]'"):
        chosen_runners()


def test_a_cluster_that_is_there_is_taken_by_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("prefect_dask")
    monkeypatch.setenv(RUNNER, "dask")
    monkeypatch.setenv(DASK_ADDRESS, "tcp://192.0.2.1:8786")
    assert chosen_runners()(2).address == "tcp://192.0.2.1:8786"


@pytest.mark.parametrize(
    ("error", "transient"),
    [(OSError("disk"), True), (ConnectionError(), True), (ArtifactDamaged("x"), False), (ConfigError("x"), False)],
)
def test_only_what_the_system_failed_is_worth_repeating(error: Exception, transient: bool) -> None:
    assert fan_out.is_transient(None, None, Failed(data=error)) is transient
