"""`lvmae up` for real: all servers answer to this machine alone, what dies comes back, and one signal ends everything."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from pipeline.servers import up
from pipeline.servers.children import MARK
from pipeline.tracking import mlflow_store
from stages.errors import ConfigError
from stages.storage.workspace import Workspace
from tests.servers import alive, clean_environment, eventually, spawn

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Started(NamedTuple):
    """A running `lvmae up`."""

    process: "subprocess.Popen[bytes]"
    output: Path
    root: Path

    def said(self) -> str:
        return self.output.read_text()

    def address(self, of: str) -> str:
        (line,) = [line for line in self.said().splitlines() if line.startswith(of)]
        return ADDRESS.findall(line)[0]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("up")
    root = folder / "root"
    for name in ("pretrain/0123/report.html", "secrets/keys.txt", "pretrain/.hidden"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("content")
    (root / "pretrain" / "outside").symlink_to(folder)
    with begun(folder, root, "--incoming", str(folder / "incoming")) as running:
        yield running


@contextlib.contextmanager
def begun(folder: Path, root: Path, *arguments: str) -> Iterator[Started]:
    argv = [*up._python("pipeline", "up"), "--root", str(root), "--port", "0", *arguments]
    with alive(spawn(argv, log=folder / "output.txt", environment=clean_environment())) as process:
        running = Started(process, folder / "output.txt", root)
        eventually(lambda: "Ctrl-C" in running.said() or process.poll() is not None, patience_s=600, said=running.said)
        assert process.poll() is None, running.said()
        yield running


def family(process: "subprocess.Popen[bytes]") -> dict[int, str]:
    """The living processes that carry the mark of the command's children, with their command lines."""
    found = {}
    marks = {environment(int(path.name)).get(MARK) for path in Path("/proc").glob("[0-9]*") if parent(path) == process.pid}
    for path in Path("/proc").glob("[0-9]*"):
        if (mark := environment(int(path.name)).get(MARK)) and mark in marks:
            found[int(path.name)] = (path / "cmdline").read_text().replace("\0", " ")
    return found


def environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    return dict(pair.partition("=")[::2] for pair in text.split("\0"))  # type: ignore[misc]


def parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def test_the_servers_answer_and_only_to_pages_of_their_own(started: Started) -> None:
    prefect, mlflow = started.address("Prefect"), started.address("MLflow")
    assert httpx.get(f"{prefect}/api/health", trust_env=False).json() is True
    assert httpx.get(f"{mlflow}/health", trust_env=False).text == "OK"
    without_token = httpx.post(f"{prefect}/api/deployments/filter", json={}, trust_env=False)
    assert without_token.status_code == 403
    foreign = httpx.get(f"{prefect}/api/health", headers={"Origin": "https://example.org"}, trust_env=False)
    own = httpx.get(f"{prefect}/api/health", headers={"Origin": prefect}, trust_env=False)
    assert "access-control-allow-origin" not in foreign.headers
    assert own.headers["access-control-allow-origin"] == prefect
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"]
    ports = {f"{int(address.rpartition(':')[2]):04X}" for address in (prefect, mlflow, started.address("artifacts"))}
    assert {one.partition(":")[0] for one in listening if one.partition(":")[2] in ports} == {"0100007F"}


def test_a_browser_sees_artifacts_and_nothing_else_below_the_root(started: Started) -> None:
    files = started.address("artifacts")

    def status(path: str, host: str | None = None) -> int:
        return httpx.get(f"{files}/{path}", headers={"Host": host} if host else {}, trust_env=False).status_code

    assert status("pretrain/0123/report.html") == 200
    for hidden in (
        "",
        "secrets/keys.txt",
        "mlflow.db",
        ".prefect/prefect.db",
        "pretrain/.hidden",
        "pretrain/outside/output.txt",
    ):
        assert status(hidden) == 404, hidden
    assert status("pretrain/%2e%2e/secrets/keys.txt") == 404
    assert status("pretrain/0123/report.html", host="rebound.example.org") == 404
    assert httpx.put(f"{files}/pretrain/0123/report.html", content="x", trust_env=False).status_code == 501


def test_the_sensor_looks_at_the_watched_folder_on_a_schedule(started: Started) -> None:
    url = f"{started.address('Prefect')}/api/deployments/name/lvmae-sensor/sensor"
    schedules = httpx.get(url, trust_env=False).raise_for_status().json()["schedules"]
    (looks,) = [one for one in schedules if one["active"]]
    assert looks["parameters"]["source"] == str(started.root.parent / "incoming")
    assert looks["parameters"]["root"] == str(started.root)
    assert looks["parameters"]["overlays"] == ["demo"]


def test_mlflow_shows_the_store_that_runs_are_recorded_in() -> None:
    assert up.MLFLOW_ARTIFACTS == mlflow_store.ARTIFACTS


def test_a_second_one_on_the_same_root_or_port_says_why_it_cannot(started: Started) -> None:
    with pytest.raises(ConfigError, match="another `lvmae up` uses it"), up._alone(Workspace(started.root)):
        pass
    with pytest.raises(ConfigError, match="is taken"):
        up._ports(int(started.address("Prefect").rpartition(":")[2]))


def test_what_dies_is_named_and_comes_back_and_one_signal_ends_all(started: Started) -> None:
    before = family(started.process)
    kinds = ("server start", "--pool cpu", "--pool gpu", "mlflow server", "pipeline.servers.files", "pipeline watch")
    assert all(any(kind in line for line in before.values()) for kind in kinds), before
    (worker,) = [pid for pid, line in before.items() if "--pool cpu" in line]
    os.kill(worker, signal.SIGKILL)
    eventually(lambda: "worker-cpu was started again" in started.said(), said=started.said)
    assert "worker-cpu ended with -9" in started.said()
    eventually(lambda: any("--pool cpu" in line for line in family(started.process).values()))
    all_of_them = set(family(started.process))
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(timeout=120) == 0, started.said()
    assert not [pid for pid in all_of_them if Path(f"/proc/{pid}").exists()], "nothing is left"
    assert "ended" in started.said()


def test_what_it_started_ends_also_when_it_is_killed(tmp_path: Path) -> None:
    with begun(tmp_path, tmp_path / "root") as running:
        all_of_them = family(running.process)
        assert len(all_of_them) >= 5
        running.process.kill()
        eventually(lambda: not [pid for pid in all_of_them if Path(f"/proc/{pid}").exists()], said=lambda: str(all_of_them))
