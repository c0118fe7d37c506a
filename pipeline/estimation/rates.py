"""How long stages took on this machine: what MLflow's file below the root holds of earlier runs of the same settings.

Read with SQLite alone and without writing: opening the store as MLflow does takes seconds and may change it. Manifests hold no
times, for those would differ every time.
"""

import contextlib
import socket
import sqlite3
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from models.config import Config
from pipeline.tracking.outbox import DATABASE
from pipeline.tracking.tracker import flattened
from stages.storage.workspace import Workspace

_FREE = frozenset(
    {
        *("seed", "num_steps", "num_epochs", "learning_rate", "min_learning_rate", "warmup_share", "weight_decay", "betas"),
        *("clip_grad_norm", "ema_decay", "path", "dataset", "labels", "max_failed_share", "min_failed", "exclude", "where"),
        *("num_train", "num_test", "start_step"),
    }
)
"""Settings, by the last part of their name, that hardly change what one unit takes."""
_LONGEST_VALUE = 500
"""Characters of a setting that the store keeps."""

_RUNS = """
SELECT run.run_uuid, done.value, duration.value
FROM runs AS run
JOIN tags AS stage ON stage.run_uuid = run.run_uuid AND stage.key = 'lvmae.stage' AND stage.value = :stage
JOIN tags AS parent ON parent.run_uuid = run.run_uuid AND parent.key = 'mlflow.parentRunId'
JOIN tags AS host ON host.run_uuid = parent.value AND host.key = 'lvmae.host' AND host.value = :host
JOIN latest_metrics AS done ON done.run_uuid = run.run_uuid AND done.key = 'units_done' AND done.value > 0
JOIN latest_metrics AS duration ON duration.run_uuid = run.run_uuid AND duration.key = 'duration_s'
WHERE run.status = 'FINISHED' AND run.lifecycle_stage = 'active'
ORDER BY run.end_time DESC LIMIT 50
"""


class Rate(NamedTuple):
    """What a unit of a stage took."""

    unit_s: float
    """Seconds, the median over runs of all that a run took over its units."""
    num_runs: int


def measured(workspace: Workspace, stage: str, config: Config) -> Rate | None:
    """What a unit of a stage took here in earlier runs of the same settings; ``None`` where there were none."""
    wanted = _costly(flattened(config.model_dump(mode="json")))
    found = []
    with _opened(workspace.root / DATABASE) as store:
        if store is None:
            return None
        with contextlib.suppress(sqlite3.Error):  # another version of the store, or one that is being made
            for run, done, duration_s in store.execute(_RUNS, {"stage": stage, "host": socket.gethostname()}).fetchall():
                if _agree(dict(store.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,))), wanted):
                    found.append(duration_s / done)
    return Rate(statistics.median(found), len(found)) if found else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection | None]:
    if not path.is_file():
        yield None
        return
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as store:
        yield store


def _agree(recorded: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether an earlier run had the same settings; one that it did not know had its default then."""
    return bool(recorded) and all(recorded.get(name, value) == value for name, value in wanted.items())


def _costly(settings: Mapping[str, str]) -> dict[str, str]:
    """The settings that change what a unit takes, as the store keeps them."""
    return {name: value[:_LONGEST_VALUE] for name, value in settings.items() if name.rpartition(".")[2] not in _FREE}
