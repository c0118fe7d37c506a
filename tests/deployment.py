"""Prefect's and MLflow's servers as ``docker/compose.yaml`` starts them, as processes of this machine; secrets are random."""

import base64
import contextlib
import http.client
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.compose import FOLDER, Service, service, variables
from tests.servers import alive, answers, clean_environment, free_port, spawn

_REPOSITORY = FOLDER.parent


def new_secrets() -> dict[str, str]:
    """A value for every variable of the compose file: random, so that a copy of it is found wherever it is."""
    values = {name: secrets.token_hex(16) for name in variables()}
    return {
        **values,
        "PREFECT_ENCRYPTION_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "LVMAE_VIDEOS": "/videos",
    }


class Server(NamedTuple):
    """A running service."""

    port: int
    password: str
    """Of the account ``admin``."""
    environment: Mapping[str, str]
    """What it was started with."""
    log: Path

    @property
    def login(self) -> dict[str, str]:
        """The header of a request with credentials."""
        return basic("admin", self.password)


class Answer(NamedTuple):
    """What a server said."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        """The body, from JSON."""
        return json.loads(self.body)


def basic(name: str, password: str) -> dict[str, str]:
    """The header of basic authentication."""
    return {"Authorization": f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"}


class Caller:
    """Requests to one server over one connection, with paths sent as they are spelled: no client tidies them up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def __call__(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Answer:
        sent = {} if body is None else {"Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        try:
            return self._sent(method, path, {**sent, **(headers or {})}, content)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):  # it had closed an idle connection
            self._connection.close()
            return self._sent(method, path, {**sent, **(headers or {})}, content)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _sent(self, method: str, path: str, headers: Mapping[str, str], content: bytes | None) -> Answer:
        self._connection.request(method, path, body=content, headers=dict(headers))
        answer = self._connection.getresponse()
        return Answer(answer.status, answer.read(), answer.headers)


@contextlib.contextmanager
def prefect(folder: Path, values: Mapping[str, str]) -> Iterator[Server]:
    """Prefect's server with SQLite in place of Postgres."""
    port = free_port()
    command, environment = service("prefect", values, {"0.0.0.0": "127.0.0.1", "4200": str(port)})
    kept = {name: value for name, value in environment.items() if not name.startswith("PREFECT_SERVER_DATABASE_")}
    own = {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": f"{folder}/ui",
    }
    with _running(folder, Service(command, {**own, **kept}), port, health="/api/health") as (log, full):
        yield Server(port, values["PREFECT_PASSWORD"], full, log)


@contextlib.contextmanager
def mlflow(folder: Path, values: Mapping[str, str]) -> Iterator[Server]:
    """MLflow's server with folders in place of volumes."""
    port = free_port()
    accounts = folder / "mlflow.ini"
    accounts.write_text((FOLDER / "mlflow.ini").read_text().replace("/mlflow/", f"{folder}/"))
    replacements = {"/etc/lvmae/mlflow.ini": str(accounts), "/mlflow/": f"{folder}/", "0.0.0.0": "127.0.0.1", "5000": str(port)}
    with _running(folder, service("mlflow", values, replacements), port, health="/health") as (log, full):
        yield Server(port, values["MLFLOW_PASSWORD"], full, log)


@contextlib.contextmanager
def _running(folder: Path, started: Service, port: int, *, health: str) -> Iterator[tuple[Path, dict[str, str]]]:
    log = folder / "server.log"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = clean_environment(**{**started.environment, "PATH": path})
    with alive(spawn(started.command, log=log, environment=environment, folder=folder)) as process:
        answers(f"http://127.0.0.1:{port}{health}", process, log)
        yield log, environment


def routes(server: Server, factory: str, **more: str) -> list[dict[str, Any]]:
    """The routes of a server's application: their kind, methods and paths."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.routes", factory],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        cwd=_REPOSITORY,
        env={**server.environment, **more},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
