"""Artifacts: immutable, self-describing folders that exist exactly when their manifest exists.

The manifest names every file with size and sha256, the inputs' digests, the resolved config and the counts, and is
written last. Nothing in it depends on time, host, process or order of completion.
"""

import contextlib
import dataclasses
import importlib.metadata
import logging
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import ValidationError

from models.config import Config
from stages.errors import ArtifactDamaged, ArtifactMissing
from stages.storage.locks import Readers
from stages.storage.publish import (
    canonical_json,
    publish_bytes,
    publish_new,
    sha256_bytes,
    sha256_file,
    sweep,
    sync_folder,
    sync_tree,
)
from stages.storage.workspace import Workspace

_log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
SCHEMA_VERSION = 2
FINGERPRINT_CHARS = 16
CHECKPOINTS = "checkpoints"
"""The folder of a training stage's checkpoints: working state, removed once the artifact is published."""

_VERSIONED = ("torch", "zarr", "webdataset", "pyarrow", "av", "imageio-ffmpeg", "scikit-learn")


class FileRecord(Config):
    """What a manifest says of one file."""

    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Self:
        """The record of a file as it lies on disk."""
        return cls(size_bytes=path.stat().st_size, sha256=sha256_file(path))


class Input(Config):
    """What a manifest says of one input artifact."""

    fingerprint: str
    digest: str
    path: str
    """Relative to the root."""


class Manifest(Config):
    """The record that makes an artifact exist."""

    schema_version: int
    stage: str
    fingerprint: str
    """Short sha256 of the config, the inputs' digests and the stage's version: known before the stage runs."""
    digest: str
    """sha256 over the fingerprint and all ``files``: what came out. Downstream fingerprints are made of it."""
    config: dict[str, Any]
    inputs: dict[str, Input]
    counts: dict[str, int]
    files: dict[str, FileRecord]
    records: dict[str, FileRecord]
    """Files that accompany the artifact, such as the resolved recipe: verified, but no part of the digest."""
    versions: dict[str, str]
    seal: str
    """sha256 over everything else in the manifest."""


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A committed artifact: its folder, its manifest and the file that holds the manifest."""

    folder: Path
    manifest: Manifest
    manifest_path: Path

    @property
    def digest(self) -> str:
        """What came out, in hex."""
        return self.manifest.digest

    @property
    def fingerprint(self) -> str:
        """What went in, in short hex."""
        return self.manifest.fingerprint

    def path(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            ArtifactMissing: the manifest names no such file.
        """
        if name not in self.manifest.files:
            raise ArtifactMissing(f"{self.manifest_path}: names no file {name!r}; it has {sorted(self.manifest.files)[:8]}")
        return self.folder / name

    def verified(self, name: str) -> Path:
        """The path of one of its files, after checking size and sha256.

        Raises:
            ArtifactDamaged: the bytes are gone or differ.
        """
        damage = _damage(self.path(name), self.manifest.files[name])
        if damage:
            raise ArtifactDamaged(f"{self.folder / name}: {damage}; delete {self.folder} and run its stage again")
        return self.folder / name


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one run of a stage came to."""

    artifact: Artifact
    units_done: int
    units_reused: int
    counts: Mapping[str, int]
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)


class Work(NamedTuple):
    """What a stage did to fill an artifact's folder."""

    units_done: int
    units_reused: int
    """Units that an earlier, interrupted run had finished."""
    counts: Mapping[str, int]
    metrics: Mapping[str, float] = {}


