"""Real servers for tests, as child processes on free ports of this machine: Prefect's with a database of its own, its workers,
and MLflow's. All end with their block.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from pipeline.environment import DEFAULTS

START_S = 600.0
"""How long a server may take to answer; on a busy machine its first start makes a database for minutes."""
PATIENCE_S = 300.0
"""How long a run may take."""
ENDED = frozenset({"COMPLETED", "FAILED", "CRASHED", "CANCELLED"})
"""Types of state after which nothing happens by itself."""

_REPOSITORY = Path(__file__).parents[1]
_FOREIGN = ("PREFECT_", "MLFLOW_", "LVMAE_")
_BUSY = (429, 500, 502, 503, 504)


def free_port() -> int:
    """A port of this machine on which nobody listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def clean_environment(**more: str) -> dict[str, str]:
    """The environment of this process without what points at other servers, with the project's defaults and ``more``."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    return {**own, **DEFAULTS, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1", **more}


def spawn(
    argv: Sequence[str], *, log: Path, environment: Mapping[str, str], folder: Path = _REPOSITORY
) -> subprocess.Popen[bytes]:
    """A process that leads a session of its own and writes to ``log``, after what stands there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes], number: int = signal.SIGKILL) -> None:
    """End a process of ``spawn`` with all that it started in its session, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


@contextlib.contextmanager
def alive(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ``spawn``, ended with the block: politely first, then by force."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        kill(process)


def answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``url`` is answered with 200."""
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=10, trust_env=False, verify=False).status_code == 200:
                return
        end = "" if not log.exists() else log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"the server ended with {process.returncode}: {end}"
        assert time.monotonic() < deadline, f"{url} did not answer: {end}"
        time.sleep(0.2)


# Prefect


