"""Pretraining by torchrun from a run: how it is asked for, what becomes of its errors, and the runs of other nodes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.states import Failed

from pipeline.launching import launch, nodes
from pipeline.launching.launch import LAUNCH, NODES, PROCESSES, STAGE, Meeting, chosen_launch
from pipeline.recipe import Request
from stages.errors import ConfigError

MEETING = Meeting(num_nodes=3, processes=2, address="127.0.0.1:29500", name="0123")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own

SUMMARY = """
E0000 failed (exitcode: {code}) local_rank: 1 (pid: 7) of binary: python
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : here
  rank      : 3 (local_rank: 1)
  exitcode  : {code} (pid: 7)
  error_file: <N/A>
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (LAUNCH, NODES, PROCESSES, nodes.WAIT_S):
        monkeypatch.delenv(name, raising=False)


def test_without_a_word_of_it_nothing_is_launched(request_: Request) -> None:
    assert chosen_launch(request_, "root", nodes.beside) == {}


def test_the_environment_says_how_many(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCH, "torchrun")
    monkeypatch.setenv(NODES, "4")
    monkeypatch.setenv(PROCESSES, "8")
    made = chosen_launch(request_, "root", nodes.beside)
    assert {*made} == {STAGE}
    assert (made[STAGE].nodes, made[STAGE].processes) == (4, 8)


@pytest.mark.parametrize(("name", "value"), [(LAUNCH, "mpirun"), (NODES, "0"), (PROCESSES, "two")])
def test_a_variable_that_does_not_fit_is_named(
    request_: Request, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(LAUNCH, "torchrun")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name}='{value}'"):
        chosen_launch(request_, "root", nodes.beside)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (2, "PipelineError", r"^batches do not divide \(rank 3 ended with exit code 2; its log: .*/1/stderr\.log\)$"),
        (1, "OSError", r"^rank 3 ended with exit code 1; its log: .*; run again to continue .*: batches do not divide$"),
        (-9, "OSError", r"^rank 3 ended with signal 9; its log: .*/1/stderr\.log; run again to continue"),
    ],
)
def test_an_error_names_the_rank_that_failed_first_and_its_log(code: int, kind: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "name" / "attempt_0" / "1"
    folder.mkdir(parents=True)
    (folder / "stderr.log").write_text("some warning\nerror: batches do not divide\n")
    error = launch._explained(1, SUMMARY.format(code=code), tmp_path)
    assert type(error).__name__ == kind
    with pytest.raises(type(error), match=said):
        raise error


def test_where_torchrun_names_no_rank_its_own_end_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=f"torchrun ended with signal 9 .* below {tmp_path}"):
        raise launch._explained(-9, "", tmp_path)


# other nodes


@pytest.fixture
def client(server: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[SyncPrefectClient]:
    monkeypatch.setattr(nodes, "_LOOK_S", 0.0)
    with get_client(sync_client=True) as made:
        yield made


@pytest.fixture
def deployed(client: SyncPrefectClient) -> Iterator[Callable[[int | None], None]]:
    """Makes the deployment of a node, in a pool where so many may run at once."""
    made: list[tuple[UUID, str]] = []

    def deploy(limit: int | None) -> None:
        pool = f"nodes-{limit}"
        client.create_work_pool(WorkPoolCreate(name=pool, type="process", concurrency_limit=limit))
        flow = client.create_flow_from_name("lvmae-node")
        made.append((client.create_deployment(flow, name="node", work_pool_name=pool), pool))

    yield deploy
    for identity, pool in made:
        client.delete_deployment(identity)
        client.delete_work_pool(pool)


def test_other_nodes_need_their_deployment(client: SyncPrefectClient, request_: Request) -> None:
    with pytest.raises(ConfigError, match="lvmae deploy"), nodes.beside(request_, "root", MEETING):
        pass


def test_more_nodes_than_may_run_at_once_are_refused(
    deployed: Callable[[int | None], None], client: SyncPrefectClient, request_: Request
) -> None:
    deployed(2)
    with pytest.raises(ConfigError, match="work pool nodes-2 may have 2 runs at once, and 3 are needed"):
        nodes.limited(client, 3)


def node_runs(client: SyncPrefectClient) -> list[FlowRun]:
    """Those of other tests on the same server left out."""
    return client.read_flow_runs(flow_filter=FlowFilter(name=FlowFilterName(any_=["lvmae-node"])))


def test_when_one_node_fails_or_none_has_room_the_others_are_cancelled(
    deployed: Callable[[int | None], None],
    client: SyncPrefectClient,
    request_: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployed(None)

    def one_fails() -> None:
        with nodes.beside(request_, "root", MEETING) as check:
            check()
            first, _ = (run.id for run in node_runs(client))
            client.set_flow_run_state(first, Failed(message="no GPU"), force=True)
            check()

    with pytest.raises(OSError, match="ended as Failed: no GPU"):
        one_fails()
    assert sorted(run.state_name or "" for run in node_runs(client)) == ["Cancelled", "Failed"]
    assert {run.parameters["node"] for run in node_runs(client)} == {1, 2}

    monkeypatch.setenv(nodes.WAIT_S, "0")
    said = "2 of 2 runs of lvmae-node/node did not begin within 0 s, and were cancelled"
    with pytest.raises(OSError, match=said), nodes.beside(request_, "root", MEETING._replace(name="4567")) as check:
        check()
    assert {run.state_name for run in node_runs(client)} == {"Cancelled", "Failed"}