def produce(
    stage: str,
    *,
    version: int,
    config: Config,
    inputs: Mapping[str, Artifact],
    workspace: Workspace,
    make: Callable[[Path], Work],
) -> Outcome:
    """The artifact of a stage: the one that exists, or the one that ``make`` fills a folder for.

    Args:
        stage: the stage's name.
        version: the stage's version.
        config: its config.
        inputs: the artifacts it reads.
        workspace: where it goes.
        make: publishes the files into the folder it is given, continuing what a killed run left there.

    Raises:
        ArtifactBusy: another live run makes the same artifact.
    """
    name = fingerprint(stage, version, config, inputs)
    if made := find_whole(workspace, stage, name):
        return _reused(made)
    folder = workspace.artifact_folder(stage, name)
    with workspace.lock(stage, name):
        if made := find_whole(workspace, stage, name):  # by a run that ended in between
            return _reused(made)
        sweep(folder)
        work = make(folder)
        counts = {**work.counts, "units": work.units_done + work.units_reused}
        made = commit(workspace, stage=stage, name=name, config=config, inputs=inputs, counts=counts)
        _drop_working_state(folder)
    return Outcome(made, work.units_done, work.units_reused, counts=counts, metrics=work.metrics)


def _drop_working_state(folder: Path) -> None:
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def _reused(made: Artifact) -> Outcome:
    sync_folder(made.folder)  # whoever committed it may have been killed before seeing to its name, or to the rest
    _drop_working_state(made.folder)
    return Outcome(made, units_done=0, units_reused=made.manifest.counts["units"], counts=made.manifest.counts)


def fingerprint(stage: str, version: int, config: Config, inputs: Mapping[str, Artifact]) -> str:
    """The identity of what ``stage`` would make: short sha256 over config, inputs' digests and versions.

    Fields that a config lists in ``EXECUTION`` (workers, paths) change how a stage runs and not what it makes: left out.
    """
    identity = {
        "stage": stage,
        "version": version,
        "schema_version": SCHEMA_VERSION,
        "config": byte_config(config),
        "inputs": {name: artifact.digest for name, artifact in sorted(inputs.items())},
    }
    return sha256_bytes(canonical_json(identity))[:FINGERPRINT_CHARS]


def byte_config(config: Config) -> dict[str, Any]:
    """A config as plain JSON values without the fields that cannot change an output byte, at any depth."""
    plain = config.model_dump(mode="json", exclude=set(getattr(config, "EXECUTION", ())))
    for name in plain:
        value = getattr(config, name)
        if isinstance(value, Config):
            plain[name] = byte_config(value)
    return plain


def versions() -> dict[str, str]:
    """The versions of what makes the bytes."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in _VERSIONED}}


def find(workspace: Workspace, stage: str, name: str) -> Artifact | None:
    """The artifact of a stage by its fingerprint, or ``None`` when it was not committed.

    Raises:
        ArtifactDamaged: there is a manifest, and it cannot be read.
    """
    folder = workspace.artifact_folder(stage, name)
    path = folder / MANIFEST
    return Artifact(folder, read_manifest(path), path) if path.exists() else None


def find_whole(workspace: Workspace, stage: str, name: str) -> Artifact | None:
    """As ``find``, and ``None`` also where a file was lost since: what is gone is made again, and the rest kept.

    Raises:
        ArtifactDamaged: there is a manifest, and it cannot be read.
    """
    made = find(workspace, stage, name)
    named = (*made.manifest.files, *made.manifest.records) if made else ()
    lost = [spelled for spelled in named if made and not (made.folder / spelled).is_file()]
    if made and lost:
        _log.warning("%s: %d files are gone, such as %s", workspace.relative(made.folder), len(lost), lost[0])
    return None if lost else made


def committed(workspace: Workspace, stage: str) -> Iterator[Artifact]:
    """Every committed artifact of a stage after the first; one whose manifest cannot be read is passed over."""
    place = workspace.stage_folder(stage)
    for folder in sorted(place.iterdir()) if place.is_dir() else []:
        with contextlib.suppress(ArtifactDamaged):
            if not folder.name.startswith(".") and (made := find(workspace, stage, folder.name)):
                yield made


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Within the block no collection takes the artifact in a folder, or the one that a folder within it belongs to.

    Raises:
        ArtifactMissing: it is being collected.
    """
    with contextlib.closing(Readers()) as readers:
        for manifest in (folder / MANIFEST, folder.parent / MANIFEST):
            if manifest.is_file():
                try:
                    readers.take(manifest)
                except FileNotFoundError as error:
                    raise ArtifactMissing(str(error)) from error
        yield


