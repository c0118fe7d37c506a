"""Targets as the laboratory makes them: the stage's own publishing and adopting, with fixed numbers for what a network says."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.dataset  # noqa: F401 - what reading a table imports, once, before the forks

from models.config import Config as BaseConfig
from stages.storage import artifact
from stages.storage.artifact import Artifact, Work, find
from stages.storage.targets.adoption import adopted, donors
from stages.storage.targets.layout import CODES, PRIORITY, Unit
from stages.storage.targets.reading import TargetReader
from stages.storage.targets.writing import TargetWriter
from stages.storage.workspace import Workspace
from tests.faults.work import spoil
from tests.stages.target_files import EXTENT, random_values, units, view_rows

STAGE = "precompute"
SMALL = dataclasses.replace(EXTENT, num_views=1, arrays=(CODES, PRIORITY))
SNAPSHOTS: Sequence[dict[int, int]] = ({0: 2}, {0: 2, 1: 1})
"""Clips per shard, before a shard landed and after."""
VERSIONS = artifact.versions()
"""Looked up once: that costs more than publishing a file."""


class Config(BaseConfig):
    """What the stage is run with."""

    snapshot: int
    """Which of ``SNAPSHOTS``."""
    tokenizer: str = ""
    """Part of every unit's digest."""


def run(root: str, flaw: str = "", **config: Any) -> dict[str, Any]:
    """One run of the stage in this process, with a step of publishing left out if need be."""
    spoil(flaw)
    outcome = produced(Workspace(Path(root)), Config.model_validate(config))
    return {"digest": outcome.artifact.digest, "done": outcome.units_done, "reused": outcome.units_reused}


def produced(workspace: Workspace, config: Config) -> artifact.Outcome:
    """The targets of a snapshot, as the stage makes them."""

    def make(folder: Path) -> Work:
        done = fill(workspace, folder, wanted(config))
        return Work(done, len(wanted(config)) - done, {})

    with mock.patch.object(artifact, "versions", return_value=VERSIONS):
        return artifact.produce(STAGE, version=1, config=config, inputs={}, workspace=workspace, make=make)


def fill(workspace: Workspace, folder: Path, needed: Sequence[Unit]) -> int:
    """Adopt and write what is missing; how many units were written."""
    writer = TargetWriter(folder, SMALL, {"views": {}})
    lacking = [unit for unit in needed if not writer.holds(unit)]
    taken = set(adopted(writer, lacking, donors(workspace, STAGE, folder)))
    missing = [unit for unit in lacking if unit not in taken]
    for unit in missing:
        writer.write_unit(unit, values=random_values(unit, SMALL), views=view_rows(unit))
    return len(missing)


def fill_unlocked(root: str, **config: Any) -> int:
    """Fill the folder of the stage without its lock and without a manifest, as a second writer would if locks failed."""
    workspace, made_with = Workspace(Path(root)), Config.model_validate(config)
    return fill(workspace, folder_of(workspace, made_with), wanted(made_with))


def wanted(config: Config) -> list[Unit]:
    """The units of a snapshot."""
    return units(SNAPSHOTS[config.snapshot], SMALL, salt=config.tokenizer)


def folder_of(workspace: Workspace, config: Config) -> Path:
    """Where the targets of a snapshot lie."""
    return workspace.artifact_folder(STAGE, artifact.fingerprint(STAGE, 1, config, {}))


def found(root: str, **config: Any) -> Artifact | None:
    """The targets of a snapshot, if they were committed."""
    workspace = Workspace(Path(root))
    return find(workspace, STAGE, folder_of(workspace, Config.model_validate(config)).name)


def readable(made: Artifact) -> list[tuple[str, int, bytes]]:
    """Everything that a training would read of an artifact."""
    reader = TargetReader(made)
    return [
        (place.clip_id, place.view, b"".join(part.tobytes() for part in reader.read(place).values()))
        for place in reader.places()
    ]
