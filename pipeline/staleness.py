"""Why an artifact is out of date: its clips are not the newest, an input or its stage changed, or a recipe asks for more.

An artifact that is out of date is whole and may be used; a run of the recipe would make another one.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.continuation import chosen_field
from pipeline.plan import STAGES, config_of
from pipeline.recipe import Recipe
from pipeline.tracking.tracker import flattened
from stages.storage.artifact import FINGERPRINT_CHARS, SCHEMA_VERSION, Artifact, Manifest, byte_config
from stages.storage.clips import STAGE as CLIPS
from stages.storage.publish import canonical_json, sha256_bytes

_SHOWN_KEYS = 4


@dataclasses.dataclass(frozen=True)
class Below:
    """All committed artifacts below a root, of clips every snapshot.

    Args:
        artifacts: by folder, oldest first.
    """

    artifacts: Mapping[Path, Sequence[Artifact]]

    def reasons(self, made: Artifact) -> list[str]:
        """Why an artifact is out of date without any recipe being asked; empty when it is not."""
        stage, manifest = made.manifest.stage, made.manifest
        found = [self._input_reason(name, manifest) for name in manifest.inputs]
        return [*filter(None, found), *_version_reason(stage, made)]

    def _input_reason(self, name: str, manifest: Manifest) -> str:
        wanted = manifest.inputs[name]
        there = [made for made in self._of(name) if made.fingerprint == wanted.fingerprint]
        same = [made for made in there if made.digest == wanted.digest]
        if name == CLIPS:
            return self._snapshot_reason(wanted.path, wanted.digest)
        if not there:
            return f"its {name} is gone"
        if not same:
            return f"its {name} was made again and came out differently"
        return f"its {name} is out of date" if any(map(self.reasons, same)) else ""

    def _snapshot_reason(self, path: str, digest: str) -> str:
        folder = next((folder for folder in self.artifacts if folder.parent.name + "/" + folder.name == path), None)
        snapshots = [made.digest for made in self.artifacts.get(folder, ())] if folder else []
        if digest not in snapshots:
            return "its snapshot is gone"
        behind = len(snapshots) - 1 - snapshots.index(digest)
        return f"its snapshot is not the newest: {behind} newer" if behind else ""

    def _of(self, stage: str) -> list[Artifact]:
        return [made for some in self.artifacts.values() for made in some if made.manifest.stage == stage]


def differing(recipe: Recipe, manifest: Manifest) -> list[str]:
    """The settings in which a recipe differs from what an artifact was made with, each as ``key: there -> asked``."""
    chosen = chosen_field(recipe, manifest.stage)  # by what lies below the root, whatever it is
    asked, there = (
        _plain({name: value for name, value in config.items() if name != chosen})
        for config in (byte_config(config_of(recipe, manifest.stage)), manifest.config)
    )
    return [
        f"{key}: {there.get(key, 'unset')} -> {asked.get(key, 'unset')}"
        for key in dict.fromkeys([*asked, *there])
        if asked.get(key) != there.get(key)
    ]


def recipe_reason(recipe: Recipe, manifest: Manifest) -> str:
    """Why an artifact is not the one that a recipe asks for, as far as its settings say; empty when they are the same."""
    found = differing(recipe, manifest)
    more = f" and {len(found) - _SHOWN_KEYS} more" if len(found) > _SHOWN_KEYS else ""
    return f"the recipe asks for {'; '.join(found[:_SHOWN_KEYS])}{more}" if found else ""


def _plain(config: Mapping[str, Any]) -> dict[str, str]:
    return flattened(json.loads(canonical_json(config)))


def _version_reason(stage: str, made: Artifact) -> list[str]:
    """Whether an earlier version of the stage made it: its name is a digest over the version, which is tried."""
    now = STAGES[stage].VERSION
    spelled = next((version for version in range(now, -1, -1) if _is_of_version(stage, made, version)), None)
    if spelled == now:
        return []
    by = "another version" if spelled is None else f"version {spelled}"
    return [f"made by {by} of its stage, which is now {now}"]


def _is_of_version(stage: str, made: Artifact, version: int) -> bool:
    manifest = made.manifest
    if stage == CLIPS:
        identity = canonical_json({"version": version, "config": manifest.config})
        return made.folder.name.endswith(f"-{sha256_bytes(identity)[: len(made.folder.name.rpartition('-')[2])]}")
    whole = {
        "stage": stage,
        "version": version,
        "schema_version": SCHEMA_VERSION,
        "config": manifest.config,
        "inputs": {name: value.digest for name, value in sorted(manifest.inputs.items())},
    }
    return sha256_bytes(canonical_json(whole))[:FINGERPRINT_CHARS] == manifest.fingerprint
