"""Units taken over from artifacts that are there already, so that a new snapshot computes its new shards alone.

A unit's digest says everything that determines its bytes, so equal digests mean equal bytes. A file is linked under a temporary
name, held against its manifest, and renamed: what is adopted is what was checked. The artifact it comes from is not changed.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.errors import ArtifactDamaged
from stages.storage.artifact import Artifact, FileRecord, find
from stages.storage.publish import make_folder, publish_bytes, sha256_bytes, sync_folder, temporary_sibling
from stages.storage.targets.layout import Unit, ledger_name
from stages.storage.targets.writing import TargetWriter, read_ledger
from stages.storage.workspace import Workspace

_log = logging.getLogger(__name__)

_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system says that has no hard links, or none to this place, or enough of them."""


def donors(workspace: Workspace, stage: str, folder: Path) -> Iterator[Artifact]:
    """The committed artifacts of a stage other than the one in ``folder``; one that cannot be read is passed over."""
    place = workspace.stage_folder(stage)
    for path in sorted(place.iterdir()) if place.is_dir() else []:
        try:
            found = find(workspace, stage, path.name) if path != folder else None
        except ArtifactDamaged as error:
            _log.warning("passed_over=%s reason=%s", path, error)
            continue
        if found:
            yield found


def is_held(folder: Path, unit: Unit) -> bool:
    """Whether an artifact's folder holds a unit, by its ledger row and the sizes of its files; their bytes are not read."""
    try:
        row = read_ledger(folder / ledger_name(unit.ordinal, unit.view))
    except (FileNotFoundError, ArtifactDamaged):
        return False
    sizes = {folder / name: record.size_bytes for name, record in row["files"].items()}
    return row["unit"] == unit.digest and all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())


def adopted(writer: TargetWriter, units: Iterable[Unit], others: Iterable[Artifact]) -> Iterator[Unit]:
    """Take over every unit that one of the other artifacts holds; those that were.

    Args:
        writer: of the store that takes them.
        units: what it lacks.
        others: where to look, in this order.
    """
    left = list(units)
    for other in others:
        lacking = []
        for unit in left:
            if _adopt(writer, unit, other):
                yield unit
            else:
                lacking.append(unit)
        left = lacking


def _adopt(writer: TargetWriter, unit: Unit, other: Artifact) -> bool:
    """Take over one unit if the other artifact holds it, undamaged."""
    ledger = ledger_name(unit.ordinal, unit.view)
    if ledger not in other.manifest.files:
        return False
    try:
        row = read_ledger(other.verified(ledger))
        if row["unit"] != unit.digest:
            return False
        writer.prepare(unit.ordinal, unit.num_clips)
        for name in (*row["files"], ledger):  # the ledger last: it makes the unit exist
            adopt_file(other.path(name), writer.folder / name, _promised(other, row, name))
    except (ArtifactDamaged, FileNotFoundError) as error:
        _log.warning("not_adopted=%s view=%d reason=%s", unit.ordinal, unit.view, error)
        return False
    return True


def _promised(other: Artifact, row: Mapping[str, Any], name: str) -> FileRecord:
    """What a file must be, by the manifest and by the unit's own ledger row."""
    record = other.manifest.files[name]
    if row["files"].get(name, record) != record:
        raise ArtifactDamaged(f"{other.folder / name}: its manifest and its ledger row name different bytes")
    return record


def adopt_file(source: Path, target: Path, record: FileRecord) -> None:
    """Make ``target`` the same file as ``source``, or a copy where there are no links, if its bytes are those of ``record``.

    Raises:
        ArtifactDamaged: they are not; there is no ``target`` then that was not there before.
        FileNotFoundError: there is no ``source``.
    """
    make_folder(target.parent)
    temporary = temporary_sibling(target)
    try:
        os.link(source, temporary)
        _check(source, FileRecord.of(temporary), record)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _copy(source, target, record)
    finally:
        with contextlib.suppress(OSError):  # a rename onto another name of the same file leaves both
            temporary.unlink(missing_ok=True)


def _copy(source: Path, target: Path, record: FileRecord) -> None:
    data = source.read_bytes()
    _check(source, FileRecord(size_bytes=len(data), sha256=sha256_bytes(data)), record)
    publish_bytes(target, data)


def _check(source: Path, found: FileRecord, record: FileRecord) -> None:
    if found != record:
        raise ArtifactDamaged(f"{source}: not the bytes of its manifest")
