"""Every route of a server, asked of its application: a description such as OpenAPI leaves some of them out.

    python -m tests.routes pipeline.servers.gate:prefect_server

prints a line of JSON per route: its kind (``http``, ``websocket``), its methods, and its path with values for its parameters.
"""

import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

_PARAMETER = re.compile(r"\{[^}]*\}|<[^>]*>")


def routes(application: Any) -> Iterator[dict[str, Any]]:
    """The routes of a FastAPI application, with those of the applications mounted in it."""
    from fastapi.routing import iter_route_contexts

    for route in iter_route_contexts(application.router.routes):
        yield from _of_route(route.original_route, route.path)


def _of_route(route: Any, path: str | None) -> Iterator[dict[str, Any]]:
    kind = type(route).__name__
    if kind == "Mount":
        for found in _below(route):
            yield {**found, "path": route.path + found["path"]}
    elif "WebSocket" in kind:
        yield {"kind": "websocket", "methods": [], "path": _spelled(path or "")}
    elif path is not None:
        yield {"kind": "http", "methods": sorted(route.methods or ("GET",)), "path": _spelled(path)}


def _below(mount: Any) -> Iterator[dict[str, Any]]:
    """What is mounted: another such application, a Flask application, or a folder of files."""
    if hasattr(mount.app, "router"):
        yield from routes(mount.app)
    elif hasattr(mount.app, "app"):
        for rule in mount.app.app.url_map.iter_rules():
            yield {"kind": "http", "methods": sorted(rule.methods or ()), "path": _spelled(rule.rule)}
    else:
        yield {"kind": "http", "methods": ["GET", "HEAD"], "path": "/"}


def _spelled(path: str) -> str:
    return _PARAMETER.sub("1", path)


if __name__ == "__main__":
    module, _, factory = sys.argv[1].partition(":")
    for each in routes(getattr(import_module(module), factory)()):
        sys.stdout.write(f"{json.dumps(each)}\n")
