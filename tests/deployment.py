"""Prefect's and MLflow's servers as ``docker/compose.yaml`` starts them, as processes of this machine; secrets are random."""

import base64
import contextlib
import http.client
import json
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
import tempfile
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


class Database(NamedTuple):
    """What a server keeps its state in."""

    url: str
    """As SQLAlchemy spells it."""
    place: Path
    """Its file, or the folder of its files."""
    pg_dump: Path | None = None
    """The program that writes it as SQL; ``None``: it is SQLite."""

    def files(self) -> dict[str, bytes]:
        """Every file of it, by name."""
        paths = self.place.rglob("*") if self.place.is_dir() else [self.place]
        return {f"database/{path.relative_to(self.place.parent)}": path.read_bytes() for path in paths if path.is_file()}

    def rows(self) -> bytes:
        """All rows as SQL: a value that lies across two pages is whole here."""
        if self.pg_dump is None:
            return dump(self.place)
        argv = [self.pg_dump, "--inserts", self.url.replace("+asyncpg", "")]
        return subprocess.run(argv, check=True, capture_output=True, timeout=120).stdout


def dump(path: Path) -> bytes:
    """All rows of an SQLite file as SQL."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return "\n".join(connection.iterdump()).encode()


class Server(NamedTuple):
    """A running service."""

    port: int
    password: str
    """Of the account ``admin``."""
    environment: Mapping[str, str]
    """What it was started with."""
    log: Path
    database: Database | None = None
    """Of Prefect's server."""

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
    """Prefect's server with the Postgres of this machine, or with SQLite where none is installed."""
    port = free_port()
    command, environment = service("prefect", values, {"0.0.0.0": "127.0.0.1", "4200": str(port)})
    kept = {name: value for name, value in environment.items() if not name.startswith("PREFECT_SERVER_DATABASE_")}
    with _database(folder, environment) as database:
        own = {
            "PREFECT_HOME": str(folder),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": database.url,
            "PREFECT_SERVER_UI_STATIC_DIRECTORY": f"{folder}/ui",
        }
        with _running(folder, Service(command, {**own, **kept}), port, health="/api/health") as (log, full):
            yield Server(port, values["PREFECT_PASSWORD"], full, log, database)


@contextlib.contextmanager
def _database(folder: Path, environment: Mapping[str, str]) -> Iterator[Database]:
    """A database with the account and the name that a service is told of."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None:
        path = folder / "prefect.db"
        yield Database(f"sqlite+aiosqlite:///{path}", path)
        return
    user, password, name = (environment[f"PREFECT_SERVER_DATABASE_{part}"] for part in ("USER", "PASSWORD", "NAME"))
    driver, port = environment["PREFECT_SERVER_DATABASE_DRIVER"], free_port()
    account = "postgres" if os.getuid() == 0 else None  # Postgres refuses to be run by root
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        if account:
            shutil.chown(place, account)
        data = Path(place) / "data"

        def run(program: str, *arguments: str, **more: Any) -> None:
            subprocess.run(
                [programs / program, *arguments],
                user=account,
                cwd=place,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=120,
                **more,
            )

        run("initdb", "--pgdata", str(data), "--username", "postgres", "--auth-host", "scram-sha-256")
        listen = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={place}"
        run("pg_ctl", "start", "--wait", "--pgdata", str(data), "--options", listen, "--log", f"{place}/log")
        try:
            made = f"CREATE USER {user} PASSWORD '{password}';\nCREATE DATABASE {name} OWNER {user};\n"
            run("psql", "--host", place, "--port", str(port), "--username", "postgres", "--quiet", input=made.encode())
            yield Database(f"{driver}://{user}:{password}@127.0.0.1:{port}/{name}", data, programs / "pg_dump")
        finally:
            run("pg_ctl", "stop", "--pgdata", str(data), "--mode", "fast")


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
