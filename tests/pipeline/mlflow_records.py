"""A database of MLflow for tests, made once for all of them, and what is read from it."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from pipeline import environment
from pipeline.tracking.outbox import DATABASE


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store: making one takes seconds of processor time, copying it does not."""
    environment.prepare()
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "mlflow"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            client(folder).search_experiments()
            (folder / "made").touch()
    return folder / DATABASE


@pytest.fixture
def root(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with an empty store of its own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "root"
    folder.mkdir()
    shutil.copy(empty_database, folder / DATABASE)
    return folder


def client(root: Path) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root / DATABASE}")


def all_runs(root: Path) -> list[Any]:
    """Every run below a root, in the order in which they began."""
    asked = client(root)
    experiments = [experiment.experiment_id for experiment in asked.search_experiments()]
    return sorted(asked.search_runs(experiments), key=lambda run: (run.info.start_time, run.info.run_name))


def contents(root: Path) -> list[dict[str, Any]]:
    """All that the store holds of every run, without the ids that it chose, and with every single measurement."""
    asked, found = client(root), []
    names = {run.info.run_id: run.info.run_name for run in all_runs(root)}
    for run in all_runs(root):
        tags = {name: names.get(value, value) for name, value in run.data.tags.items()}
        history = {name: asked.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
        folder = Path(run.info.artifact_uri.removeprefix("file://"))
        found.append(
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "times": (run.info.start_time, run.info.end_time),
                "parameters": dict(run.data.params),
                "tags": {name: value for name, value in tags.items() if not name.startswith("mlflow.user")},
                "inputs": [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs],
                "measurements": {
                    name: [(each.step, repr(each.value), each.timestamp) for each in every] for name, every in history.items()
                },
                "files": {
                    path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
                },
            }
        )
    return found
