"""``lvmae gc``: what may go below a root, and taking it away in two steps that a kill cannot leave half done.

An artifact is first renamed into ``.trash`` below the root, which takes one call, and then removed; what a killed run left in
there the next one removes. Both happen while its folder and its manifest are locked, and after another look at whether it is
kept: who makes or reads an artifact has one of the locks.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.upkeep.collection import Key, Node, Policy, in_order, kept
from pipeline.upkeep.leftovers import Leftover, leftovers, size_below
from stages.errors import ArtifactDamaged
from stages.storage import artifact
from stages.storage.artifact import MANIFEST
from stages.storage.clips import STAGE as CLIPS
from stages.storage.clips import Dataset
from stages.storage.locks import Held, exclusive, is_held
from stages.storage.publish import make_folder, sync_folder
from stages.storage.workspace import FOLDERS, Workspace

TRASH = ".trash"


class Wanted(NamedTuple):
    """What a person asks to be kept."""

    num_snapshots: int
    """Of every dataset; what was made from an older one may go."""
    named: Mapping[str, str]
    """Fingerprints, or their beginnings, each with who names it."""
    grace_s: float


class Finding(NamedTuple):
    """Something that may go, or an artifact that is kept."""

    path: str
    """Below the root."""
    what: str
    """``artifact``, ``trash``, or a kind of leftover."""
    why: str
    size_bytes: int
    is_kept: bool = False
    is_gone: bool = False
    """Whether it was removed."""

    def record(self) -> dict[str, Any]:
        """As one JSON object."""
        return self._asdict()


def survey(workspace: Workspace, wanted: Wanted) -> list[Finding]:
    """Everything that may go, and every artifact that is kept, each with the reason. Writes nothing.

    Raises:
        ArtifactDamaged: the snapshots of a dataset cannot be read, so that it is not known what is new.
    """
    nodes, reasons = _marked(workspace, wanted)
    found = [_artifact_finding(workspace, node, reasons.get(node.key)) for node in sorted(nodes, key=lambda node: node.key)]
    return [*_trash(workspace), *found, *map(_leftover_finding, leftovers(workspace, wanted.grace_s))]


def collect(workspace: Workspace, wanted: Wanted) -> Iterator[Finding]:
    """Take away everything that may go; what was, as it goes.

    What is in use by then, or kept after another look, stays and is not named.
    """
    yield from _empty_trash(workspace)
    nodes, reasons = _marked(workspace, wanted)
    for node in in_order(node for node in nodes if node.key not in reasons):
        finding = _artifact_finding(workspace, node, None)
        if _take(workspace, node, wanted):
            yield finding._replace(is_gone=True)
    for one in leftovers(workspace, wanted.grace_s):
        with contextlib.suppress(Held, FileNotFoundError):
            with one.alone():
                size_bytes = one.remove()
            yield Finding(one.name, one.what, one.why, size_bytes, is_gone=True)


def _take(workspace: Workspace, node: Node, wanted: Wanted) -> bool:
    """Remove one artifact, unless it is in use or kept by now."""
    folder = workspace.artifact_folder(*node.key)
    manifest = folder / MANIFEST
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(exclusive(folder))
            if node.digest is not None:
                stack.enter_context(exclusive(manifest))
            if manifest.exists() != (node.digest is not None) or not _may_go_still(workspace, node.key, wanted):
                return False
            trashed = make_folder(workspace.root / TRASH) / f"{node.key.stage}-{node.key.name}-{uuid.uuid4().hex[:8]}"
            folder.rename(trashed)
            sync_folder(trashed.parent)
            sync_folder(folder.parent)
    except (Held, FileNotFoundError):
        return False
    shutil.rmtree(trashed)
    return True


def _may_go_still(workspace: Workspace, key: Key, wanted: Wanted) -> bool:
    """Whether nothing came that needs an artifact; its own locks, which are held here, do not count."""
    nodes, reasons = _marked(workspace, wanted, held_here=key)
    return any(node.key == key for node in nodes) and key not in reasons


def _marked(workspace: Workspace, wanted: Wanted, held_here: Key | None = None) -> tuple[list[Node], dict[Key, str]]:
    nodes = [node for stage in FOLDERS if stage != CLIPS for node in _nodes(workspace, stage, held_here)]
    policy = Policy(_newest(workspace, wanted.num_snapshots), wanted.named, wanted.grace_s)
    return nodes, kept(nodes, policy)


def _nodes(workspace: Workspace, stage: str, held_here: Key | None) -> Iterator[Node]:
    place = workspace.stage_folder(stage)
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        if folder.is_dir() and not folder.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                yield _node(workspace, Key(stage, folder.name), is_ours=Key(stage, folder.name) == held_here)


def _node(workspace: Workspace, key: Key, *, is_ours: bool) -> Node:
    folder = workspace.artifact_folder(*key)
    is_live = not is_ours and (is_held(folder) or is_held(folder / MANIFEST))
    try:
        made = artifact.find(workspace, *key)
    except ArtifactDamaged:
        return Node(key, None, {}, _age_s(folder), is_live=is_live, is_damaged=True)
    if made is None:
        return Node(key, None, {}, _age_s(folder), is_live=is_live)
    inputs = {name: value.digest for name, value in made.manifest.inputs.items()}
    return Node(key, made.digest, inputs, time.time() - made.manifest_path.stat().st_mtime, is_live=is_live)


def _newest(workspace: Workspace, count: int) -> frozenset[str]:
    place = workspace.stage_folder(CLIPS)
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    return frozenset(
        one.digest for folder in folders for one in Dataset(workspace, folder.name).snapshots()[-count:] if count > 0
    )


def _age_s(folder: Path) -> float:
    """Seconds since the newest file below a folder, or the folder itself, was written."""
    times = [path.stat().st_mtime for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return time.time() - max(times)


def _trash(workspace: Workspace) -> list[Finding]:
    place = workspace.root / TRASH
    why = "was taken out of use by a collection that was stopped"
    folders: Sequence[Path] = sorted(place.iterdir()) if place.is_dir() else []
    return [Finding(workspace.relative(path), "trash", why, size_below(path)) for path in folders]


def _empty_trash(workspace: Workspace) -> Iterator[Finding]:
    for finding in _trash(workspace):
        shutil.rmtree(workspace.root / finding.path, ignore_errors=True)  # another collection may be at it
        yield finding._replace(is_gone=True)


def _artifact_finding(workspace: Workspace, node: Node, reason: str | None) -> Finding:
    folder = workspace.artifact_folder(*node.key)
    why = reason or ("made from an older snapshot" if node.digest else "begun, not finished, and not touched since")
    return Finding(workspace.relative(folder), "artifact", why, size_below(folder), is_kept=reason is not None)


def _leftover_finding(one: Leftover) -> Finding:
    return Finding(one.name, one.what, one.why, sum(map(size_below, one.find())))
