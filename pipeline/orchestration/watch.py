"""``lvmae watch``: tells a Prefect server when something landed in a source, so that an automation starts the pipeline at once.

It is the fast path and no guarantee: what it could not tell, the sensor finds. A local folder is watched through the system,
with a look now and then for file systems that report nothing; a store is looked at now and then.
"""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import httpx
import watchfiles
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException
from prefect.settings import PREFECT_API_URL

from pipeline.orchestration.landing import SHOWN_CHARS, Landing, event
from stages import places
from stages.arrivals import Arrivals
from stages.errors import ConfigError, SourceMissing
from stages.storage.workspace import Workspace

_log = logging.getLogger(__name__)


class Watcher:
    """Looks at a source and tells the server of what landed, once.

    Args:
        landing: what is watched, and for which recipe.
        workspace: below whose root the clips lie.
        lines: where a person reads what was told.
    """

    def __init__(self, landing: Landing, workspace: Workspace, lines: TextIO) -> None:
        self._landing = landing
        self._workspace = workspace
        self._lines = lines
        self._told = ""
        self._fault = ""

    def look(self) -> bool:
        """Look once, and tell the server of what is new; whether it is known there, or there is nothing to tell."""
        try:
            found = self._landing.look(self._workspace)
        except (SourceMissing, OSError) as error:
            self._complain(str(error))
            return True
        if not found.new or found.digest == self._told:
            self._fault = ""
            return True
        return self._tell(found)

    def _tell(self, found: Arrivals) -> bool:
        try:
            with get_client(sync_client=True) as client:
                client.request("POST", "/events", json=[event(self._landing, found)]).raise_for_status()
        except (httpx.HTTPError, PrefectException, OSError) as error:
            self._complain(f"{PREFECT_API_URL.value()} does not answer ({error or type(error).__name__}); it is tried again")
            return False
        self._told, self._fault = found.digest, ""
        waiting = f", {len(found.waiting)} not complete yet" if found.waiting else ""
        self._say(f"landed      {len(found.new)} files ({found.digest[:SHOWN_CHARS]}){waiting}; the server knows")
        return True

    def _complain(self, fault: str) -> None:
        """Say what is wrong, once as long as it stays the same."""
        if fault != self._fault:
            self._say(f"warning     {fault}")
        self._fault = fault

    def _say(self, text: str) -> None:
        self._lines.write(text + "\n")
        self._lines.flush()


def watch(landing: Landing, *, root: str, quiet_s: float, most_s: float, poll_s: float, lines: TextIO = sys.stdout) -> None:
    """Watch a source until the process is ended.

    Args:
        landing: what is watched, and for which recipe.
        root: where the clips lie.
        quiet_s: so long nothing must have changed before it is looked at: a burst is one event.
        most_s: a look is put off no longer than this, although something changes all the time.
        poll_s: so often it is looked at in any case, and an unreachable server is tried again.
        lines: where a person reads what was told.

    Raises:
        ConfigError: no server is named, or the recipe does not fit.
    """
    if not PREFECT_API_URL.value():
        raise ConfigError("PREFECT_API_URL names no server to tell; set it, for example to http://127.0.0.1:4200/api")
    watcher = Watcher(landing, Workspace.at(root), lines)
    landing.request.load()
    source = landing.source
    lines.write(f"watching    {source} for {landing.request.spelled()}\n")
    lines.flush()
    watcher.look()
    for _ in moments(source, quiet_s=quiet_s, most_s=most_s, poll_s=poll_s):
        watcher.look()


def moments(source: str, *, quiet_s: float, most_s: float, poll_s: float) -> Iterator[None]:
    """The moments at which it is worth looking at a source: after every burst of changes, and now and then."""
    folder = _folder(source)
    with contextlib.suppress(OSError, RuntimeError):  # the system watches no more folders, or none of this kind
        while folder is not None:
            yield from _changes(folder, quiet_s=quiet_s, most_s=most_s, poll_s=poll_s)
    _log.warning("watching=%s by=polling every_s=%s", source, poll_s)
    while True:
        time.sleep(poll_s)
        yield


def _changes(folder: Path, *, quiet_s: float, most_s: float, poll_s: float) -> Iterator[None]:
    for _ in watchfiles.watch(
        folder,
        watch_filter=None,
        debounce=round(1000 * most_s),
        step=round(1000 * quiet_s),
        rust_timeout=round(1000 * poll_s),
        yield_on_timeout=True,
        ignore_permission_denied=True,
    ):
        yield


def _folder(source: str) -> Path | None:
    """The local folder to watch: the source itself or, of a glob, what lies before the wildcard; ``None`` for a store."""
    if places.is_remote(source):
        return None
    path = Path(places.place_of(source).url)
    return next((one for one in (path, *path.parents) if one.is_dir()), None)