def read_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises:
        ArtifactDamaged: it is not a manifest, or its digest is not that of what it names.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ArtifactDamaged(
            f"{path}: not a manifest ({error.error_count()} faults); delete its folder and run again"
        ) from error
    if manifest.seal != _seal(manifest) or manifest.digest != _digest(manifest.fingerprint, manifest.files):
        raise ArtifactDamaged(f"{path}: its digest is not that of its content; delete its folder and run again")
    return manifest


def build_manifest(
    workspace: Workspace,
    *,
    stage: str,
    name: str,
    config: Config,
    inputs: Mapping[str, Artifact],
    counts: Mapping[str, int],
    files: Mapping[str, FileRecord],
    records: Mapping[str, FileRecord],
) -> Manifest:
    """The manifest of files that already lie in place."""
    unsealed = Manifest(
        seal="",
        schema_version=SCHEMA_VERSION,
        stage=stage,
        fingerprint=name,
        digest=_digest(name, files),
        config=byte_config(config),
        inputs={
            role: Input(fingerprint=value.fingerprint, digest=value.digest, path=workspace.relative(value.folder))
            for role, value in sorted(inputs.items())
        },
        counts=dict(sorted(counts.items())),
        files=dict(sorted(files.items())),
        records=dict(sorted(records.items())),
        versions=versions(),
    )
    return unsealed.model_copy(update={"seal": _seal(unsealed)})


def commit(
    workspace: Workspace,
    *,
    stage: str,
    name: str,
    config: Config,
    inputs: Mapping[str, Artifact],
    counts: Mapping[str, int],
) -> Artifact:
    """Publish a folder as an artifact: hash every file in it, write the manifest last, and never over another one.

    Raises:
        ArtifactDamaged: another run committed different bytes under the same fingerprint.
    """
    folder = workspace.artifact_folder(stage, name)
    for record, data in workspace.records.items():
        publish_bytes(folder / record, data)
    found = {path: path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {spelled: FileRecord.of(path) for path, spelled in found.items() if not _is_working_state(spelled)}
    sync_tree(folder)
    manifest = build_manifest(
        workspace,
        stage=stage,
        name=name,
        config=config,
        inputs=inputs,
        counts=counts,
        files={spelled: record for spelled, record in kept.items() if spelled not in workspace.records},
        records={spelled: record for spelled, record in kept.items() if spelled in workspace.records},
    )
    data = canonical_json(manifest.model_dump(mode="json"))
    is_first = publish_new(folder / MANIFEST, data)
    committed = read_manifest(folder / MANIFEST)
    if committed.digest != manifest.digest:
        raise ArtifactDamaged(f"{folder}: another run committed other bytes for the same config and inputs; run `lvmae verify`")
    if not is_first:  # a lost file was made again, and what lies beside may be of another run
        publish_bytes(folder / MANIFEST, data)
        committed = read_manifest(folder / MANIFEST)
    return Artifact(folder, committed, folder / MANIFEST)


def damages(artifact: Artifact) -> dict[str, str]:
    """Every file of an artifact that is not as its manifest says, with what is wrong; empty when all is well."""
    named = {**artifact.manifest.files, **artifact.manifest.records}
    found = {name: _damage(artifact.folder / name, record) for name, record in named.items()}
    return {name: damage for name, damage in found.items() if damage}


def _damage(path: Path, record: FileRecord) -> str | None:
    if not path.is_file():
        return "missing"
    if path.stat().st_size != record.size_bytes:
        return f"{path.stat().st_size} bytes instead of {record.size_bytes}"
    return None if sha256_file(path) == record.sha256 else "sha256 differs"


def _digest(name: str, files: Mapping[str, FileRecord]) -> str:
    return sha256_bytes(canonical_json({"fingerprint": name, "files": {key: files[key].sha256 for key in sorted(files)}}))


def _seal(manifest: Manifest) -> str:
    return sha256_bytes(canonical_json(manifest.model_dump(mode="json", exclude={"seal"})))


def _is_working_state(spelled: str) -> bool:
    return spelled == MANIFEST or spelled.startswith(f"{CHECKPOINTS}/")
