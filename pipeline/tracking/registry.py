"""The registered encoders: a model per recipe, a version per encoder, and the alias ``champion`` for the one to use.

A version is a pointer: its bytes stay in the workspace, where its fingerprint and its digest find and check them. What is
registered twice is one version. Registering and promoting need the store: a champion that was chosen without knowing the
present one would be no decision, so a store that is away is refused, and the same call later does what is missing.

Importing this module takes seconds, as it imports MLflow.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mlflow.exceptions import MlflowException

from pipeline.tracking.mlflow_store import client_of, reaching
from pipeline.tracking.outbox import StoreRefused, StoreUnreachable
from stages.errors import PipelineError
from stages.storage.artifact import Artifact

CHAMPION = "champion"
"""The alias of the version to use."""

_SCHEME = "lvmae"
"""Of a version's source, ``lvmae:/stage/fingerprint``: a server takes no path of another machine as one."""
_MOST_VERSIONS = 1000

_Result = TypeVar("_Result")


class RegistryUnreachable(PipelineError, OSError):
    """The registry could not be reached, or refused; nothing was decided."""


@dataclasses.dataclass(frozen=True)
class Version:
    """One registered encoder."""

    recipe: str
    """The registered model is called ``lvmae-<recipe>``."""
    number: int
    """From 1, in the order of registration."""
    fingerprint: str
    """Of the encoder's artifact."""
    digest: str
    """Of the encoder's artifact: registering it again finds this version."""
    uri: str
    """The folder of the encoder's artifact when it was registered."""
    evaluation: str | None
    """Fingerprint of the evaluation that speaks for it."""
    run: str | None
    """The MLflow run that made it, where it was recorded."""
    is_champion: bool
    """Whether it has the alias ``champion``."""


class Registry:
    """The registered encoders of the store that a workspace records in.

    Args:
        root: the workspace's root; its own store is used unless ``MLFLOW_TRACKING_URI`` names another.

    Raises:
        RegistryUnreachable: from every method, when the store cannot be reached.
    """

    def __init__(self, root: Path) -> None:
        self._client = _reached(lambda: client_of(root))

    def register(
        self, recipe: str, encoder: Artifact, *, evaluation: Artifact | None = None, run: str | None = None
    ) -> Version:
        """The version of an encoder, made if there is none with its digest; an evaluation is noted beside it.

        Args:
            recipe: name of the recipe that made it.
            encoder: artifact of the stage ``pretrain``.
            evaluation: artifact of the stage ``evaluate`` that read it.
            run: id of the MLflow run that made it; otherwise the newest that recorded its digest.
        """
        return _reached(lambda: self._register(recipe, encoder, evaluation, run))

    def versions(self, recipe: str) -> list[Version]:
        """All versions of a recipe, oldest first; none when nothing was registered."""
        return _reached(lambda: self._versions(recipe))

    def champion(self, recipe: str) -> Version | None:
        """The version with the alias, or ``None`` when none was promoted yet."""
        return next((version for version in self.versions(recipe) if version.is_champion), None)

    def promote(self, version: Version) -> Version:
        """Give a version the alias, which the present champion loses."""
        _reached(lambda: self._client.set_registered_model_alias(_name(version.recipe), CHAMPION, str(version.number)))
        return dataclasses.replace(version, is_champion=True)

    def note(self, version: Version, tags: Mapping[str, str]) -> None:
        """Lay tags beside a version, such as why it was promoted or not."""
        for name, value in tags.items():
            self._tag(version, name, value)

    def _register(self, recipe: str, encoder: Artifact, evaluation: Artifact | None, run: str | None) -> Version:
        found = next((version for version in self._versions(recipe) if version.digest == encoder.digest), None)
        if found is None:
            found = self._made(recipe, encoder, run or self._run_of(encoder))
        if evaluation is not None and evaluation.fingerprint != found.evaluation:
            self._tag(found, "lvmae.evaluation", evaluation.fingerprint)
            found = dataclasses.replace(found, evaluation=evaluation.fingerprint)
        return found

    def _made(self, recipe: str, encoder: Artifact, run: str | None) -> Version:
        name = _name(recipe)
        if not self._client.search_registered_models(f"name = '{name}'"):
            _unless_made_meanwhile(lambda: self._client.create_registered_model(name))
        tags = {
            "lvmae.fingerprint": encoder.fingerprint,
            "lvmae.digest": encoder.digest,
            "lvmae.artifact_uri": encoder.folder.as_uri(),
        }
        source = f"{_SCHEME}:/{encoder.manifest.stage}/{encoder.fingerprint}"
        made = self._client.create_model_version(name, source, run_id=run, tags=tags, await_creation_for=None)
        return _version(recipe, made, is_champion=False)

    def _versions(self, recipe: str) -> list[Version]:
        models = self._client.search_registered_models(f"name = '{_name(recipe)}'")
        if not models:
            return []
        chosen = models[0].aliases.get(CHAMPION)
        found = self._client.search_model_versions(f"name = '{_name(recipe)}'", max_results=_MOST_VERSIONS)
        versions = [_version(recipe, entry, is_champion=str(entry.version) == str(chosen)) for entry in found]
        return sorted(versions, key=lambda version: version.number)

    def _run_of(self, encoder: Artifact) -> str | None:
        experiments = [entry.experiment_id for entry in self._client.search_experiments()]
        runs = self._client.search_runs(experiments, f"tags.`lvmae.digest` = '{encoder.digest}'", max_results=1)
        return runs[0].info.run_id if runs else None

    def _tag(self, version: Version, name: str, value: str) -> None:
        _reached(lambda: self._client.set_model_version_tag(_name(version.recipe), str(version.number), name, value))


def _reached(action: Callable[[], _Result]) -> _Result:
    try:
        with reaching("registry"):
            return action()
    except (StoreUnreachable, StoreRefused) as error:
        raise RegistryUnreachable(
            f"MLflow: {error}; no encoder was registered or promoted by this call. "
            "Start the store, or correct MLFLOW_TRACKING_URI, and repeat it"
        ) from error


def _unless_made_meanwhile(make: Callable[[], object]) -> None:
    try:
        make()
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _name(recipe: str) -> str:
    return f"lvmae-{recipe}"


def _version(recipe: str, entry: Any, *, is_champion: bool) -> Version:
    return Version(
        recipe=recipe,
        number=int(entry.version),
        fingerprint=entry.tags.get("lvmae.fingerprint", ""),
        digest=entry.tags.get("lvmae.digest", ""),
        uri=entry.tags.get("lvmae.artifact_uri", ""),
        evaluation=entry.tags.get("lvmae.evaluation"),
        run=entry.run_id or None,
        is_champion=is_champion,
    )
