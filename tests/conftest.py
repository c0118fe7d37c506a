"""What all tests share: one thread per process, so that tests neither fight for cores nor depend on their number."""

import os
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tests.pipelines import SMOKE, lvmae

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which the shrunk pipeline ran once, from end to end. Tests read it and never change it."""
    own = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have folders of their own within one: the first that comes makes the root for all.
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "smoke"
    with FileLock(f"{folder}.lock"):
        if not (folder / "stdout.txt").exists():
            done = lvmae(*SMOKE, "--json", root=folder / "root")
            (folder / "stderr.txt").write_text(done.stderr)
            (folder / "stdout.txt").write_text(done.stdout)
    return folder / "root"
