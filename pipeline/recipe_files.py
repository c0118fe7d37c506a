"""Recipes as files: which there are, reading them, and laying one over another. Knows nothing of what they configure."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from stages.errors import ConfigError

FOLDER = Path(__file__).parent / "recipes"


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
        plain = _parsed(path.read_text(encoding="utf-8"))
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


def section_wise(base: Mapping[str, Any], changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """``base`` with every change laid over it in turn, section by section."""
    plain = dict(base)
    for change in changes:
        for section, value in change.items():
            plain[section] = merged(plain.get(section), value)
    return plain


def path_of(spelled: str, known: list[str], kind: str) -> Path:
    """The file that a name or a path spells; ``kind`` is ``recipe`` or ``overlay``.

    Raises:
        ConfigError: it is a name, and not one of ``known``.
    """
    if spelled.endswith((".yaml", ".yml")) or "/" in spelled:
        return Path(spelled).expanduser()
    if spelled not in known:
        raise ConfigError(
            f"unknown {kind} {spelled!r}; known: {', '.join(known)}; or give the path of a YAML file, such as ./mine.yaml"
        )
    return FOLDER / f"{'_' if kind == 'overlay' else ''}{spelled}.yaml"


def override(pair: str) -> dict[str, Any]:
    """``a.b=3`` as ``{"a": {"b": 3}}``, the value read as YAML.

    Raises:
        ConfigError: it is not spelled like that.
    """
    key, separator, text = pair.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {pair!r}: expected SECTION.KEY=VALUE, such as --set pretrain.seed=1")
    try:
        nested: Any = _parsed(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {pair!r}: the value is not valid YAML: {error}") from error
    for part in reversed(parts):
        nested = {part: nested}
    changed: dict[str, Any] = nested
    return changed


def _parsed(text: str) -> Any:
    """The value of a YAML text, refusing a key that stands twice in one mapping: the last would silently win."""
    _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader))
    return yaml.safe_load(text)


def _refuse_repeated_keys(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        repeated = next((key for key, _ in node.value if keys.count(key.value) > 1), None)
        if repeated is not None:
            raise yaml.MarkedYAMLError(problem=f"key {repeated.value!r} stands twice", problem_mark=repeated.start_mark)
        for _, value in node.value:
            _refuse_repeated_keys(value)
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_repeated_keys(value)
