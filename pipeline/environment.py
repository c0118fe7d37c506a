"""What Prefect and MLflow are told through the environment; a variable that the user has set stays as it is."""

import os
from collections.abc import Mapping

DEFAULTS: Mapping[str, str] = {
    # Nothing that this project starts reports to anybody.
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # Prefect's second user interface asks a company for tracking settings whatever that says; the first asks nobody.
    "PREFECT_SERVER_UI_V2_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    # Prefect's temporary server makes its database when it first starts; its 20 s are too few on a busy machine.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
    # With MLflow's own defaults a server that is away blocks the caller for minutes; so it is some seconds.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A flow run says so often that it lives; `lvmae deploy` makes the automation that notices when it says nothing more.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
"""Values of variables that are not set."""


def prepare() -> None:
    """Set what is not set yet; to be called before either is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
