"""What lies below a root: every artifact with its state, what it was made of, and whether its bytes are still right."""

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipeline.staleness import Below
from stages.errors import ArtifactDamaged
from stages.storage import artifact
from stages.storage.artifact import MANIFEST, Artifact, FileRecord, Manifest
from stages.storage.clips import STAGE as CLIPS
from stages.storage.clips import Dataset
from stages.storage.locks import is_held
from stages.storage.workspace import FOLDERS, Workspace


class State(StrEnum):
    """How an artifact stands."""

    COMMITTED = "committed"
    """Its manifest is there, and every file it names has the right size."""
    IN_PROGRESS = "in progress"
    """No manifest yet: a run is making it, or was killed; running the stage again continues it."""
    DAMAGED = "damaged"
    """Its manifest cannot be read, or a file it names is gone or has another size."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One artifact, or the beginning of one. Clips are one entry per dataset, described by its newest snapshot."""

    stage: str
    name: str
    """Its folder's name: a fingerprint, or for clips the dataset."""
    state: State
    path: Path
    fingerprint: str | None
    digest: str | None
    inputs: Mapping[str, str]
    """Fingerprints of what it was made from, by stage."""
    lost_inputs: tuple[str, ...]
    """Those of them that are no longer there, or were made again and came out differently."""
    size_bytes: int
    age_s: float
    """Seconds since its manifest was written, or while in progress since its newest file was."""
    detail: str
    manifest: Manifest | None = None
    """Of the newest; ``None`` while in progress, or where it cannot be read."""
    stale: tuple[str, ...] = ()
    """Why it is out of date; empty when it is not."""
    is_held: bool = False
    """Whether a live run makes it."""
    is_read: bool = False
    """Whether a live run reads it."""

    def record(self) -> dict[str, Any]:
        """The entry as one JSON object."""
        plain = {name: value for name, value in vars(self).items() if name != "manifest"}
        plain |= {"path": str(self.path), "age_s": round(self.age_s), "inputs": dict(self.inputs)}
        return plain | {"state": self.state.value, "lost_inputs": list(self.lost_inputs), "stale": list(self.stale)}


@dataclasses.dataclass(frozen=True)
class _Found:
    """What one folder holds: its committed artifacts, oldest first, or why they cannot be read."""

    stage: str
    folder: Path
    artifacts: Sequence[Artifact]
    fault: str = ""


def entries(workspace: Workspace) -> list[Entry]:
    """Every artifact below the root, stage by stage; reads manifests and file sizes alone, and writes nothing."""
    found = list(_found(workspace))
    present = _digests(found)
    below = Below({one.folder: one.artifacts for one in found})
    return [_entry(one, present, below) for one in found]


def verified(workspace: Workspace) -> Iterator[tuple[Entry, dict[str, str]]]:
    """Every artifact with the files whose bytes are not those of its manifest, and what is wrong with each."""
    found = list(_found(workspace))
    present = _digests(found)
    below = Below({one.folder: one.artifacts for one in found})
    for one in found:
        yield _entry(one, present, below), _faults(one)


def _found(workspace: Workspace) -> Iterator[_Found]:
    for stage in FOLDERS:
        place = workspace.stage_folder(stage)
        folders = [path for path in place.iterdir() if path.is_dir() and path.name[0] != "."] if place.is_dir() else []
        for folder in sorted(folders):
            try:
                yield _Found(stage, folder, _artifacts(workspace, stage, folder))
            except ArtifactDamaged as error:
                yield _Found(stage, folder, [], fault=str(error))


def _artifacts(workspace: Workspace, stage: str, folder: Path) -> list[Artifact]:
    if stage == CLIPS:
        return Dataset(workspace, folder.name).snapshots()
    path = folder / MANIFEST
    return [Artifact(folder, artifact.read_manifest(path), path)] if path.exists() else []


def _digests(found: Sequence[_Found]) -> set[tuple[str, str]]:
    return {(one.stage, made.digest) for one in found for made in one.artifacts}


def _entry(found: _Found, present: set[tuple[str, str]], below: Below) -> Entry:
    if not found.artifacts:
        return _unfinished(found)
    newest = found.artifacts[-1]
    manifest = newest.manifest
    wrong = _wrong_sizes(newest)
    lost = tuple(name for name, value in manifest.inputs.items() if (name, value.digest) not in present)
    return Entry(
        stage=found.stage,
        name=found.folder.name,
        state=State.DAMAGED if wrong else State.COMMITTED,
        path=found.folder,
        fingerprint=manifest.fingerprint,
        digest=manifest.digest,
        inputs={name: value.fingerprint for name, value in manifest.inputs.items()},
        lost_inputs=lost,
        size_bytes=sum(record.size_bytes for record in _named(manifest).values()),
        age_s=time.time() - newest.manifest_path.stat().st_mtime,
        detail=wrong or " ".join(f"{name}={value}" for name, value in manifest.counts.items()),
        manifest=manifest,
        stale=tuple(below.reasons(newest)),
        is_held=is_held(found.folder),
        is_read=is_held(newest.manifest_path),
    )


def _unfinished(found: _Found) -> Entry:
    files = [path.stat() for path in found.folder.rglob("*") if path.is_file()]
    newest = max((file.st_mtime for file in files), default=found.folder.stat().st_mtime)
    return Entry(
        stage=found.stage,
        name=found.folder.name,
        state=State.DAMAGED if found.fault else State.IN_PROGRESS,
        path=found.folder,
        fingerprint=None if found.stage == CLIPS else found.folder.name,
        digest=None,
        inputs={},
        lost_inputs=(),
        size_bytes=sum(file.st_size for file in files),
        age_s=time.time() - newest,
        detail=found.fault or "not committed yet; running its stage again continues it",
        is_held=is_held(found.folder),
    )


def _named(manifest: Manifest) -> dict[str, FileRecord]:
    return {**manifest.files, **manifest.records}


def _wrong_sizes(made: Artifact) -> str:
    """The first few files that are gone or have another size; empty when there are none."""
    wrong = []
    for name, record in _named(made.manifest).items():
        path = made.folder / name
        if not path.is_file() or path.stat().st_size != record.size_bytes:
            wrong.append(name)
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"missing or of another size: {', '.join(wrong[:3])}{more}; `lvmae verify` says more" if wrong else ""


def _faults(found: _Found) -> dict[str, str]:
    """What is wrong with the bytes in a folder. Snapshots repeat what earlier ones name: every file is read once."""
    if found.fault:
        return {MANIFEST: found.fault}
    if not found.artifacts:
        return {}
    newest = found.artifacts[-1]
    files = {name: record for made in found.artifacts for name, record in _named(made.manifest).items()}
    return artifact.damages(dataclasses.replace(newest, manifest=newest.manifest.model_copy(update={"files": files})))
