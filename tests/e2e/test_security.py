"""The servers of the deployment, started as compose starts them: whoever has no password is told nothing, and no password is
written anywhere.
"""

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from tests import deployment
from tests.deployment import Caller, Server, basic, routes
from tests.pipelines import ONE_THREAD, SMOKE, command

pytestmark = pytest.mark.operation

OPEN = {("prefect", "/api/health"), ("prefect", "/api/ready"), ("mlflow", "/health")}
"""All that answers without credentials: what compose asks to see whether a server is well. Not even pages are among them."""
REFUSED = (401, 403)
ELSEWHERE = {"Origin": "http://elsewhere.example"}


@pytest.fixture(scope="module")
def values() -> dict[str, str]:
    return deployment.new_secrets()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deployment")


@pytest.fixture(scope="module")
def servers(folder: Path, values: dict[str, str]) -> Iterator[dict[str, Server]]:
    for name in ("prefect", "mlflow"):
        (folder / name).mkdir()
    with (
        deployment.prefect(folder / "prefect", values) as prefect,
        deployment.mlflow(folder / "mlflow", values) as mlflow,
    ):
        yield {"prefect": prefect, "mlflow": mlflow}


@pytest.fixture(scope="module")
def table(servers: dict[str, Server]) -> dict[str, list[dict[str, Any]]]:
    """Every route of both applications."""
    return {
        "prefect": routes(servers["prefect"], "pipeline.servers.gate:prefect_server"),
        "mlflow": routes(servers["mlflow"], "pipeline.servers.gate:mlflow_server", _MLFLOW_SGI_NAME="uvicorn"),
    }


@pytest.fixture(scope="module")
def callers(servers: dict[str, Server]) -> Iterator[dict[str, Caller]]:
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(contextlib.closing(Caller(server.port))) for name, server in servers.items()}


# without credentials


def spellings(path: str) -> Iterator[str]:
    """Other spellings of a path, such as got past checks like these elsewhere."""
    yield from (f"{path.rstrip('/')}/", path.upper(), f"{path.rstrip('/')}/health", f"/{path}", f"/health/..{path}")


def odd_spellings(path: str) -> Iterator[str]:
    """More of them, tried with few paths."""
    yield from (f"{path}?path=/health", f"/api/health/../..{path}", f"{path}%2fhealth", f"{path};/api/ready")
    yield from (f"/static-files/..{path}", f"/static/../{path}", f"/favicon.ico{path}", f"/%2fhealth{path}", f"/.{path}")


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_no_route_answers_without_credentials_but_the_checks_of_health(
    name: str, callers: dict[str, Caller], table: dict[str, list[dict[str, Any]]]
) -> None:
    call, open_paths = callers[name], {path for server, path in OPEN if server == name}
    paths = {(method, route["path"]) for route in table[name] if route["kind"] == "http" for method in route["methods"]}
    assert len(paths) > {"prefect": 190, "mlflow": 600}[name], "the enumeration found less than it did when it was written"
    answered = {(method, path): call(method, path).status for method, path in paths}
    leaking = {key: status for key, status in answered.items() if status not in REFUSED}
    assert {path for _, path in leaking} == open_paths
    assert {method for method, _ in leaking} <= {"GET", "HEAD"}


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
def test_no_other_spelling_of_a_path_answers_without_credentials(
    name: str, callers: dict[str, Caller], table: dict[str, list[dict[str, Any]]]
) -> None:
    paths = {route["path"] for route in table[name] if route["kind"] == "http"}
    few = {"/", "/index.html", "/assets/1", "/static/1", "/favicon.ico", "/healthz", "/api/version", "/ui-settings", "/docs"}
    few |= {
        "/ajax-api/3.0/mlflow/server-info",
        "/api/2.0/mlflow/experiments/search",
        "/static-files/index.html",
        "/static-healthy",
    }
    health = {path for _, path in OPEN}
    spelled = (
        few
        | {each for path in paths | few for each in spellings(path)}
        | {each for path in few for each in odd_spellings(path)}
    )
    leaking = {each: status for each in spelled - health if (status := callers[name]("GET", each).status) not in REFUSED}
    assert not leaking


