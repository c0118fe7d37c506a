"""What a recipe does with what was trained before new data came: begin anew, or go on from it.

``pretrain.on_new_data: continue`` begins with the weights of the newest earlier encoder, ``tokenizer.on_new_data: keep`` keeps
the earlier tokenizer, so that its targets stay valid and only new shards get new ones. Which artifact that is follows from what
lies below the root alone. What was made or begun once is chosen again, also when what it began with is gone by then.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from models.config import Config
from pipeline.recipe import Recipe
from stages import pretrain, tokenizer
from stages.errors import ArtifactDamaged
from stages.pretrain import Initial
from stages.storage import artifact
from stages.storage.artifact import Artifact, byte_config
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace
from stages.weights import WeightsFile

_FIELDS = {"tokenizer": "weights", "pretrain": "initial"}
"""Where a stage's section says what to begin with."""
_POLICIES = {"tokenizer": "keep", "pretrain": "continue"}
_VERSIONS = {"tokenizer": tokenizer.VERSION, "pretrain": pretrain.VERSION}


class Continuation(NamedTuple):
    """A recipe as one stage runs it."""

    recipe: Recipe
    reason: str
    """What the stage goes on from, for a person; empty when it begins anew."""


def continued(recipe: Recipe, stage: str, inputs: Mapping[str, Artifact], workspace: Workspace) -> Continuation:
    """The recipe with what the stage begins with, if the recipe says that it goes on from what is there and there is something.

    Args:
        recipe: as it was asked for.
        stage: any; those that begin anew by nature are left as they are.
        inputs: what the stage reads, all of it.
        workspace: where earlier artifacts lie.
    """
    section: Config = getattr(recipe, stage)
    if chosen_field(recipe, stage) is None:
        return Continuation(recipe, "")
    found = _Search(section, stage, inputs, workspace).found()
    if found is None:
        return Continuation(recipe, "")
    value, reason = found
    changed = section.model_copy(update={_FIELDS[stage]: value})
    return Continuation(recipe.model_copy(update={stage: changed}), reason)


def chosen_field(recipe: Recipe, stage: str) -> str | None:
    """The field of a stage's section whose value follows from what lies below the root; ``None`` where none does."""
    policy = getattr(getattr(recipe, stage), "on_new_data", "")
    return _FIELDS[stage] if stage in _FIELDS and policy == _POLICIES[stage] else None


class _Search:
    """Looks for what one stage goes on from.

    Args:
        section: the stage's configuration as it was asked for.
        stage: ``tokenizer`` or ``pretrain``.
        inputs: what the stage reads.
        workspace: where earlier artifacts lie.
    """

    def __init__(self, section: Config, stage: str, inputs: Mapping[str, Artifact], workspace: Workspace) -> None:
        self._section = section
        self._stage = stage
        self._inputs = inputs
        self._workspace = workspace
        self._asked = byte_config(section)
        self._field = _FIELDS[stage]

    def found(self) -> tuple[Config, str] | None:
        """What to begin with, and where it comes from."""
        made = [one for one in artifact.committed(self._workspace, self._stage) if self._is_of_this_recipe(one)]
        for one in made:
            if value := self._value_of_repeat(one):
                return value, f"goes on from weights {_digest(value)[:8]}, as it did before"
        candidates = self._candidates(made)
        if not candidates:
            return None
        number, chosen = next((one for one in candidates if self._is_begun(one[1])), candidates[0])
        return self._value(chosen), f"goes on from {self._stage} {chosen.fingerprint[:8]} of snapshot {number}"

    def _is_of_this_recipe(self, made: Artifact) -> bool:
        """Whether an artifact was configured as this stage is, apart from what it began with."""
        return {**made.manifest.config, self._field: None} == {**self._asked, self._field: None}

    def _value_of_repeat(self, made: Artifact) -> Config | None:
        """What an artifact of the same inputs began with, if it went on from an earlier one; its weights may be gone."""
        began_with = made.manifest.config[self._field]
        here = {name: one.digest for name, one in self._inputs.items()}
        if {name: one.digest for name, one in made.manifest.inputs.items()} != here or began_with == self._asked[self._field]:
            return None
        return _restored(self._stage, began_with, gone=f"{made.folder.name}, which was made of it")

    def _candidates(self, made: Sequence[Artifact]) -> list[tuple[int, Artifact]]:
        """Artifacts of earlier snapshots of the same clips, with the snapshot's number, the best first.

        The newest snapshot wins; of several artifacts of one snapshot one that went on itself, and then the first fingerprint.
        """
        numbers = self._earlier_snapshots()
        found = [(numbers[digest], one) for one in made if (digest := one.manifest.inputs["shard"].digest) in numbers]
        asked = self._asked[self._field]
        return sorted(found, key=lambda each: (-each[0], each[1].manifest.config[self._field] == asked, each[1].fingerprint))

    def _earlier_snapshots(self) -> dict[str, int]:
        """The number of every snapshot before the one that is read, by its digest."""
        snapshot = self._inputs["shard"]
        try:
            all_digests = [one.digest for one in Dataset(self._workspace, snapshot.folder.name).snapshots()]
        except ArtifactDamaged:  # what is read itself is whole, and says so when it is read
            return {}
        own = all_digests.index(snapshot.digest) if snapshot.digest in all_digests else 0
        return {digest: number for number, digest in enumerate(all_digests[:own], start=1)}

    def _is_begun(self, candidate: Artifact) -> bool:
        """Whether a run that goes on from an artifact was begun already."""
        section = self._section.model_copy(update={self._field: self._value(candidate)})
        name = artifact.fingerprint(self._stage, _VERSIONS[self._stage], section, self._inputs)
        return self._workspace.artifact_folder(self._stage, name).exists()

    def _value(self, made: Artifact) -> Config:
        if self._stage == "tokenizer":
            return _weights(made, "model.safetensors")
        return Initial(encoder=_weights(made, "encoder.safetensors"), decoder=_weights(made, "decoder.safetensors"))


def _weights(made: Artifact, name: str) -> WeightsFile:
    return WeightsFile(path=str(made.path(name)), sha256=made.manifest.files[name].sha256)


def _restored(stage: str, plain: Any, *, gone: str) -> Config | None:
    """What a manifest says that a stage began with; manifests name no paths, and what is made already needs none."""
    if not plain:
        return None
    if stage == "tokenizer":
        return WeightsFile(path=f"(weights of {gone})", sha256=plain["sha256"])
    if plain["form"] != "lvmae" or not plain["decoder"]:
        return None
    encoder, decoder = (
        WeightsFile(path=f"({name} of {gone})", sha256=plain[name]["sha256"]) for name in ("encoder", "decoder")
    )
    return Initial(encoder=encoder, decoder=decoder)


def _digest(value: Config) -> str:
    weights = value.encoder if isinstance(value, Initial) else value
    assert isinstance(weights, WeightsFile)
    return weights.sha256
