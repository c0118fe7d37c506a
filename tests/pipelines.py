"""Running the real command on the shrunk pipeline, and reading what it left: shared by the end-to-end and the fault tests."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SMOKE = ("run", "lvmae", "--overlay", "demo", "--overlay", "smoke")
STAGES = ("shard", "tokenizer", "precompute", "pretrain", "evaluate", "export")


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Tiny networks lose more to threads than they gain; and bytes are equal only for an equal number of threads."""


def command(*arguments: str, root: Path) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments, "--root", str(root)]


def lvmae(*arguments: str, root: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; its exit code must be ``code``."""
    done = subprocess.run(
        command(*arguments, root=root), capture_output=True, text=True, timeout=600, check=False, env=ONE_THREAD
    )
    assert done.returncode == code, f"exit code {done.returncode} instead of {code}\n{done.stdout}\n{done.stderr}"
    return done


def json_lines(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_stage(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {line["stage"]: line for line in json_lines(done) if "stage" in line}


def listing(root: Path) -> dict[str, tuple[int, str]]:
    """Every file below ``root`` with its time of change and digest."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in files
    }


def artifact_files(root: Path) -> dict[str, str]:
    """The digests of all files that belong to artifacts: everything but MLflow's records and the cache of sightings."""
    outside = ("mlflow.db", "mlartifacts/", "outbox/")
    return {
        name: digest
        for name, (_, digest) in listing(root).items()
        if not name.startswith(outside) and not name.endswith("/seen.parquet")
    }
