"""``lvmae doctor``: every check finds what it is there for, and no secret is ever printed."""

import json
import os
import resource
import stat
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipeline.upkeep import doctor, machine_checks, server_checks
from pipeline.upkeep.findings import Check, State
from tests.pipeline.test_command import invoke

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own

SECRET = "canary-4711"


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No server is named."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_API", "MLFLOW_TRACKING")):
            monkeypatch.delenv(name)
    return monkeypatch


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


def test_this_machine_is_well_and_every_line_is_json(tmp_path: Path, quiet: pytest.MonkeyPatch) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        result = invoke("doctor", "--root", str(tmp_path / "root"), "--json")
    found = {one["check"]: one for one in map(json.loads, result.stdout.splitlines())}
    assert result.exit_code == (1 if any(one["state"] == "fail" for one in found.values()) else 0)
    assert {"packages", "ffmpeg", "torch", "shared memory", "open files", "clock", "disk", "inodes", "prefect"} <= set(found)
    for name in ("packages", "ffmpeg", "clock", f"writing below {tmp_path}", f"locks below {tmp_path}", "mlflow"):
        assert found[name]["state"] == "ok", found[name]
    assert "sha256" in found["ffmpeg"]["found"]
    assert found["prefect"]["state"] == "warn"
    assert all(one["remedy"] for one in found.values() if one["state"] != "ok")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_failure_is_the_exit_code_and_its_remedy_is_said(tmp_path: Path, quiet: pytest.MonkeyPatch) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = invoke("doctor", "--root", str(tmp_path))
    assert result.exit_code == 1
    assert "fail  prefect: start it with `lvmae up`, or correct PREFECT_API_URL" in result.stdout


def test_packages_that_were_not_tested_together_are_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\nnumpy==0.1\nnot-installed-here==1.0\npydantic>=1\n")
    found = by_name(doctor.packages(constraints))
    assert found["packages"].state is State.OK
    assert found["tested set"].state is State.WARN
    assert "numpy" in found["tested set"].found
    assert "not-installed-here" not in found["tested set"].found
    assert by_name(doctor.packages(tmp_path / "none"))["tested set"].state is State.WARN


def test_a_package_that_is_too_old_or_missing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wanted = ["numpy>=999", "no-such-package>=1", "other; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    found = by_name(doctor.packages(tmp_path / "none"))["packages"]
    assert found.state is State.FAIL
    assert "numpy>=999 is wanted" in found.found
    assert "no-such-package is not installed" in found.found


def test_an_ffmpeg_that_does_not_run_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "ffmpeg"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(broken))
    assert machine_checks.decoder().state is State.FAIL


def test_more_threads_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.processor().state is State.OK
    monkeypatch.setattr(machine_checks, "num_cores", lambda: 0)
    assert "OMP_NUM_THREADS" in machine_checks.processor().remedy


def test_little_shared_memory_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.shared_memory(tmp_path / "none").state is State.WARN
    total = machine_checks.shutil.disk_usage(tmp_path).total
    monkeypatch.setattr(machine_checks, "_SHARED_BYTES", total + 1)
    assert "--shm-size" in machine_checks.shared_memory(tmp_path).remedy


def test_a_low_limit_of_open_files_is_a_warning() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        found = machine_checks.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.found) == (State.WARN, "512 at a time")
    assert "ulimit -n" in found.remedy


def test_clocks_that_are_wrong_are_seen() -> None:
    assert machine_checks.clock(0).state is State.FAIL
    assert machine_checks.clock(time.time()).state is State.OK
    assert machine_checks.compared("clock", -60).state is State.WARN
    assert machine_checks.compared("clock", 0.1).state is State.OK


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_root_that_cannot_be_written_fails() -> None:
    for check in machine_checks.storage(Path("/proc/lvmae")):
        if "below" in check.name or "clock" in check.name:
            assert check.state is State.FAIL, check


def test_a_disk_without_hard_links_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert machine_checks.writable(tmp_path).state is State.OK
    monkeypatch.setattr(machine_checks.os, "link", refuse)
    found = machine_checks.writable(tmp_path)
    assert (found.state, found.found) == (State.FAIL, "hard link: Operation not permitted")


def test_locks_that_keep_nobody_out_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine_checks.locks(tmp_path).state is State.OK
    monkeypatch.setattr(machine_checks.fcntl, "flock", lambda *arguments: None)
    assert machine_checks.locks(tmp_path).state is State.FAIL


def test_a_disk_or_a_table_of_files_that_is_nearly_full_is_seen() -> None:
    assert machine_checks.room(900 * 10**9, 1000 * 10**9).state is State.OK
    assert machine_checks.room(9 * 10**9, 1000 * 10**9).state is State.WARN
    assert machine_checks.room(10**8, 1000 * 10**9).state is State.FAIL
    assert machine_checks.inodes(5, 10**6).state is State.FAIL
    assert machine_checks.inodes(0, 0).state is State.OK


def test_credentials_are_asked_for_where_a_server_is_far_and_never_printed() -> None:
    far = {"PREFECT_API_URL": "https://prefect.example.org/api", "MLFLOW_TRACKING_URI": "https://mlflow.example.org"}
    assert {check.state for check in server_checks.credentials(far)} == {State.WARN}
    near = {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}
    assert {check.state for check in server_checks.credentials(near)} == {State.OK}
    given = far | {"PREFECT_API_AUTH_STRING": SECRET, "MLFLOW_TRACKING_USERNAME": SECRET, "MLFLOW_TRACKING_PASSWORD": SECRET}
    found = list(server_checks.credentials(given))
    assert {check.state for check in found} == {State.OK}
    assert SECRET not in repr(found)


def test_an_mlflow_that_is_away_fails_without_its_password(tmp_path: Path, quiet: pytest.MonkeyPatch) -> None:
    quiet.setenv("MLFLOW_TRACKING_URI", f"http://person:{SECRET}@127.0.0.1:9")
    quiet.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    found = server_checks.mlflow(tmp_path)
    assert found.state is State.FAIL
    assert SECRET not in repr(found)


class _Refusing(BaseHTTPRequestHandler):
    """Asks everybody who they are."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


def test_a_prefect_that_asks_for_a_password_says_so(quiet: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), _Refusing) as listener:
        threading.Thread(target=listener.serve_forever).start()
        try:
            with temporary_settings({PREFECT_API_URL: f"http://x:{SECRET}@127.0.0.1:{listener.server_port}/api"}):
                (found,) = server_checks.prefect()
        finally:
            listener.shutdown()
    assert (found.state, found.remedy) == (State.FAIL, "set PREFECT_API_AUTH_STRING")
    assert SECRET not in repr(found)


def test_what_is_missing_on_a_prefect_server_is_named(server: None) -> None:
    found = by_name(server_checks.prefect())
    assert found["prefect"].state is State.OK
    assert found["clock of prefect"].state is State.OK
    assert found["deployments"].state is State.WARN
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="doctor-idle", type="process"))
        client.create_work_pool(WorkPoolCreate(name="doctor-paused", type="process", is_paused=True))
        client.request("POST", "/work_pools/{name}/workers/heartbeat", path_params={"name": "doctor-idle"}, json={"name": "w"})
        found = by_name(server_checks.prefect())
        client.delete_work_pool("doctor-idle")
        client.delete_work_pool("doctor-paused")
    assert found["work pool doctor-idle"].found == "1 worker there"
    assert (found["work pool doctor-paused"].state, found["work pool doctor-paused"].found) == (State.WARN, "is paused")