@pytest.mark.parametrize("name", ["prefect", "mlflow"])
@pytest.mark.parametrize(
    "headers",
    [
        basic("admin", "wrong"),
        basic("", ""),
        {"Authorization": "Basic not base64"},
        {"Authorization": "Basic"},
        {"Authorization": "Bearer admin"},
        {"Cookie": "session=admin"},
        {"X-MLflow-Authorization": "Basic YWRtaW46YWRtaW4="},
    ],
    ids=lambda headers: " ".join(next(iter(headers.items()))),
)
def test_wrong_credentials_are_none(name: str, headers: dict[str, str], callers: dict[str, Caller]) -> None:
    call = callers[name]
    for path in ("/", "/api/version", "/api/2.0/mlflow/experiments/search", "/docs", "/ajax-api/3.0/mlflow/server-info"):
        assert call("GET", path, headers).status in REFUSED


def test_no_websocket_tells_anything_to_whoever_has_no_credentials(
    servers: dict[str, Server], table: dict[str, list[dict[str, Any]]]
) -> None:
    paths = {name: {route["path"] for route in table[name] if route["kind"] == "websocket"} for name in table}
    assert len(paths["prefect"]) >= 5
    assert paths["mlflow"] == set()
    for path in (*paths["prefect"], "/", "/api/events/out/", "/API/EVENTS/OUT", "/api/events/out/health"):
        assert _handshake(servers["prefect"].port, path) == 403
        for message in ({"type": "auth"}, {"type": "auth", "token": "admin:wrong"}, {"type": "filter", "filter": {}}, {}):
            assert _talk(servers["prefect"].port, path, message) in (403, 1008), (path, message)
    for path in ("/", "/health", "/ajax-api/2.0/mlflow/experiments/search", "/gateway/1/mlflow/invocations"):
        assert _handshake(servers["mlflow"].port, path) == 403


def _handshake(port: int, path: str) -> int:
    """The status with which a connection is refused that does not speak Prefect's protocol."""
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://127.0.0.1:{port}{path}", proxy=None)
    return refused.value.response.status_code


def _talk(port: int, path: str, message: Mapping[str, Any]) -> int:
    """The status or the code with which a connection ends: all it may do after a message without the right password."""
    try:
        with connect(f"ws://127.0.0.1:{port}{path}", subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
            socket.send(json.dumps(message))
            return pytest.fail(f"{path} said {socket.recv(timeout=60)!r}")
    except InvalidStatus as refused:
        return refused.response.status_code
    except ConnectionClosed as closed:
        return closed.rcvd.code if closed.rcvd else 0


# with credentials


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("prefect", "/api/version"),
        ("prefect", "/ui-settings"),
        ("prefect", "/docs"),
        ("prefect", "/v2/"),
        ("mlflow", "/"),
        ("mlflow", "/ajax-api/3.0/mlflow/server-info"),
        ("mlflow", "/api/2.0/mlflow/experiments/get?experiment_id=0"),
    ],
)
def test_with_credentials_it_answers(name: str, path: str, servers: dict[str, Server], callers: dict[str, Caller]) -> None:
    assert callers[name]("GET", path, servers[name].login).status == 200


def test_with_credentials_a_websocket_opens(servers: dict[str, Server]) -> None:
    server = servers["prefect"]
    with connect(f"ws://127.0.0.1:{server.port}/api/events/out", subprotocols=[Subprotocol("prefect")], proxy=None) as socket:
        socket.send(json.dumps({"type": "auth", "token": f"admin:{server.password}"}))
        assert json.loads(socket.recv(timeout=60))["type"] == "auth_success"


def test_prefect_refuses_what_another_page_sends_although_the_browser_adds_the_credentials(
    servers: dict[str, Server], callers: dict[str, Caller]
) -> None:
    server, call, body = servers["prefect"], callers["prefect"], {"name": "forged"}
    assert call("POST", "/api/flows/", {**server.login, **ELSEWHERE}, body).status == 403
    assert call("POST", "/api/flows/", server.login, body).status == 403, "without a token, whoever sends it"
    token = call("GET", "/api/csrf-token?client=page", server.login).json()["token"]
    genuine = {**server.login, "Prefect-Csrf-Client": "page", "Prefect-Csrf-Token": token}
    assert call("POST", "/api/flows/", {**genuine, "Prefect-Csrf-Client": "other"}, body).status == 403
    assert call("POST", "/api/flows/", genuine, body).status in (200, 201)