class PrefectServer:
    """A Prefect server with SQLite below ``home``; it can be killed, and started again with the same database and port.

    Args:
        home: its folder, PREFECT_HOME of everything that belongs to it; its output goes to ``server.log`` there.
        more: further variables for the server and what is started with its environment.
    """

    def __init__(self, home: Path, more: Mapping[str, str]) -> None:
        self.home = home
        self.port = free_port()
        self.log = home / "server.log"
        self.ui_url = f"http://127.0.0.1:{self.port}"
        self.api_url = f"{self.ui_url}/api"
        self.environment = clean_environment(
            PREFECT_HOME=str(home), PREFECT_API_URL=self.api_url, PREFECT_LOGGING_SERVER_LEVEL="WARNING", **more
        )
        self.process = self._started()

    def kill(self) -> None:
        """End the server as a power cut would."""
        kill(self.process)

    def restart(self) -> None:
        """Start it again: same database, same port."""
        self.kill()
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        arguments = ("server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        process = spawn([sys.executable, "-m", "prefect", *arguments], log=self.log, environment=self.environment)
        try:
            answers(f"{self.api_url}/health", process, self.log)
        except BaseException:
            kill(process)
            raise
        return process


@contextlib.contextmanager
def prefect_server(home: Path, **more: str) -> Iterator[PrefectServer]:
    """A running server; ``more`` are variables of its environment. Its database stays below ``home``."""
    home.mkdir(parents=True, exist_ok=True)
    server = PrefectServer(home, more)
    try:
        yield server
    finally:
        server.kill()


@contextlib.contextmanager
def worker(
    server: PrefectServer, *, pool: str, root: Path, limit: int = 1, query_s: float = 1, **more: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of a pool, whose flow runs find their artifacts below ``root``; it writes to ``worker-<pool>.log``.

    Args:
        limit: flow runs at once.
        query_s: seconds between two looks for work; Prefect's own default is 10.
        more: variables for the worker and its flow runs.
    """
    environment = {**server.environment, "LVMAE_ROOT": str(root), "PREFECT_WORKER_QUERY_SECONDS": str(query_s), **more}
    arguments = ("worker", "start", "--pool", pool, "--type", "process", "--limit", str(limit))
    argv = [sys.executable, "-m", "prefect", *arguments]
    with alive(spawn(argv, log=server.home / f"worker-{pool}.log", environment=environment)) as process:
        yield process


def deploy(server: PrefectServer, **more: str) -> str:
    """Make the work pools, deployments and automations on the server, with `lvmae deploy`; what that prints."""
    return _finished(server, "pipeline", "deploy", **more)


def prefect(server: PrefectServer, *arguments: str, **more: str) -> str:
    """What Prefect's own command prints; it must succeed."""
    return _finished(server, "prefect", *arguments, **more)


def _finished(server: PrefectServer, module: str, *arguments: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
        cwd=_REPOSITORY,
        env={**server.environment, **more},
    )
    assert done.returncode == 0, f"{module} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# what is asked over HTTP, as the pages in the browser ask it


def call(server: PrefectServer, method: str, path: str, body: Any = None, *, refused: bool = False) -> Any:
    """The answer to a request below ``/api``, repeated while the server is busy or away.

    Args:
        body: sent as JSON.
        refused: give a response of 4xx instead of failing: its status code and its text.
    """
    deadline = time.monotonic() + START_S
    while True:
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.request(method, f"{server.api_url}{path}", json=body, timeout=60, trust_env=False, verify=False)
            if answer.status_code not in _BUSY:
                break
        assert time.monotonic() < deadline, f"{method} {path}: the server does not answer"
        time.sleep(0.5)
    if refused:
        return answer.status_code, answer.text
    assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
    return answer.json() if answer.content else None


def deployment(server: PrefectServer, name: str) -> dict[str, Any]:
    """A deployment by its name ``<flow>/<deployment>``, such as ``lvmae/pipeline``."""
    found: dict[str, Any] = call(server, "GET", f"/deployments/name/{name}")
    return found


def start_run(server: PrefectServer, name: str, parameters: Mapping[str, Any] | None = None, **more: Any) -> str:
    """The id of a new run of a deployment; ``more`` goes into the request, such as ``work_queue_name``."""
    body = {"parameters": dict(parameters or {}), "state": {"type": "SCHEDULED"}, **more}
    made = call(server, "POST", f"/deployments/{deployment(server, name)['id']}/create_flow_run", body)
    return str(made["id"])


def flow_run(server: PrefectServer, run: str) -> dict[str, Any]:
    """A flow run as the server describes it."""
    found: dict[str, Any] = call(server, "GET", f"/flow_runs/{run}")
    return found


def flow_runs(server: PrefectServer, **filters: Any) -> list[dict[str, Any]]:
    """All flow runs, or those that ``filters`` (Prefect's, such as ``deployments``) leave; oldest first."""
    found: list[dict[str, Any]] = call(server, "POST", "/flow_runs/filter", {"sort": "START_TIME_ASC", **filters})
    return found


def wait_for(
    server: PrefectServer, run: str, states: frozenset[str] = ENDED, *, patience_s: float = PATIENCE_S
) -> dict[str, Any]:
    """The flow run once its state has one of these types."""
    found: dict[str, Any] = {}

    def reached() -> bool:
        found.update(flow_run(server, run))
        return found["state_type"] in states

    eventually(reached, patience_s=patience_s, said=lambda: f"{found.get('state_name')}: {found.get('state')}")
    return found


def retry(server: PrefectServer, run: str) -> None:
    """Press Retry on a run that ended."""
    state = {"name": "AwaitingRetry", "message": "Retry from the UI", "type": "SCHEDULED"}
    call(server, "POST", f"/flow_runs/{run}/set_state", {"state": state, "force": False})


def cancel(server: PrefectServer, run: str) -> None:
    """Press Cancel on a run."""
    call(server, "POST", f"/flow_runs/{run}/set_state", {"state": {"name": "Cancelling", "type": "CANCELLING"}, "force": False})


def eventually(holds: Callable[[], bool], *, patience_s: float = PATIENCE_S, said: Callable[[], str] = str) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + patience_s
    while not holds():
        assert time.monotonic() < deadline, f"it never came to that. {said()}"
        time.sleep(0.5)


# MLflow


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of an MLflow server with SQLite and artifacts below ``folder``; it writes to ``mlflow.log`` there."""
    folder.mkdir(parents=True, exist_ok=True)
    with alive(start_mlflow(folder, port := free_port())) as process:
        answers(f"http://127.0.0.1:{port}/health", process, folder / "mlflow.log")
        yield f"http://127.0.0.1:{port}"


def start_mlflow(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """The process of such a server, to be killed and started anew by the caller; it answers after half a minute."""
    options = {
        "--host": "127.0.0.1",
        "--port": str(port),
        "--backend-store-uri": f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination": str(folder / "mlartifacts"),
        "--workers": "1",
    }
    argv = [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
    return spawn(argv, log=folder / "mlflow.log", environment=clean_environment(), folder=folder)
