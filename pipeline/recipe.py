"""Recipes: what a person asks for, resolved into one validated configuration of all five stages.

A recipe is a YAML file that is complete in itself; an overlay (its file name starts with an underscore) changes part of
one; ``--set a.b=value`` changes single values. Later ones win. Unknown keys are refused at every depth.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from models.config import Config
from pipeline.faults import explained
from stages import evaluate, precompute, pretrain, shard, tokenizer
from stages.errors import ConfigError

RECORD = "recipe.yaml"
"""The name under which the resolved recipe is laid beside every artifact."""

FOLDER = Path(__file__).parent / "recipes"


class Recipe(Config):
    """One method at one scale: the configuration of every stage."""

    name: str = Field(min_length=1)
    """What the method is called; names the MLflow experiment."""
    description: str
    """What it is and where its numbers come from, in a sentence."""
    shard: shard.Config
    """Videos to clips."""
    tokenizer: tokenizer.Config
    """Clips to a trained tokenizer."""
    precompute: precompute.Config
    """Clips and tokenizer to codes and priorities."""
    pretrain: pretrain.Config
    """Clips and targets to a pretrained encoder."""
    evaluate: evaluate.Config
    """Encoder to measured accuracies and a report."""

    def resolved(self) -> bytes:
        """The recipe as YAML with every default spelled out; loading it gives the same recipe."""
        plain = self.model_dump(mode="json")
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100).encode()


class Request(Config):
    """What a person asks for: a recipe and what is to be changed in it."""

    recipe: str
    """Name of a recipe, or path of a YAML file."""
    overlays: tuple[str, ...] = ()
    """Names or paths of overlays, applied in this order."""
    source: str | None = None
    """Folder of videos to take instead of the recipe's own source."""
    overrides: tuple[str, ...] = ()
    """Single values, each spelled ``section.key=value`` with the value as in YAML."""

    def load(self) -> Recipe:
        """The validated recipe.

        Raises:
            ConfigError: a name is unknown, a file is not a mapping, or a value does not fit; the message lists every fault.
        """
        plain = _section_wise(read(_path_of(self.recipe, recipe_names(), "recipe")), self._changes())
        try:
            return Recipe.model_validate(plain)
        except ValidationError as error:
            faults = "\n".join(f"  {line}" for line in explained(Recipe, plain, error))
            raise ConfigError(
                f"recipe {self.spelled()} does not fit:\n{faults}\n"
                "Correct the recipe, the overlay or the --set that says so; "
                "`lvmae recipes NAME` prints a recipe with all its keys."
            ) from error

    def spelled(self) -> str:
        """The request as it is typed after a command."""
        overlays = "".join(f" --overlay {name}" for name in self.overlays)
        source = f" --source {self.source}" if self.source else ""
        return f"{self.recipe}{overlays}{source}" + "".join(f" --set {pair}" for pair in self.overrides)

    def _changes(self) -> Iterator[Mapping[str, Any]]:
        for name in self.overlays:
            yield read(_path_of(name, overlay_names(), "overlay"))
        if self.source:
            yield {"shard": {"source": {"name": "folder", "path": self.source}}}
        for pair in self.overrides:
            yield _override(pair)


def recipe_names() -> list[str]:
    """The recipes that come with the project."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def overlay_names() -> list[str]:
    """The overlays that come with the project, spelled without the underscore of their files."""
    return sorted(path.stem.removeprefix("_") for path in FOLDER.glob("_*.yaml"))


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is not there, is not YAML, repeats a key, or holds something else than a mapping.
    """
    try:
        plain = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{path}: holds {type(plain).__name__}, expected a mapping of sections such as `pretrain:`")
    return plain


def merged(base: Any, change: Any) -> Any:
    """``base`` with ``change`` laid over it, mapping by mapping; anything else is replaced.

    Where both sides name an extension and the names differ, the change replaces the whole mapping: the parameters of one
    masking mean nothing to another.
    """
    if not isinstance(base, Mapping) or not isinstance(change, Mapping):
        return change
    if "name" in base and "name" in change and base["name"] != change["name"]:
        return dict(change)
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in change.items()}}


def _section_wise(base: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    plain = dict(base)
    for change in changes:
        for section, value in change.items():
            plain[section] = merged(plain.get(section), value)
    return plain


def _path_of(spelled: str, known: list[str], kind: str) -> Path:
    if spelled.endswith((".yaml", ".yml")) or "/" in spelled:
        return Path(spelled).expanduser()
    if spelled not in known:
        raise ConfigError(
            f"unknown {kind} {spelled!r}; known: {', '.join(known)}; or give the path of a YAML file, such as ./mine.yaml"
        )
    return FOLDER / f"{'_' if kind == 'overlay' else ''}{spelled}.yaml"


def _override(pair: str) -> dict[str, Any]:
    """``a.b=3`` as ``{"a": {"b": 3}}``."""
    key, separator, text = pair.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {pair!r}: expected SECTION.KEY=VALUE, such as --set pretrain.seed=1")
    try:
        nested: Any = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {pair!r}: the value is not valid YAML: {error}") from error
    for part in reversed(parts):
        nested = {part: nested}
    changed: dict[str, Any] = nested
    return changed


class _Loader(yaml.SafeLoader):
    """YAML without the trap of a repeated key, of which the last would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
            if key in seen and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
