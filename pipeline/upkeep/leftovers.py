"""What dead runs leave below a root beside artifacts: temporary files, shards without a record, checkpoints, scratch."""

import contextlib
import functools
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from stages.storage import artifact
from stages.storage.artifact import CHECKPOINTS
from stages.storage.clips import STAGE as CLIPS
from stages.storage.clips import TABLES, Dataset
from stages.storage.locks import exclusive, is_held
from stages.storage.publish import TEMPORARY
from stages.storage.workspace import FOLDERS, Workspace

SCRATCH = ".scratch"


class Leftover(NamedTuple):
    """Some files that belong to nothing."""

    name: str
    """What they lie in, below the root."""
    what: str
    why: str
    lock: Path | None
    """The folder that a live run would hold which still needs them; ``None``: nobody would."""
    find: Callable[[], list[Path]]
    """Looks for them. What is removed is looked for again while the lock is held."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The time within which no run needs them.

        Raises:
            Held: one does.
            FileNotFoundError: what they lie in is gone.
        """
        with exclusive(self.lock) if self.lock else contextlib.nullcontext():
            yield

    def remove(self) -> int:
        """Take them away; how many bytes they had."""
        size_bytes = 0
        for path in self.find():
            size_bytes += size_below(path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return size_bytes


def leftovers(workspace: Workspace, grace_s: float) -> list[Leftover]:
    """All that is there and that no live run holds.

    Args:
        workspace: where to look.
        grace_s: age of scratch folders of which nobody knows to whom they belong.
    """
    found = [*_temporary(workspace), *_unrecorded(workspace), *_checkpoints(workspace), *_scratch(workspace, grace_s)]
    return [one for one in found if one.find() and not (one.lock and is_held(one.lock))]


def size_below(path: Path) -> int:
    """Bytes of all files in a folder, or of one file."""
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(file.stat().st_size for file in files)


def _temporary(workspace: Workspace) -> Iterator[Leftover]:
    for place in [workspace.stage_folder(stage) for stage in FOLDERS] + [workspace.root / "sources"]:
        for folder in _folders(place):
            find = functools.partial(_temporary_files, folder)
            yield Leftover(workspace.relative(folder), "temporary files", "a run that is dead was writing them", folder, find)


def _temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY) and path.is_file()]


def _unrecorded(workspace: Workspace) -> Iterator[Leftover]:
    """Shards and parts of tables whose unit has no record: the run that made them ended before it wrote that."""
    for folder in _folders(workspace.stage_folder(CLIPS)):
        find = functools.partial(_orphans, Dataset(workspace, folder.name))
        why = "their unit has no record; the next run makes it anew"
        yield Leftover(workspace.relative(folder), "shards without a record", why, folder, find)


def _orphans(dataset: Dataset) -> list[Path]:
    recorded = set(dataset.committed())
    tables = (path for name in TABLES for path in dataset.folder.glob(f"{name}/part-*.parquet"))
    return [path for path in (*dataset.folder.glob("shards/*.tar"), *tables) if _ordinal(path) not in recorded]


def _checkpoints(workspace: Workspace) -> Iterator[Leftover]:
    for stage in FOLDERS:
        for made in artifact.committed(workspace, stage) if stage != CLIPS else ():
            find = functools.partial(_present, made.folder / CHECKPOINTS)
            yield Leftover(workspace.relative(made.folder), "checkpoints", "the artifact is committed", made.folder, find)


def _scratch(workspace: Workspace, grace_s: float) -> Iterator[Leftover]:
    for folder in _folders(workspace.root / SCRATCH):
        owners = [workspace.artifact_folder(CLIPS, folder.name), workspace.sources_folder(folder.name)]
        owner = next((path for path in owners if path.is_dir()), None)
        if owner or time.time() - folder.stat().st_mtime >= grace_s:
            find = functools.partial(_present, folder)
            yield Leftover(workspace.relative(folder), "scratch", "half-made files of a run that is dead", owner, find)


def _present(folder: Path) -> list[Path]:
    return [folder] if folder.is_dir() else []


def _folders(place: Path) -> list[Path]:
    return sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []


def _ordinal(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])
