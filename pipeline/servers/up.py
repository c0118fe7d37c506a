"""``lvmae up``: everything that one machine needs, started by one command and ended with it.

Prefect's server with pools, deployments and automations, a worker per pool, MLflow on the root's own store, the pages of the
results, and, if a folder is watched, what tells of new videos. All of it listens on this machine alone.
"""

import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from pipeline.environment import DEFAULTS
from pipeline.servers.children import Child, Children
from pipeline.tracking.outbox import DATABASE
from stages.errors import ArtifactBusy, ConfigError
from stages.storage.workspace import Workspace

HOST = "127.0.0.1"
POOLS = ("cpu", "gpu")
START_S = 600.0
"""A server that starts for the first time on a busy machine makes its database for minutes."""

MLFLOW_ARTIFACTS = "mlartifacts"
"""As in ``pipeline/tracking/mlflow_store.py``, which would bring all of MLflow along."""

_HOME = ".prefect"
_LOOK_S = 0.5


class Watched(NamedTuple):
    """A folder that is watched, and what is run on what lands in it."""

    folder: Path
    recipe: str
    overlays: tuple[str, ...]

    def options(self, workspace: Workspace) -> list[str]:
        """The recipe and the root as commands take them."""
        overlays = [part for name in self.overlays for part in ("--overlay", name)]
        return ["--recipe", self.recipe, *overlays, "--root", str(workspace.root)]


class Ports(NamedTuple):
    """Where the servers listen."""

    prefect: int
    mlflow: int
    files: int

    def url(self, port: int) -> str:
        """The address of a server."""
        return f"http://{HOST}:{port}"


def run_until_ended(*, root: str, watched: Watched | None, port: int) -> None:
    """Start everything, say where it is, and keep it up until Ctrl-C or SIGTERM.

    Raises:
        ConfigError: a port is taken, or another such command uses the root.
        ChildFailed: a process cannot be kept up.
    """
    workspace = Workspace.at(root)
    ports = _ports(port)
    with _alone(workspace) as home, _ended_by_signals():
        surroundings = environment(workspace, home, ports)
        with Children(surroundings, logs=home / "logs", say=_say) as children:
            _say(f"starting    Prefect, MLflow and workers; their output goes to {home / 'logs'}")
            mlflow = _start_servers(children, workspace, ports, watched)
            _start_workers(children)
            if watched:
                _start_watching(children, watched, workspace)
            if mlflow:
                children.wait_for(mlflow, f"{ports.url(ports.mlflow)}/health", patience_s=START_S)
            _tell(surroundings, workspace, ports, watched)
            while True:
                time.sleep(_LOOK_S)
                children.check()


def environment(workspace: Workspace, home: Path, ports: Ports) -> dict[str, str]:
    """What all processes are told; what the user has set stays, apart from where this server is."""
    ui = ports.url(ports.prefect)
    chosen = {
        **DEFAULTS,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{ui},http://localhost:{ports.prefect}",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "MLFLOW_TRACKING_URI": ports.url(ports.mlflow),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PREFECT_HOME": str(home),
        **os.environ,
    }
    return {
        **chosen,
        "PREFECT_API_URL": f"{ui}/api",
        "LVMAE_ROOT": str(workspace.root),
        "LVMAE_FILES_URL": ports.url(ports.files),
        "NO_PROXY": f"{HOST},localhost",
    }


def _ports(first: int) -> Ports:
    """The first and those after it, or any that are free.

    Raises:
        ConfigError: one is taken.
    """
    if first == 0:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            for listener in (one, two, three):
                listener.bind((HOST, 0))
            return Ports(*(listener.getsockname()[1] for listener in (one, two, three)))
    for port in range(first, first + 3):
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((HOST, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {HOST} is taken ({error.strerror}), by another `lvmae up` perhaps; give another with "
                    "--port, or --port 0 for any that are free"
                ) from error
    return Ports(first, first + 1, first + 2)


def _start_servers(children: Children, workspace: Workspace, ports: Ports, watched: Watched | None) -> Child | None:
    """Prefect with everything deployed, the files, and MLflow, which may still be starting; ``None`` if another is used."""
    prefect = children.start("prefect", _python("prefect", "server", "start", "--host", HOST, "--port", str(ports.prefect)))
    children.start("files", _python("pipeline.servers.files", str(workspace.root), str(ports.files)))
    mlflow = None if "MLFLOW_TRACKING_URI" in os.environ else _start_mlflow(children, workspace, ports.mlflow)
    children.wait_for(prefect, f"{ports.url(ports.prefect)}/api/health", patience_s=START_S)
    children.finish("deploy", _python("pipeline", "deploy", *_sensed(watched, workspace)))
    return mlflow


def _start_mlflow(children: Children, workspace: Workspace, port: int) -> Child:
    options = {
        "--host": HOST,
        "--port": str(port),
        "--backend-store-uri": f"sqlite:///{workspace.root / DATABASE}",
        "--artifacts-destination": str(workspace.root / MLFLOW_ARTIFACTS),
        "--workers": "1",
    }
    return children.start("mlflow", _python("mlflow", "server", *(part for pair in options.items() for part in pair)))


def _start_workers(children: Children) -> None:
    for pool in POOLS:
        arguments = ("worker", "start", "--pool", pool, "--type", "process", "--limit", "1", "--name", f"{pool} of lvmae up")
        children.start(f"worker-{pool}", _python("prefect", *arguments))


def _start_watching(children: Children, watched: Watched, workspace: Workspace) -> None:
    watched.folder.mkdir(parents=True, exist_ok=True)
    children.start("watch", _python("pipeline", "watch", str(watched.folder), *watched.options(workspace)))


def _sensed(watched: Watched | None, workspace: Workspace) -> list[str]:
    """What `lvmae deploy` is told, so that the sensor finds what an event did not tell."""
    return ["--incoming", str(watched.folder), *watched.options(workspace)] if watched else []


def _tell(surroundings: Mapping[str, str], workspace: Workspace, ports: Ports, watched: Watched | None) -> None:
    """The addresses, and what to click first."""
    prefect = ports.url(ports.prefect)
    lines = [
        f"Prefect     {prefect}",
        f"MLflow      {surroundings['MLFLOW_TRACKING_URI']}",
        f"artifacts   {workspace.root}, to be seen at {ports.url(ports.files)}",
        *([f"watched     {watched.folder} for {'+'.join([watched.recipe, *watched.overlays])}"] if watched else []),
        "",
        f"Open {prefect}/deployments, click pipeline, then Run and Quick run: that is the demo.",
        "Ctrl-C ends everything here.",
    ]
    _say("\n".join(lines))


def _python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline.servers.tied", module, *arguments]


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """The block ends, without an error, with the first Ctrl-C or SIGTERM; those after it are ignored, so that ending ends."""
    signals = (signal.SIGINT, signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, end) for one in signals}
    try:
        yield
    except KeyboardInterrupt:
        _say("ended       what is done stays; runs that were cut off go on with Retry")
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def _alone(workspace: Workspace) -> Iterator[Path]:
    """The folder of Prefect's database, which two servers must not share."""
    home = workspace.root / _HOME
    try:
        with workspace.hold(home):
            yield home
    except ArtifactBusy as error:
        raise ConfigError(f"{home}: another `lvmae up` uses it; end that one, or give another --root") from error


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
