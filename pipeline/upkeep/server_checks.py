"""Checks of the servers that the environment names: Prefect's with its pools and deployments, MLflow's, credentials."""

import contextlib
import email.utils
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline import environment
from pipeline.tracking.outbox import DATABASE, StoreRefused, StoreUnreachable, address
from pipeline.upkeep.findings import Check, fail, ok, warn
from pipeline.upkeep.machine_checks import compared

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "")
_CREDENTIALS = {
    "PREFECT_API_AUTH_STRING": "PREFECT_API_URL",
    "MLFLOW_TRACKING_USERNAME": "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_PASSWORD": "MLFLOW_TRACKING_URI",
}
"""What a server on another machine wants to know, and the variable that names the server."""
_TIMEOUT_S = 10
_ONLINE = "ONLINE"


def servers(root: Path) -> Iterator[Check]:
    """All servers."""
    environment.prepare()
    yield from credentials(os.environ)
    yield from prefect()
    yield mlflow(root)


def credentials(variables: Mapping[str, str]) -> Iterator[Check]:
    """Whether servers that are not on this machine are told who asks. Values are neither kept nor printed."""
    for name, server in _CREDENTIALS.items():
        where = urlsplit(variables.get(server, ""))
        is_remote = where.scheme.startswith("http") and (where.hostname or "") not in _LOOPBACK
        if variables.get(name):
            yield ok(f"credential {name}", "set")
        elif is_remote:
            found = f"not set, and {server} names another machine"
            yield warn(f"credential {name}", found, f"set {name}, unless that server asks nobody who they are")
        else:
            yield ok(f"credential {name}", "not set, and not needed: no server on another machine is named")


def prefect() -> Iterator[Check]:
    """The server, its version and clock, and what is ready there to run flows."""
    from httpx import HTTPStatusError
    from prefect import __version__
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL

    where = PREFECT_API_URL.value() or ""
    if not where:
        remedy = "`lvmae up` starts one; without it `lvmae run` works, and Prefect starts a temporary one for each flow"
        yield warn("prefect", "PREFECT_API_URL is not set", remedy)
        return
    try:
        with get_client(sync_client=True) as client:
            asked_s = time.time()
            answer = client.request("GET", "/admin/version", timeout=_TIMEOUT_S)
            answer.raise_for_status()
            yield _version(_plain(where), answer.json(), __version__)
            yield from _clock(answer.headers, asked_s)
            yield from _pools(client)
            yield from _deployments(client)
    except HTTPStatusError as error:
        code = error.response.status_code
        remedy = "set PREFECT_API_AUTH_STRING" if code in (401, 403) else "look at the server's log"
        yield fail("prefect", f"{_plain(where)} answers {code}", remedy)
    except Exception as error:  # noqa: BLE001  the client raises what its transport does, and its own errors
        found = f"{_plain(where)} does not answer: {type(error).__name__}"
        yield fail("prefect", found, "start it with `lvmae up`, or correct PREFECT_API_URL")


def mlflow(root: Path) -> Check:
    """The store that runs are recorded in."""
    where = address(root)
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (root / DATABASE).exists():
        return ok("mlflow", "no store below this root yet; the first run makes it")
    from pipeline.tracking import mlflow_store  # with MLflow, which takes seconds

    begun_s = time.monotonic()
    try:
        with mlflow_store.reaching("list experiments"):
            found = mlflow_store.client_of(root).search_experiments(max_results=1)
    except (StoreUnreachable, StoreRefused) as error:
        remedy = "start it, or correct MLFLOW_TRACKING_URI; runs go on without it and send what they recorded later"
        return fail("mlflow", f"{_plain(where)}: {_first_line(error)}", remedy)
    return ok("mlflow", f"{_plain(where)} answers in {time.monotonic() - begun_s:.1f} s{'' if found else ', and is empty'}")


def _version(where: str, there: str, here: str) -> Check:
    if there != here:
        return warn("prefect", f"{where} is version {there}, this one {here}", "give both the same version")
    return ok("prefect", f"{where} answers, version {there}")


def _clock(headers: Mapping[str, str], asked_s: float) -> Iterator[Check]:
    """The server's clock: schedules and heartbeats go by it. It may have been read at any moment since it was asked for."""
    with contextlib.suppress(KeyError, ValueError, TypeError):
        there_s = email.utils.parsedate_to_datetime(headers["date"]).timestamp()
        yield compared("clock of prefect", there_s - min(max(there_s, asked_s), time.time()))


def _pools(client: Any) -> Iterator[Check]:
    pools = client.read_work_pools()
    if not pools:
        yield warn("work pools", "there are none", "`lvmae deploy` makes them")
    for pool in pools:
        answer = client.request("POST", "/work_pools/{name}/workers/filter", path_params={"name": pool.name}, json={})
        answer.raise_for_status()
        online = sum(worker["status"] == _ONLINE for worker in answer.json())
        if pool.is_paused:
            yield warn(f"work pool {pool.name}", "is paused", f"`prefect work-pool resume {pool.name}`")
        elif not online:
            remedy = f"`lvmae up`, or `prefect worker start --pool {pool.name}` where its runs should be"
            yield warn(f"work pool {pool.name}", "no worker is there", remedy)
        else:
            yield ok(f"work pool {pool.name}", f"{online} worker{'s' * (online > 1)} there")


def _deployments(client: Any) -> Iterator[Check]:
    names = [one.name for one in client.read_deployments()]
    if not names:
        yield warn("deployments", "there are none", "`lvmae deploy` makes them")
    else:
        yield ok("deployments", ", ".join(sorted(names)))


def _plain(where: str) -> str:
    """An address without the name and the password that may stand in it."""
    parts = urlsplit(where)
    if "@" not in parts.netloc and not parts.query:
        return where
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
