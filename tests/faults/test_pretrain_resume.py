"""The pretraining, killed anywhere and run again, ends with the bits of the one that was not; asked to end, it saves first."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stages import precompute
from stages.storage import checkpoints
from stages.storage.workspace import Workspace
from tests.faults.harness import REPOSITORY, Laboratory
from tests.faults.pretrain_work import EVERY_STEPS, NUM_STEPS, PUBLISHED
from tests.faults.resuming import Bench, resumed_after_kills
from tests.faults.tokenizer_work import HEAVY
from tests.stages.target_world import grow, precompute_config, words

SEED = 20_251_127
PATIENCE_S = 120
DRIVER = """
import sys, time
from pathlib import Path
from stages import pretrain
from stages.progress import Silent
from stages.storage.workspace import Workspace
from tests.faults import pretrain_work

class Slow(Silent):
    def advance(self, amount=1):
        print("step", flush=True)
        time.sleep(0.2 if ranks == 1 else 0)

if __name__ == "__main__":
    root, steps, ranks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    config = pretrain_work.config()
    optimization = config.optimization.model_copy(update={"num_steps": steps})
    config = config.model_copy(update={"num_ranks": ranks, "optimization": optimization})
    pretrain.run(config, pretrain_work.inputs(root), Workspace(Path(root), monitor=Slow()))
"""


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root, scratch = tmp_path_factory.mktemp("inputs") / "root", tmp_path_factory.mktemp("scratch")
    workspace = Workspace(root)
    snapshot = grow(workspace, 0, scratch)
    precompute.run(precompute_config(), {"shard": snapshot, "tokenizer": words(workspace)}, workspace)
    with Laboratory("tests.faults.pretrain_work", *HEAVY) as laboratory:
        made = Bench(laboratory, "tests.faults.pretrain_work:run", root, "pretrain", PUBLISHED)
        made.undisturbed(tmp_path_factory.mktemp("whole") / "root")
        yield made


@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_at_random_points_the_training_ends_with_the_same_bits(bench: Bench, tmp_path: Path, num_workers: int) -> None:
    resumed_from = resumed_after_kills(bench, tmp_path, kills=20, num_workers=num_workers, seed=SEED + num_workers)
    assert resumed_from <= {*range(0, NUM_STEPS + 1, EVERY_STEPS)}


def started(root: Path, *, num_steps: int, num_ranks: int) -> subprocess.Popen[str]:
    """A training in a process of its own."""
    driver = root.parent / "driver.py"
    driver.write_text(DRIVER)
    command = [sys.executable, str(driver), str(root), str(num_steps), str(num_ranks)]
    environment, pipe = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}, subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def after_steps(process: subprocess.Popen[str], count: int) -> None:
    """Wait until so many steps were done."""
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline() == "step\n"


def test_asked_to_end_it_saves_and_is_continued(bench: Bench, tmp_path: Path) -> None:
    root = bench.fresh(tmp_path / "root")
    with started(root, num_steps=NUM_STEPS, num_ranks=1) as process:
        after_steps(process, 5)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGTERM
    (folder,) = root.glob("pretrain/*")
    step = checkpoints.newest_step(folder)
    assert step in (5, 6, 7), "the step in hand was finished and saved"
    healed = bench.run(root)
    assert healed.error is None, healed.message
    assert healed.result == step
    assert bench.is_the_same(root)


@pytest.mark.parametrize("fate", [signal.SIGTERM, signal.SIGKILL])
def test_ranks_end_together(bench: Bench, tmp_path: Path, fate: signal.Signals) -> None:
    """Asked to end, all of them do so in order; and when one is killed, nobody waits for it."""
    root = bench.fresh(tmp_path / "root")
    with started(root, num_steps=30_000, num_ranks=2) as process:
        after_steps(process, 7)
        ranks = [rank for server in children_of(process.pid) for rank in children_of(server)]
        assert len(ranks) == 2
        os.kill(process.pid if fate is signal.SIGTERM else max(ranks), fate)
        sent_s = time.monotonic()
        _, said = process.communicate(timeout=PATIENCE_S)
    assert time.monotonic() - sent_s < 30
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    if fate is signal.SIGTERM:
        assert process.returncode == -signal.SIGTERM
    else:
        assert process.returncode == 1
        assert "ended with signal 9, and the others were stopped; run again to continue from the last checkpoint" in said
    (folder,) = root.glob("pretrain/*")
    assert checkpoints.newest_step(folder) >= EVERY_STEPS


def children_of(pid: int) -> list[int]:
    """Processes whose parent a process is."""
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if int(place.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(place.parent.name))
    return found
