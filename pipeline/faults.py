"""What is wrong with a recipe, said for a person: the path of each fault, what was expected, and what is known there."""

import difflib
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from models import extension
from models.config import Config

_Location = Sequence[int | str]


def explained(model: type[Config], data: Mapping[str, Any], error: ValidationError) -> list[str]:
    """One line per fault of ``data`` as ``model``, in the order in which they stand."""
    faults = error.errors(include_url=False)
    return [_line(model, data, fault) for fault in faults if not _follows_from_another(fault, faults)]


def _follows_from_another(fault: Any, faults: Sequence[Any]) -> bool:
    """Whether a list is called too short only because what is in it does not fit."""
    location = fault["loc"]
    inside = (other["loc"][: len(location)] == location and len(other["loc"]) > len(location) for other in faults)
    return fault["type"] == "too_short" and any(inside)


def _line(model: type[Config], data: Mapping[str, Any], fault: Any) -> str:
    location: _Location = fault["loc"]
    path = _path(data, location)
    if fault["type"] == "extra_forbidden":
        return f"{path}: unknown key{_known(model_at(model, data, location[:-1]), str(location[-1]))}"
    if fault["type"] == "missing":
        return f"{path}: missing, and it has no default{_meaning(model_at(model, data, location[:-1]), str(location[-1]))}"
    message = _in_words_of_yaml(str(fault["msg"]).removeprefix("Value error, "))
    return f"{path}: {message}" if fault["type"] == "value_error" else f"{path}: {message}, not {_short(fault['input'])}"


def _path(data: Any, location: _Location) -> str:
    """``location`` as it is spelled in a recipe, without what the library adds to tell the members of a union apart."""
    spelled = []
    for part in location:
        if isinstance(data, Mapping) or isinstance(part, int):
            spelled.append(str(part))
        data = _child(data, part)
    return ".".join(spelled) or "as a whole"


def _in_words_of_yaml(message: str) -> str:
    message = re.sub(r"valid dictionary or instance of \w+", "mapping", message)
    return re.sub(r"(valid )?\btuple\b", "list", message, flags=re.IGNORECASE)


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    spelled = repr(value)
    return spelled if len(spelled) <= 80 else f"{spelled[:77]}..."


def _known(model: type[Config] | None, key: str) -> str:
    if model is None:
        return ""
    fields = list(model.model_fields)
    near = difflib.get_close_matches(key, fields, n=1)
    return (f"; did you mean {near[0]!r}?" if near else ";") + f" known here: {', '.join(fields)}"


def _meaning(model: type[Config] | None, key: str) -> str:
    field = model.model_fields.get(key) if model else None
    return f": {field.description}" if field and field.description else ""


def model_at(model: type[Config], data: Any, location: _Location) -> type[Config] | None:
    """The class that validates what stands at ``location``, or ``None`` where that cannot be told."""
    found: type[Config] | None = model
    for part in location:
        data = _child(data, part)
        if isinstance(part, str):
            field = found.model_fields.get(part) if found else None
            found = _config_in(field.annotation, data) if field else None
    return found


def _child(data: Any, part: int | str) -> Any:
    if isinstance(data, Mapping):
        return data.get(part)
    if isinstance(part, int) and isinstance(data, Sequence) and part < len(data):
        return data[part]
    return None


def _config_in(annotation: Any, data: Any) -> type[Config] | None:
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return _extension_of(annotation, data)
    inner = (_config_in(argument, data) for argument in get_args(annotation))
    return next((found for found in inner if found), None)


def _extension_of(base: type[Config], data: Any) -> type[Config]:
    """The class of the extension that ``data`` names, where ``base`` is what an extension folder has in common."""
    package = base.__module__
    if not hasattr(sys.modules[package], "__path__"):
        return base
    name = data.get("name") if isinstance(data, Mapping) else data
    if name not in extension.names(package):
        return base
    found: type[Config] = importlib.import_module(f"{package}.{name}").Config
    return found
