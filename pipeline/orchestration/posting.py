"""Artifacts on their way to the Prefect server, sent by a thread of their own: no stage waits for the server or fails with it.

Of two artifacts with one key the newer one replaces the older where it lies, whether that is on the server or still waiting.
What cannot be sent is offered again until the run ends; that it could not is said once.
"""

import contextlib
import logging
import threading
import time
from typing import NamedTuple
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.utilities.context import get_task_and_flow_run_ids

PAUSE_S = 10.0
"""How long a server that failed is left alone."""
PATIENCE_S = 15.0
"""How long the end of a run waits for what was not sent yet."""
_TIMEOUT_S = 10.0
_MOST_WAITING = 100

_log = logging.getLogger(__name__)


class Post(NamedTuple):
    """One artifact."""

    kind: str
    """Prefect's type, such as ``markdown`` or ``progress``."""
    data: str | float
    description: str
    task_run: UUID | None
    flow_run: UUID | None


class Posting:
    """Sends artifacts of the flow run in which it is made; ``close`` it at the end.

    Without a flow run it sends nothing.
    """

    def __init__(self) -> None:
        self._api_url = _api_url()
        self._waiting: dict[str, Post] = {}
        self._sent: dict[tuple[str, UUID | None], UUID] = {}
        self._changed = threading.Condition()
        self._closing_s: float | None = None
        self._warned = False
        self._thread: threading.Thread | None = None

    def put(self, key: str, kind: str, data: str | float, description: str, *, of_run: bool = False) -> None:
        """Show an artifact as one of the current task, or of the flow outside of tasks; returns at once.

        Args:
            key: small letters, digits and dashes; an artifact of the same task with the same key is replaced.
            of_run: whether it belongs to the whole run, and stands first on its page, whatever task makes it.
        """
        task_run, flow_run = get_task_and_flow_run_ids()
        post = Post(kind, data, description, None if of_run else task_run, flow_run)
        if self._api_url is None or post.flow_run is None:
            return
        with self._changed:
            if key in self._waiting or len(self._waiting) < _MOST_WAITING:
                self._waiting[key] = post
            self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._send_all, name="artifacts", daemon=True)
            self._thread.start()

    def drain(self, patience_s: float = PATIENCE_S) -> None:
        """Wait until everything is sent, but not for long."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, timeout=patience_s)

    def close(self) -> None:
        """Send what waits, and stop; what the server did not take by then is left out, and that is said."""
        if self._thread is None:
            return
        with self._changed:
            self._closing_s = time.monotonic() + PATIENCE_S
            self._changed.notify_all()
        self._thread.join(PATIENCE_S + _TIMEOUT_S)
        if self._waiting:
            _log.warning("not shown in Prefect, for its server is away: %s", ", ".join(sorted(self._waiting)))

    def _send_all(self) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(temporary_settings({PREFECT_API_URL: self._api_url, PREFECT_CLIENT_MAX_RETRIES: 0}))
            client = stack.enter_context(get_client(httpx_settings={"timeout": _TIMEOUT_S}, sync_client=True))
            while (found := self._next()) is not None:
                self._try(client, *found)

    def _next(self) -> tuple[str, Post] | None:
        """What to send next; ``None`` at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing_s is not None)
            is_late = self._closing_s is not None and time.monotonic() >= self._closing_s
            return None if is_late or not self._waiting else next(iter(self._waiting.items()))

    def _try(self, client: SyncPrefectClient, key: str, post: Post) -> None:
        try:
            self._send(client, key, post)
        except (httpx.HTTPError, OSError, RuntimeError) as error:  # Prefect wraps some of them
            self._failed(error)
        else:
            self._done(key, post)

    def _send(self, client: SyncPrefectClient, key: str, post: Post) -> None:
        known = self._sent.get((key, post.task_run))
        if known:
            client.update_artifact(known, ArtifactUpdate(data=post.data, description=post.description))
            return
        made = client.create_artifact(
            ArtifactCreate(
                key=key,
                type=post.kind,
                data=post.data,
                description=post.description,
                task_run_id=post.task_run,
                flow_run_id=post.flow_run,
            )
        )
        self._sent[key, post.task_run] = made.id

    def _failed(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("Prefect: %s; the stages go on, and what they show is offered again later", error)
        self._warned = True
        with self._changed:
            self._changed.wait_for(lambda: self._closing_s is not None, timeout=PAUSE_S)
        time.sleep(1 if self._closing_s is not None else 0)

    def _done(self, key: str, post: Post) -> None:
        with self._changed:
            if self._waiting.get(key) is post:  # and not a newer one that came meanwhile
                del self._waiting[key]
            self._changed.notify_all()


def _api_url() -> str | None:
    """The server of the current flow run, also when that is a temporary one."""
    context = FlowRunContext.get()
    if context is None or not isinstance(context.client, SyncPrefectClient):
        return None
    return str(context.client.api_url)
