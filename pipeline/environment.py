"""What Prefect and MLflow are told through the environment; a variable that the user has set stays as it is."""

import os

_DEFAULTS = {
    # Nothing that this project starts reports to anybody.
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect's temporary server makes its database when it first starts; its 20 s are too few on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # With MLflow's own defaults a server that is away blocks the caller for minutes; so it is some seconds.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def prepare() -> None:
    """Set what is not set yet; to be called before either is imported."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
