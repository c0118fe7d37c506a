"""Folders for half-made files, below the root so that they lie on the same disk as what they become."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from stages.storage.publish import make_folder
from stages.storage.workspace import Workspace


@contextlib.contextmanager
def scratch_folder(workspace: Workspace, name: str) -> Iterator[Path]:
    """An empty folder of nobody else that is gone afterwards; several may have one under the same name."""
    place = workspace.root / ".scratch" / name
    folder = Path(tempfile.mkdtemp(dir=make_folder(place)))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # and never what lies above it: another may be about to put a folder there


def clear_scratch(workspace: Workspace, name: str) -> None:
    """Remove all that lies under a name; the caller holds whatever it stands for against other live runs.

    A child process that outlived a killed run may still write into its own folder, which is why every run has a fresh one.
    """
    shutil.rmtree(workspace.root / ".scratch" / name, ignore_errors=True)