@pytest.mark.parametrize(("origin", "allowed"), [("http://elsewhere.example", False), ("own", True)])
def test_prefect_lets_its_own_page_alone_read_answers(
    origin: str, allowed: bool, servers: dict[str, Server], callers: dict[str, Caller]
) -> None:
    server = servers["prefect"]
    own = server.environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"]
    assert "*" not in own
    headers = {**server.login, "Origin": own if origin == "own" else origin}
    answer = callers["prefect"]("GET", "/api/version", headers)
    assert answer.headers.get("Access-Control-Allow-Origin") == (own if allowed else None)


def test_mlflow_refuses_what_another_page_sends_and_another_name_for_itself(
    servers: dict[str, Server], callers: dict[str, Caller]
) -> None:
    server, call = servers["mlflow"], callers["mlflow"]
    path, body = "/api/2.0/mlflow/experiments/create", {"name": "forged"}
    assert call("POST", path, {**server.login, **ELSEWHERE}, body).status == 403
    assert call("GET", "/", {**server.login, "Host": "elsewhere.example"}).status == 403
    assert call("POST", path, server.login, body).status == 200


def test_a_new_account_of_mlflow_may_see_nothing(servers: dict[str, Server], callers: dict[str, Caller]) -> None:
    server, call = servers["mlflow"], callers["mlflow"]
    account = {"username": "guest", "password": secrets.token_hex(16)}
    assert call("POST", "/api/2.0/mlflow/users/create", server.login, account).status == 200
    guest = basic(account["username"], account["password"])
    assert call("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", guest).status == 403
    assert call("POST", "/api/2.0/mlflow/users/create", guest, {"username": "more", "password": "p" * 20}).status == 403


def test_mlflow_runs_no_jobs(servers: dict[str, Server], callers: dict[str, Caller]) -> None:
    server = servers["mlflow"]
    answer = callers["mlflow"]("POST", "/ajax-api/3.0/jobs/", server.login, {"job_name": "x", "params": {}})
    assert answer.status >= 400


# canaries

PREFECT = "Prefect's database as SQL"
IN_THE_ENVIRONMENT = (
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_KEY",
    "DATABASE_URL",
    "GITHUB_TOKEN",
    "GOOGLE_API_KEY",
    "HF_TOKEN",
    "NPM_TOKEN",
    "OPENAI_API_KEY",
    "PGPASSWORD",
    "SMTP_PASSWORD",
    "WANDB_API_KEY",
)
"""Secrets of other programs that may lie in the environment of a worker."""


@pytest.fixture(scope="module")
def canaries(values: dict[str, str]) -> dict[str, str]:
    """Everything that must be written nowhere: passwords and keys of the deployment, and what else is secret."""
    own = {name: value for name, value in values.items() if name != "LVMAE_VIDEOS"}
    others = {name: secrets.token_hex(16) for name in (*IN_THE_ENVIRONMENT, "BLOCK", "URL_PASSWORD")}
    encoded = {
        f"{name} in base64": base64.b64encode(f"admin:{values[name]}".encode()).decode()
        for name in ("PREFECT_PASSWORD", "MLFLOW_PASSWORD")
    }
    return {**own, **others, **encoded}


@pytest.fixture(scope="module")
def environment(servers: dict[str, Server], values: dict[str, str], canaries: dict[str, str], folder: Path) -> dict[str, str]:
    """A worker's environment as compose makes it, with further secrets."""
    addresses = {
        "http://prefect:4200": f"http://127.0.0.1:{servers['prefect'].port}",
        "http://mlflow:5000": f"http://127.0.0.1:{servers['mlflow'].port}",
        "http://s3:7070": "http://127.0.0.1:1",
        "/workspace": str(folder / "root"),
    }
    own = deployment.service("worker", values, addresses).environment
    others = {name: canaries[name] for name in IN_THE_ENVIRONMENT}
    return {**deployment.clean_environment(**own, **others), "PREFECT_HOME": str(folder / "client")}


