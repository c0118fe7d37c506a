"""Pretraining over several processes by torchrun: one supervised launch per node, as part of the run that asks for it.

``LVMAE_LAUNCH=torchrun`` asks for it, in the environment of the process that runs the stage: how a training is carried out is
no part of the recipe and changes no fingerprint. What is launched is the command ``lvmae pretrain`` that a person would type.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import queue
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from pipeline.launching.relay import RELAY, replay
from pipeline.recipe import Request
from stages import pretrain
from stages.errors import ArtifactMissing, ConfigError, PipelineError
from stages.signals import Ended, in_good_order
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.workspace import Workspace

LAUNCH = "LVMAE_LAUNCH"
PROCESSES = "LVMAE_PROCESSES_PER_NODE"
NODES = "LVMAE_NODES"
ADDRESS = "LVMAE_NODE_ADDRESS"
STAGE = "pretrain"

_LOOK_S = 0.5
_GRACE_S = 25.0
"""How long ranks have for the step in hand and its checkpoint. Prefect's workers kill a run 30 s after they asked it to end."""
_WRONG_REQUEST = 2
"""The exit code of our command where a person must change something."""
_ROOT_CAUSE = re.compile(r"rank\s*: (?P<rank>\d+) \(local_rank: (?P<local>\d+)\).*?exitcode\s*: (?P<code>-?\d+)", re.DOTALL)

_log = logging.getLogger(__name__)


class Meeting(NamedTuple):
    """Where the nodes of one training find each other; alone without an address."""

    num_nodes: int = 1
    processes: int = 1
    """Ranks per node."""
    address: str = ""
    """``host:port`` of the first node."""
    name: str = ""
    """Tells it from other trainings."""


Beside = Callable[[Request, str, Meeting], contextlib.AbstractContextManager[Callable[[], None]]]
"""Starts the other nodes of a training below a root for as long as the block lasts; gives what raises if one of them failed."""


def chosen_launch(request: Request, root: str, beside: Beside) -> dict[str, "Launch"]:
    """The stages that the environment wants to be launched, ready to be run in place of the stage's own function.

    Args:
        request: what was asked for.
        root: where artifacts lie.
        beside: starts other nodes.

    Raises:
        ConfigError: a variable does not fit.
    """
    name = os.environ.get(LAUNCH)
    if not name:
        return {}
    if name != "torchrun":
        raise ConfigError(f"{LAUNCH}={name!r}: expected torchrun, or nothing to train in the process of the run")
    return {STAGE: Launch(request, root, nodes=_count(NODES), processes=_count(PROCESSES), beside=beside)}


def _count(name: str) -> int:
    text = os.environ.get(name) or "1"
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{name}={text!r}: expected a number from 1 on")
    return int(text)


