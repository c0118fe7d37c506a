"""`lvmae deploy` on a real server: what it makes, that it can be repeated, and what people switched stays switched."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.orchestration.deploying import AUTOMATIONS, DEPLOYMENTS
from tests.servers import PrefectServer, call, deploy, deployment, eventually, flow_runs, prefect_server, start_run

NAMES = [one["name"] for one in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]]
CRASHED = "lvmae-crashed"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    with prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        deploy(running)
        yield running


def automations(server: PrefectServer) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in call(server, "POST", "/automations/filter", {})}


def test_everything_is_there_once_and_work_that_is_urgent_goes_first(server: PrefectServer) -> None:
    assert {one["name"] for one in call(server, "POST", "/deployments/filter", {})} == set(NAMES)
    assert set(automations(server)) == {CRASHED, "lvmae-landed"}
    for pool in ("cpu", "gpu"):
        queues = call(server, "POST", f"/work_pools/{pool}/queues/filter", {})
        assert [one["name"] for one in sorted(queues, key=lambda one: one["priority"])] == ["urgent", "default", "backfill"]
    one = deployment(server, "lvmae/pipeline")
    assert one["global_concurrency_limit"]["limit"] == 1
    assert one["enforce_parameter_schema"]


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"recipe": "lvma"}, "recipe"),
        ({"overlays": ["dmo"]}, "overlays"),
        ({"from_stage": "train"}, "from_stage"),
        ({"overrides": ["pretrain seed 1"]}, "overrides"),
        ({"overrides": ["pretrian.seed=1"]}, "overrides"),
        ({"snapshot": "newest"}, "snapshot"),
        ({"dataset": "../up"}, "dataset"),
        ({"recipe_file": "mine.txt"}, "recipe_file"),
        ({"plan_only": "perhaps"}, "plan_only"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_there_is_a_run(
    server: PrefectServer, parameters: dict[str, Any], named: str
) -> None:
    runs = len(flow_runs(server))
    path = f"/deployments/{deployment(server, 'lvmae/pipeline')['id']}/create_flow_run"
    status, text = call(server, "POST", path, {"parameters": parameters}, refused=True)
    assert status == 409
    assert named in text
    assert len(flow_runs(server)) == runs


def test_an_event_of_landed_videos_starts_the_pipeline_with_what_it_says(server: PrefectServer) -> None:
    asked = {
        "recipe": "lvmae",
        "recipe_file": "",
        "overlays": ["demo", "smoke"],
        "overlay_files": [],
        "source": "/videos",
        "dataset": "may",
        "root": "/root-of-may",
        "overrides": ["pretrain.seed=3"],
        "landed": "0123abcd",
    }
    send(server, "lvmae.sources.landed", {"prefect.resource.id": "lvmae.source.may"}, payload=asked)
    found: list[dict[str, Any]] = []

    def started() -> bool:
        found[:] = [run for run in flow_runs(server) if run["parameters"].get("landed") == "0123abcd"]
        return bool(found)

    eventually(started)
    assert {name: found[0]["parameters"][name] for name in asked} == asked


def test_a_run_that_is_not_heard_of_any_more_is_crashed(server: PrefectServer) -> None:
    deployed = automations(server)[CRASHED]
    shorter = {**yaml.safe_load(AUTOMATIONS.read_text())["automations"][0], "enabled": True}
    shorter["trigger"]["within"] = 10
    call(server, "PUT", f"/automations/{deployed['id']}", shorter)
    silent, ended = (start_run(server, "lvmae-shard/shard", {"tracking": False}) for _ in range(2))
    for run in (silent, ended):
        call(server, "POST", f"/flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
        related = {"prefect.resource.id": f"prefect.flow.{uuid.uuid4()}", "prefect.resource.role": "flow"}
        resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
        send(server, "prefect.flow-run.heartbeat", resource, related=[{**related, "prefect.resource.name": "lvmae-shard"}])
    call(server, "POST", f"/flow_runs/{ended}/set_state", {"state": {"type": "COMPLETED"}, "force": True})
    eventually(lambda: call(server, "GET", f"/flow_runs/{silent}")["state_type"] == "CRASHED")
    assert "press Retry" in call(server, "GET", f"/flow_runs/{silent}")["state"]["message"]
    assert call(server, "GET", f"/flow_runs/{ended}")["state_type"] == "COMPLETED"


def test_what_a_person_switched_stays_so_when_everything_is_deployed_again(server: PrefectServer) -> None:
    whole, shard = deployment(server, "lvmae/pipeline"), deployment(server, "lvmae-shard/shard")
    for one in automations(server).values():
        call(server, "PATCH", f"/automations/{one['id']}", {"enabled": False})
    call(server, "POST", f"/deployments/{shard['id']}/pause_deployment")
    (schedule,) = whole["schedules"]
    assert not schedule["active"]
    call(server, "PATCH", f"/deployments/{whole['id']}/schedules/{schedule['id']}", {"active": True})
    call(server, "PATCH", "/work_pools/gpu", {"concurrency_limit": 7, "is_paused": True})
    printed = deploy(server)
    assert {name: one["enabled"] for name, one in automations(server).items()} == {CRASHED: False, "lvmae-landed": False}
    assert deployment(server, "lvmae-shard/shard")["paused"]
    assert not deployment(server, "lvmae/pipeline")["paused"]
    assert [one["active"] for one in deployment(server, "lvmae/pipeline")["schedules"]] == [True]
    pool = call(server, "GET", "/work_pools/gpu")
    assert (pool["concurrency_limit"], pool["is_paused"]) == (7, True)
    assert deployment(server, "lvmae-shard/shard")["id"] == shard["id"]
    assert "automation lvmae-landed off, as it was" in printed
    assert automations(server)[CRASHED]["trigger"]["within"] == 90, "what the file says is brought up to date"


def send(server: PrefectServer, event: str, resource: dict[str, str], **more: Any) -> None:
    body = {"event": event, "resource": resource, "occurred": datetime.now(UTC).isoformat(), "id": str(uuid.uuid4()), **more}
    call(server, "POST", "/events", [body])


def test_the_files_that_are_deployed_belong_to_the_package() -> None:
    repository = Path(__file__).parents[2]
    assert (repository / "prefect.yaml").resolve() == DEPLOYMENTS.resolve(), "Prefect's own command finds the same file"
    assert AUTOMATIONS.parent == DEPLOYMENTS.parent == repository / "pipeline"
