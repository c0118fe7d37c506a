"""What all tests share: one thread per process, so that tests neither fight for cores nor depend on their number."""

from pathlib import Path

import pytest
import torch

from tests.pipelines import SMOKE, lvmae

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def smoke_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which the shrunk pipeline ran once, from end to end. Tests read it and never change it."""
    root = tmp_path_factory.mktemp("smoke") / "root"
    done = lvmae(*SMOKE, "--json", root=root)
    (root.parent / "stdout.txt").write_text(done.stdout)
    (root.parent / "stderr.txt").write_text(done.stderr)
    return root
