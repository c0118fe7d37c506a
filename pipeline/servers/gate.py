"""A gate before the servers of a deployment: without credentials nothing answers but the checks of health, not even a page.

Prefect asks for credentials below ``/api`` alone and shows its pages, ``/docs``, ``/redoc``, ``/openapi.json`` and
``/ui-settings`` to anybody; MLflow shows its files and ``server-info``. Both ask again behind the gate, and what an account may
do is theirs to say. Websockets pass: Prefect asks in the first message, and MLflow has none.

    uvicorn --factory pipeline.servers.gate:prefect_server --port 4200
    mlflow server --app-name lvmae
"""

import hmac
import threading
from collections.abc import Callable, Collection

from cachetools import TTLCache, cached
from fastapi import FastAPI, HTTPException
from fastapi.security import HTTPBasic
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, BaseUser, SimpleUser
from starlette.concurrency import run_in_threadpool
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response

from pipeline.environment import prepare
from stages.errors import ConfigError

_REMEMBERED_S = 60
"""How long right or wrong credentials are remembered: to compare a password with its hash takes MLflow a tenth of a second."""

Admits = Callable[[str, str], bool]
"""Whether a name and a password are those of an account."""


def prefect_server() -> FastAPI:
    """Prefect's server behind the gate; its one account is ``PREFECT_SERVER_API_AUTH_STRING``.

    Raises:
        ConfigError: that is not set, so that the server would be open.
    """
    prepare()
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    secret = get_current_settings().server.api.auth_string
    if secret is None or ":" not in secret.get_secret_value():
        raise ConfigError(
            "PREFECT_SERVER_API_AUTH_STRING is not 'name:password'; set it, or the server would be open to anybody"
        )
    expected = secret.get_secret_value().encode()

    def admits(name: str, password: str) -> bool:
        return hmac.compare_digest(f"{name}:{password}".encode(), expected)

    return behind_gate(create_app(final=True), admits, open_paths=("/api/health", "/api/ready"))


def mlflow_server() -> FastAPI:
    """MLflow's server with accounts, behind the gate; its first account is ``MLFLOW_AUTH_ADMIN_PASSWORD``'s.

    Raises:
        MlflowException: that or ``MLFLOW_FLASK_SERVER_SECRET_KEY`` is not set.
    """
    prepare()
    from mlflow.server.auth import create_app, store

    remember = cached(TTLCache(maxsize=1024, ttl=_REMEMBERED_S), lock=threading.Lock())
    return behind_gate(create_app(), remember(store.authenticate_user), open_paths=("/health",))


def behind_gate(application: FastAPI, admits: Admits, *, open_paths: Collection[str]) -> FastAPI:
    """The application, which answers 401 to every request without credentials.

    Args:
        admits: what says whether they are right; called in a thread.
        open_paths: what may be read without, each exactly as it is spelled here.
    """
    application.add_middleware(AuthenticationMiddleware, backend=_Gate(admits, frozenset(open_paths)), on_error=_refuse)
    return application


class _Gate(AuthenticationBackend):
    """Who is asking, by the header of basic authentication."""

    def __init__(self, admits: Admits, open_paths: frozenset[str]) -> None:
        self._admits, self._open_paths = admits, open_paths

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        """The account, or nobody where nobody need be.

        Raises:
            AuthenticationError: no credentials, or wrong ones.
        """
        if conn.scope["type"] == "websocket":
            return None
        if conn.scope["path"] in self._open_paths and conn.scope["method"] in ("GET", "HEAD"):
            return None
        try:
            credentials = await HTTPBasic()(Request(conn.scope))
        except HTTPException as error:
            raise AuthenticationError("no credentials") from error
        if credentials is None or not await run_in_threadpool(self._admits, credentials.username, credentials.password):
            raise AuthenticationError("wrong credentials")
        return AuthCredentials(), SimpleUser(credentials.username)


def _refuse(conn: HTTPConnection, error: Exception) -> Response:
    """The answer to whoever is not let in; a browser asks its user for name and password."""
    return PlainTextResponse(f"Unauthorized: {error}", 401, {"WWW-Authenticate": 'Basic realm="lvmae", charset="UTF-8"'})