@dataclasses.dataclass(frozen=True)
class Launch:
    """Pretrains in processes of torchrun, the first node of which is here; called like the stage itself.

    Args:
        request: what was asked for.
        root: where artifacts lie, the same on every node.
        nodes: how many.
        processes: ranks per node.
        beside: starts the other nodes.
    """

    request: Request
    root: str
    nodes: int
    processes: int
    beside: Beside

    def __call__(self, config: pretrain.Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
        """The artifact, made by the ranks or found made.

        Raises:
            PipelineError: what a rank raised that a person must change.
            OSError: a rank ended otherwise, or another node did; the message names its log.
        """
        name = artifact.fingerprint(STAGE, pretrain.VERSION, config, inputs)
        if artifact.find_whole(workspace, STAGE, name):
            return pretrain.run(config, inputs, workspace)
        if workspace.artifact_folder(STAGE, name).exists():
            with workspace.lock(STAGE, name):  # to be told now if another run makes it
                pass
        record: dict[str, Any] = {}
        pinned = {} if self.request.snapshot else {"snapshot": inputs["shard"].digest}
        self._train(self.request.model_copy(update=pinned), functools.partial(_heard, workspace, record))
        made = artifact.find(workspace, STAGE, name)
        if made is None:
            raise ArtifactMissing(
                f"the ranks made {record.get('path', 'nothing')} instead of {workspace.artifact_folder(STAGE, name)}; "
                "run again with inputs that do not change meanwhile"
            )
        return Outcome(made, record["units_done"], record["units_reused"], made.manifest.counts, record["metrics"])

    def _train(self, request: Request, heard: Callable[[str], None]) -> None:
        meeting = Meeting(self.nodes, self.processes)
        if self.nodes == 1:
            train(request, self.root, meeting, node=0, heard=heard)
            return
        meeting = meeting._replace(address=_address(), name=uuid.uuid4().hex[:12])
        with self.beside(request, self.root, meeting) as check:
            train(request, self.root, meeting, node=0, heard=heard, check=check)


def _address() -> str:
    """Where other nodes reach this one."""
    host = os.environ.get(ADDRESS) or socket.gethostname()
    with socket.socket() as listener:
        listener.bind(("", 0))
        return f"{host}:{listener.getsockname()[1]}"


def _heard(workspace: Workspace, record: dict[str, Any], line: str) -> None:
    """Take in a line of the first rank: progress, the record of the stage, or something else."""
    try:
        said = json.loads(line)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        _log.info("%s", line)
    elif not replay(said, workspace.monitor) and said.get("stage") == STAGE:
        record.update(said)


def train(
    request: Request,
    root: str,
    meeting: Meeting,
    *,
    node: int,
    heard: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Run the ranks of one node until the training is through.

    Asked to end by SIGTERM, ranks save a checkpoint after the step in hand; whatever else ends the wait ends them as well.

    Args:
        request: what to pretrain.
        root: where artifacts lie.
        meeting: of the nodes.
        node: which one this is, from 0.
        heard: told every line that the ranks write to standard output.
        check: called now and then; what it raises ends the training.

    Raises:
        PipelineError: what a rank raised that a person must change.
        OSError: a rank ended otherwise; the message names its log.
    """
    name = meeting.name or f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}"
    logs = Workspace.at(root).root / "logs" / STAGE / name / f"node-{node}"
    logs.mkdir(parents=True, exist_ok=True)
    argv = [*launcher(meeting, node, logs), "-m", "pipeline", STAGE, *shlex.split(request.spelled())]
    argv += ["--root", root, "--no-tracking", "--json"]
    said: list[str] = []
    code = in_good_order(functools.partial(_supervise, argv, heard, functools.partial(_noted, said), check))
    if code:
        raise _explained(code, "\n".join(said), logs)


def launcher(meeting: Meeting, node: int, logs: Path) -> list[str]:
    """The beginning of a command: torchrun for one node, with what every rank writes to standard error kept in ``logs``."""
    found = ["--rdzv-backend", "static", "--rdzv-endpoint", meeting.address, "--rdzv-id", meeting.name]
    return [
        sys.executable, "-m", "stages.agent", *(found if meeting.address else ["--standalone"]),
        "--nnodes", str(meeting.num_nodes), "--node-rank", str(node), "--nproc-per-node", str(meeting.processes),
        "--max-restarts", "0", "--log-dir", str(logs), "--tee", "2",
    ]  # fmt: skip


def _noted(said: list[str], line: str) -> None:
    _log.info("%s", line)
    said.append(line)


def _supervise(
    argv: Sequence[str],
    heard: Callable[[str], None],
    noted: Callable[[str], None],
    check: Callable[[], None],
    is_asked_to_end: Callable[[], bool],
) -> int:
    """The exit code of a command in a session of its own.

    Raises:
        Ended: it was asked to end, and has.
    """
    environment, pipe = {**os.environ, RELAY: "1"}, subprocess.PIPE
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True
    ) as process:
        lines: queue.SimpleQueue[tuple[Callable[[str], None], str]] = queue.SimpleQueue()
        readers = [_reader(process.stdout, heard, lines), _reader(process.stderr, noted, lines)]
        try:
            while process.poll() is None or any(reader.is_alive() for reader in readers) or not lines.empty():
                with contextlib.suppress(queue.Empty):
                    told, line = lines.get(timeout=_LOOK_S)
                    told(line)
                if is_asked_to_end():
                    raise Ended
                if process.poll() is None:
                    check()
        finally:
            _end(process)
            for reader in readers:
                reader.join()
    return process.returncode


def _reader(
    stream: IO[str] | None, told: Callable[[str], None], lines: "queue.SimpleQueue[tuple[Callable[[str], None], str]]"
) -> threading.Thread:
    def read() -> None:
        for line in stream or ():
            lines.put((told, line.rstrip("\n")))

    thread = threading.Thread(target=read, name="read ranks", daemon=True)
    thread.start()
    return thread


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the agent to end its ranks, and after a while kill it; ranks follow it."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
    if process.poll() is None:
        process.kill()
        process.wait()


def _explained(code: int, said: str, logs: Path) -> Exception:
    """The error that a launch ended with: that of the rank which failed first, as torchrun names it."""
    cause = _ROOT_CAUSE.search(said.rpartition("Root Cause")[2])
    if not cause:
        return OSError(f"torchrun ended with {_spelled(code)} and names no rank; what the ranks wrote is below {logs}")
    places = sorted(logs.glob(f"*/attempt_*/{cause['local']}/stderr.log"))
    text = places[-1].read_text(errors="replace") if places else ""
    named = f"rank {cause['rank']} ended with {_spelled(int(cause['code']))}; its log: {places[-1] if places else logs}"
    *_, reason = ["", *(line.removeprefix("error: ") for line in text.splitlines() if line.startswith("error: "))]
    if int(cause["code"]) == _WRONG_REQUEST:
        return PipelineError(f"{reason} ({named})")
    return OSError(f"{named}; run again to continue from the last checkpoint" + (f": {reason}" if reason else ""))


def _spelled(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