@contextlib.contextmanager
def command_lines(seen: set[bytes]) -> Iterator[None]:
    """Every command line of this machine while the block runs."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.2):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    with contextlib.suppress(OSError):
                        seen.add(Path(entry.path, "cmdline").read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


@pytest.fixture(scope="module")
def traces(
    servers: dict[str, Server],
    callers: dict[str, Caller],
    environment: dict[str, str],
    canaries: dict[str, str],
    folder: Path,
    smoke_root: Path,
) -> dict[str, bytes]:
    """All that a run that succeeds and one that fails left behind: what they printed, files, both databases, command lines."""
    root, seen = folder / "root", set[bytes]()
    shutil.copytree(smoke_root, root)
    shutil.rmtree(root / "evaluate")
    with command_lines(seen):
        good = _ran(*SMOKE, "--engine", "prefect", "--json", root=root, environment=environment)
        bad = _ran("run", "lvmae", "--source", "s3://videos/new", "--engine", "prefect", root=root, environment=environment)
    assert good.returncode == 0, good.stdout + good.stderr
    assert bad.returncode != 0
    _store_secret(servers["prefect"], callers["prefect"], canaries["BLOCK"])
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    tables = {f"{path.relative_to(folder)} as SQL": deployment.dump(path) for path in folder.rglob("*.db")}
    database = servers["prefect"].database
    assert database is not None
    tables, files = {**tables, PREFECT: database.rows()}, {**files, **database.files()}
    printed = {"good": good.stdout + good.stderr, "bad": bad.stdout + bad.stderr}
    return {**files, **tables, **{name: text.encode() for name, text in printed.items()}, "command lines": b"\n".join(seen)}


def _ran(*arguments: str, root: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, root=root),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**environment, "OMP_NUM_THREADS": ONE_THREAD["OMP_NUM_THREADS"]},
    )


def _store_secret(server: Server, call: Caller, value: str) -> None:
    """Store a block of kind ``secret``, as a person does in the browser."""
    token = call("GET", "/api/csrf-token?client=page", server.login).json()["token"]
    page = {**server.login, "Prefect-Csrf-Client": "page", "Prefect-Csrf-Token": token}
    kind = call("GET", "/api/block_types/slug/secret", page).json()["id"]
    wanted = {"block_schemas": {"block_type_id": {"any_": [kind]}}}
    schema = call("POST", "/api/block_schemas/filter", page, wanted).json()[0]["id"]
    block = {"name": "canary", "data": {"value": value}, "block_type_id": kind, "block_schema_id": schema}
    assert call("POST", "/api/block_documents/", page, block).status == 201


def found(canaries: Mapping[str, str], traces: Mapping[str, bytes]) -> dict[str, list[str]]:
    """In which traces which canaries are."""
    hits = {name: [where for where, content in traces.items() if value.encode() in content] for name, value in canaries.items()}
    return {name: where for name, where in hits.items() if where}


def test_no_secret_is_in_what_a_run_leaves_behind(canaries: dict[str, str], traces: dict[str, bytes]) -> None:
    assert len(canaries) >= 20
    assert not found(canaries, traces)


def test_the_search_for_secrets_looked_at_what_it_had_to(canaries: dict[str, str], traces: dict[str, bytes]) -> None:
    assert b"INSERT INTO" in traces[PREFECT]
    assert b"lvmae" in traces[PREFECT], "the run was recorded"
    assert any(name.startswith("database/") for name in traces)
    assert b"lvmae.stage" in traces["mlflow/mlflow.db as SQL"], "so was what it executed"
    assert b"--engine" in traces["command lines"]
    assert b"s3://videos/new" in traces["bad"]
    assert {"prefect/server.log", "mlflow/server.log"} <= set(traces)
    assert any(name.startswith("root/evaluate/") for name in traces)
    planted = {**traces, "planted": canaries["HF_TOKEN"].encode()}
    assert found(canaries, planted) == {"HF_TOKEN": ["planted"]}


def test_the_key_for_blocks_is_not_beside_them(traces: dict[str, bytes]) -> None:
    assert b"canary" in traces[PREFECT], "the block is there"
    assert b"fernet_key" not in traces[PREFECT]


def test_a_source_with_a_password_is_refused_and_not_repeated(
    environment: dict[str, str], canaries: dict[str, str], folder: Path
) -> None:
    source = f"s3://name:{canaries['URL_PASSWORD']}@videos/new"
    for arguments in (("--source", source), ("--set", f"shard.source.path={source}")):
        refused = _ran("run", "lvmae", *arguments, root=folder / "other", environment=environment)
        assert refused.returncode != 0
        assert "a password or a signature" in refused.stderr + refused.stdout
        assert canaries["URL_PASSWORD"] not in refused.stderr + refused.stdout
    assert not (folder / "other").exists() or not list((folder / "other").rglob("*.yaml"))
