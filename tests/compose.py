"""Services of ``docker/compose.yaml`` as processes of this machine: the same commands and the same environment, with another
folder in place of each volume, and free ports in place of fixed ones.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

FOLDER = Path(__file__).parents[1] / "docker"
_VARIABLE = re.compile(r"\$\{(\w+):\?[^}]*\}")


class Service(NamedTuple):
    """What a container would be started with."""

    command: list[str]
    environment: dict[str, str]


def read(name: str = "compose.yaml") -> dict[str, Any]:
    """A compose file as it stands, its anchors resolved and its variables not."""
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text())
    return content


def texts(value: Any) -> Iterator[str]:
    """Every text in a value that came out of YAML: keys and values, at every depth."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from (str(key), *texts(each))
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    else:
        yield str(value)


def variables() -> set[str]:
    """The names of the variables that compose asks its user for."""
    return {name for text in texts(read()) for name in _VARIABLE.findall(text)}


def service(name: str, values: Mapping[str, str], replacements: Mapping[str, str]) -> Service:
    """A service with its variables filled in.

    Args:
        values: of the variables; one that is missing is a ``KeyError``, as it stops compose.
        replacements: what is put in place of what, in the command and in the values of the environment: paths, hosts and ports.
    """

    places = "|".join(re.escape(old) for old in replacements)

    def filled(text: object) -> str:
        adapted = re.sub(places, lambda match: replacements[match[0]], str(text))
        return _VARIABLE.sub(lambda match: values[match[1]], adapted)

    found = read()["services"][name]
    environment = {key: filled(value) for key, value in found["environment"].items()}
    return Service([filled(part) for part in found["command"]], environment)
