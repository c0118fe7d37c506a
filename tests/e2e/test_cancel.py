"""A pretraining of two ranks is cancelled as in the UI, and then killed: none of its processes stays, and it is continued."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages.storage import checkpoints
from tests import servers
from tests.pipelines import SMOKE, json_lines, lvmae

pytestmark = pytest.mark.operation

MARK = "LVMAE_TEST_OF_CANCELLING"
EVERY_STEPS = 6
OVERRIDES = (
    "pretrain.num_ranks=2", "pretrain.num_workers=1", "pretrain.compile=false", "pretrain.optimization.num_steps=160",
    "pretrain.optimization.deterministic=true", "pretrain.optimization.accumulation_steps=2",
    "pretrain.optimization.log_every_steps=3", f"pretrain.optimization.checkpoint_every_steps={EVERY_STEPS}",
)  # fmt: skip
ASKED = {"recipe": "lvmae", "overlays": ["demo", "smoke"], "overrides": list(OVERRIDES), "tracking": False}
COMMAND = ("pretrain", *SMOKE[1:], *(word for pair in OVERRIDES for word in ("--set", pair)), "--no-tracking", "--json")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.PrefectServer]:
    with servers.prefect_server(tmp_path_factory.mktemp("prefect")) as running:
        servers.deploy(running)
        yield running


def processes(mark: str) -> dict[int, str]:
    """The processes that inherited a mark, without the worker that they belong to."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}\0".encode() in (place / "environ").read_bytes():
                found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it ended meanwhile
            continue
    return {number: command for number, command in found.items() if "worker start" not in command}


def newest_step(root: Path) -> int:
    return max((checkpoints.newest_step(folder) for folder in root.glob("pretrain/*")), default=0)


def test_cancelled_or_killed_a_training_leaves_no_process_and_is_continued_to_the_same_bytes(
    server: servers.PrefectServer, smoke_root: Path, tmp_path: Path
) -> None:
    alone, root = (Path(shutil.copytree(smoke_root, tmp_path / name)) for name in ("alone", "root"))
    shutil.rmtree(root / "pretrain")
    mark = tmp_path.name
    with servers.worker(server, pool="gpu", root=root, **{MARK: mark}) as worker:
        run = servers.start_run(server, "lvmae-pretrain/pretrain", ASKED)
        servers.eventually(lambda: newest_step(root) >= EVERY_STEPS)
        assert len(processes(mark)) >= 5, "the flow, the server that forks, two ranks, and loaders"
        servers.cancel(server, run)
        servers.eventually(lambda: not processes(mark), said=lambda: str(processes(mark)))
        assert servers.wait_for(server, run)["state_name"] == "Cancelled"
        names = [state["name"] for state in servers.call(server, "GET", f"/flow_run_states/?flow_run_id={run}")]
        assert names[-3:] == ["Running", "Cancelling", "Cancelled"]
        (said,) = re.findall(r"asked to end: the training continues from step (\d+)", log(server))
        saved = newest_step(root)
        assert saved == int(said)

        run = servers.start_run(server, "lvmae-pretrain/pretrain", ASKED)
        servers.eventually(lambda: newest_step(root) > saved)
        worker.kill()
        reached = newest_step(root)
        servers.eventually(lambda: newest_step(root) > reached)
        assert servers.flow_run(server, run)["state_type"] == "RUNNING", "it needs no worker to go on"
        os.kill(next(number for number, command in processes(mark).items() if "prefect.engine" in command), signal.SIGKILL)
        servers.eventually(lambda: not processes(mark), said=lambda: str(processes(mark)))
    reached = newest_step(root)
    (record,) = json_lines(lvmae(*COMMAND, root=root))
    assert (record["units_reused"], record["units_done"]) == (reached, 160 - reached)
    (undisturbed,) = json_lines(lvmae(*COMMAND, "--set", "pretrain.num_ranks=1", root=alone))
    assert record["digest"] == undisturbed["digest"], "those of one process that nobody disturbed"


def log(server: servers.PrefectServer) -> str:
    return (server.home / "worker-gpu.log").read_text()
