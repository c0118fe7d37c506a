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
    """An empty folder that is gone afterwards; what killed runs left under the same name goes first.

    The caller holds whatever ``name`` stands for against other live runs. A child process that outlived a killed run may still
    write into its own folder, which is why every run has a fresh one.
    """
    place = workspace.root / ".scratch" / name
    shutil.rmtree(place, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=make_folder(place)))
    try:
        yield folder
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run has a folder there
            place.parent.rmdir()
