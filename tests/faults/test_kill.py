"""SIGKILL in the middle of every stage: the rerun completes, and every byte is that of an undisturbed run."""

import os
import signal
import subprocess
import time
from pathlib import Path

from tests.pipelines import ONE_THREAD, SMOKE, artifact_files, command, lvmae

MIDDLE = {
    "shard": "clips/*/index/part-*.parquet",
    "tokenizer": "tokenizers/*/checkpoints/*/state.json",
    "precompute": "targets/*/ledger/part-*.parquet",
    "pretrain": "pretrain/*/checkpoints/*/state.json",
    "evaluate": "evaluate/*/features/part-*.safetensors",
    "export": "export/*/checkpoints/*.json",
}
"""What lies on disk once a stage has finished its first unit and not its last."""


def kill_in_the_middle(root: Path, first_unit: str) -> None:
    """Start the pipeline, wait for the first unit of a stage, and kill the whole process group."""
    log = root.parent / "log.txt"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command(*SMOKE, "--no-tracking", root=root),
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env=ONE_THREAD,
        )
    deadline = time.monotonic() + 300
    while not any(root.glob(first_unit)):
        assert process.poll() is None, f"the pipeline ended before {first_unit} was seen: {log.read_text()}"
        assert time.monotonic() < deadline, f"no {first_unit} within 300 s"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL, "the fault must fire"


def test_a_run_killed_in_every_stage_ends_with_the_same_bytes(smoke_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    for stage, first_unit in MIDDLE.items():
        kill_in_the_middle(root, first_unit)
        committed = "clips/*/snapshots/*.json" if stage == "shard" else f"{first_unit.split('/')[0]}/*/manifest.json"
        assert not list(root.glob(committed)), f"{stage} was killed too late to be in its middle"
    lvmae(*SMOKE, "--no-tracking", root=root)
    lvmae("verify", root=root)
    assert artifact_files(root) == artifact_files(smoke_root)
