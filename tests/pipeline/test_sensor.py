"""The sensor starts one run for what landed, and the watcher tells a real server of it once, also when that was away."""

import io
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from pipeline.orchestration.landing import EVENT, Landing
from pipeline.orchestration.sensor import run_sensor, standing
from pipeline.orchestration.watch import Watcher, moments
from stages.errors import ConfigError
from stages.storage.workspace import Workspace
from tests.servers import free_port
from tests.stages.videos import write_ramp

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own
QUICK = ("shard.settle_s=0",)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ramp(tmp_path_factory.mktemp("video") / "a.mp4", 8)


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    folder = tmp_path / "incoming"
    folder.mkdir()
    return folder


@pytest.fixture
def client(server: None) -> Iterator[SyncPrefectClient]:
    """A client of the server, on which the pipeline is deployed; nothing executes its runs."""
    with get_client(sync_client=True) as found:
        flow = found.create_flow_from_name("lvmae")
        found.create_deployment(flow, "pipeline", enforce_parameter_schema=False)
        yield found


def look(incoming: Path, **changes: Any) -> State[Any]:
    asked = {"overlays": ["demo"], "source": str(incoming), "root": str(incoming.parent / "root"), "overrides": list(QUICK)}
    found: State[Any] = run_sensor(**{**asked, **changes}, return_state=True)
    return found


def runs(incoming: Path) -> list[Any]:
    """The runs that were started for a landing area."""
    return [run for run in standing() if run.parameters.get("source") == str(incoming)]


def test_the_sensor_starts_one_run_for_what_landed_and_none_beside_it(
    client: SyncPrefectClient, incoming: Path, video: Path
) -> None:
    assert "holds no video" in str(look(incoming).message)
    (incoming / "half.mp4").write_bytes(video.read_bytes()[:-20])
    assert look(incoming).message == "nothing new: 1 sources, 1 not complete yet"
    assert runs(incoming) == []
    shutil.copy(video, incoming / "a.mp4")
    assert "a run is started" in str(look(incoming).message)
    (started,) = runs(incoming)
    assert len(started.parameters["landed"]) == 64
    assert started.parameters["overlays"] == ["demo"]
    assert "was started for exactly this" in str(look(incoming).message)
    shutil.copy(video, incoming / "b.mp4")
    assert "has not begun and will take them in" in str(look(incoming).message)
    assert len(runs(incoming)) == 1
    client.delete_flow_run(UUID(started.run))
    assert "a run is started" in str(look(incoming).message), "a server that forgot the run does not lose the files"


def test_a_run_that_the_event_started_is_not_started_again(client: SyncPrefectClient, incoming: Path, video: Path) -> None:
    shutil.copy(video, incoming / "a.mp4")
    landing = Landing("lvmae", overlays=("demo",), source=str(incoming), root=str(incoming.parent / "root"), overrides=QUICK)
    digest = landing.look(Workspace(incoming.parent / "root")).digest
    deployment = client.read_deployment_by_name("lvmae/pipeline")
    client.create_flow_run_from_deployment(deployment.id, parameters={**landing.parameters, "landed": digest})
    assert "was started for exactly this" in str(look(incoming).message)
    assert len(runs(incoming)) == 1


def events(client: SyncPrefectClient, dataset: str) -> list[dict[str, Any]]:
    """What the server knows of a dataset; it takes events in a little late."""
    wanted = {"event": {"name": [EVENT]}, "resource": {"id": [f"lvmae.source.{dataset}"]}}
    for _ in range(100):
        found: list[dict[str, Any]] = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
        if found:
            return found
        time.sleep(0.1)
    return []


def watcher(incoming: Path, dataset: str, lines: io.StringIO) -> Watcher:
    root = incoming.parent / "root"
    landing = Landing("lvmae", overlays=("demo",), source=str(incoming), dataset=dataset, overrides=QUICK)
    return Watcher(landing, Workspace(root), lines)


def test_the_watcher_tells_once_what_landed_and_a_second_watcher_tells_the_same_event(
    client: SyncPrefectClient, incoming: Path, video: Path
) -> None:
    lines = io.StringIO()
    one = watcher(incoming, "told", lines)
    for name in ("a", "b"):
        shutil.copy(video, incoming / f"{name}.mp4")
    assert one.look()
    assert one.look()
    assert watcher(incoming, "told", lines).look()
    (told,) = events(client, "told")
    assert told["payload"]["num_files"] == 2
    assert (told["payload"]["source"], told["payload"]["recipe"]) == (str(incoming), "lvmae")
    assert lines.getvalue().count("landed") == 2
    (incoming / "half.mp4").write_bytes(video.read_bytes()[:-20])
    assert one.look()
    assert len(events(client, "told")) == 1, "half a file is nothing to tell"


def test_a_server_that_is_away_is_told_when_it_is_back(client: SyncPrefectClient, incoming: Path, video: Path) -> None:
    lines = io.StringIO()
    one = watcher(incoming, "away", lines)
    shutil.copy(video, incoming / "a.mp4")
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api", PREFECT_CLIENT_MAX_RETRIES: 0}):
        assert not one.look()
        assert not one.look()
    assert lines.getvalue().count("does not answer") == 1
    assert one.look()
    assert len(events(client, "away")) == 1


def test_a_burst_of_files_is_one_moment_and_a_quiet_folder_is_looked_at_now_and_then(incoming: Path) -> None:
    found: list[int] = []

    def collect() -> None:
        for _ in moments(str(incoming), quiet_s=3, most_s=60, poll_s=60):
            found.append(len(list(incoming.iterdir())))
            return

    thread = threading.Thread(target=collect)
    thread.start()
    number = 0
    while thread.is_alive() and number < 100:
        (incoming / f"{number}.mp4").touch()
        number += 1
        time.sleep(0.01)
    thread.join()
    assert found == [100]
    quiet = moments(str(incoming), quiet_s=0.1, most_s=1, poll_s=0.2)
    assert next(quiet) is None


def test_without_a_server_the_command_says_what_is_missing(incoming: Path) -> None:
    from pipeline.orchestration.watch import watch

    with temporary_settings({PREFECT_API_URL: None}), pytest.raises(ConfigError, match="PREFECT_API_URL names no server"):
        watch(Landing("lvmae", source=str(incoming)), root=str(incoming), quiet_s=1, most_s=1, poll_s=1, lines=io.StringIO())


def test_the_parameters_of_the_sensor_are_those_of_the_pipeline() -> None:
    from pipeline.orchestration.flows import run_recipe

    own, theirs = (set(flow.parameters.properties) for flow in (run_sensor, run_recipe))
    assert own <= theirs
    assert set(Landing("lvmae").parameters) == own - {"plan_only"}
    assert json.dumps(Landing("lvmae").parameters)
