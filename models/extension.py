"""A configuration field whose value picks a file: the folder is the registry, the file name is the YAML name.

``masking: {name: tube, ratio: 0.9}`` loads ``models/masking/tube.py`` and validates ``{ratio: 0.9}`` with its ``Config``.
Nothing is registered and nothing is imported until it is named.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from models.config import Config


def names(package: str) -> list[str]:
    """The extensions a package offers, sorted: one per module whose name has no leading underscore."""
    found = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(package: str, value: Any) -> Any:
    """The ``Config`` of the extension that ``value`` names; a ``Config`` passes through.

    Raises:
        ValueError: the name is missing or unknown; the message lists the known ones.
    """
    if isinstance(value, Config):
        return value
    known = names(package)
    if not isinstance(value, str | Mapping):
        raise ValueError(f"{value!r} is neither a name in {package} nor a mapping with one; known: {', '.join(known)}")
    fields = {"name": value} if isinstance(value, str) else dict(value)
    name = fields.get("name")
    if name not in known:
        raise ValueError(f"unknown name {name!r} in {package}; known: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}").Config.model_validate(fields)


def extension(package: str, base: type) -> Any:
    """The type of a field that holds the ``Config`` of any extension in ``package``.

    Args:
        package: import path of the extension folder, such as ``"models.masking"``.
        base: what the configs of that folder have in common; the static type of the field.
    """
    # The type is a value here, which is what pydantic wants and what a type checker cannot follow.
    return Annotated[SerializeAsAny[base], BeforeValidator(lambda value: load(package, value))]  # type: ignore[misc]
