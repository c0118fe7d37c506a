"""The MLflow store of one pipeline run: a SQLite file below the root, or what ``MLFLOW_TRACKING_URI`` names.

Importing this module takes seconds, so it is imported when the first stage executes. Every call names its run; nothing
is left to MLflow's idea of an active run. Bytes stay in the workspace; MLflow holds measurements, records and pointers.
"""

import contextlib
import json
import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking import Measurement, Picture, StoreUnreachable

DATABASE = "mlflow.db"
ARTIFACTS = "mlartifacts"
PICTURES = "pictures"

_BATCH_METRICS = 1000
_BATCH_PARAMETERS = 100
"""What MLflow takes in one call."""
_LONGEST_VALUE = 500
"""Characters of a tag or a parameter that every kind of store takes."""
_DIGEST_CHARS = 36
"""Characters of a data set's digest that MLflow keeps."""


class MlflowStore:
    """The runs of one pipeline run: a parent, and a child per stage.

    Args:
        root: the workspace's root.
        experiment: its name; made when it is not there.
        tags: tags of the parent run.
        started_ms: when the run began, in milliseconds since 1970.

    Raises:
        StoreUnreachable: the store cannot be opened.
    """

    def __init__(self, root: Path, experiment: str, *, tags: Mapping[str, str], started_ms: int) -> None:
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root / DATABASE}"
        # A server chooses where small files go; a bare database would put them into the folder of whoever calls.
        location = None if uri.startswith(("http", "databricks")) else (root / ARTIFACTS).as_uri()
        with _reaching("open the store"):
            self._client = MlflowClient(tracking_uri=uri)
            self._experiment = self._found_or_made(experiment, location)
            self._end_orphans()
            owner = {"lvmae.host": socket.gethostname(), "lvmae.pid": str(os.getpid()), "lvmae.root": str(root)}
            self.parent = self._begin(experiment, {**owner, **tags}, started_ms)

    def begin(self, stage: str, tags: Mapping[str, str], started_ms: int) -> str:
        """The id of a new child run."""
        with _reaching(f"begin {stage}"):
            return self._begin(stage, {"mlflow.parentRunId": self.parent, **tags}, started_ms)

    def parameters(self, run: str, values: Mapping[str, str]) -> None:
        """Record a flat configuration."""
        found = [Param(name, value[:_LONGEST_VALUE]) for name, value in values.items()]
        with _reaching("parameters"):
            for first in range(0, len(found), _BATCH_PARAMETERS):
                self._client.log_batch(run, params=found[first : first + _BATCH_PARAMETERS])

    def inputs(self, run: str, made: Mapping[str, tuple[str, str]]) -> None:
        """Record input artifacts, each by stage with its digest and its address."""
        datasets = [
            DatasetInput(Dataset(stage, digest[:_DIGEST_CHARS], "local", json.dumps({"uri": uri})), tags=[])
            for stage, (digest, uri) in made.items()
        ]
        with _reaching("inputs"):
            if datasets:
                self._client.log_inputs(run, datasets=datasets)

    def measurements(self, run: str, values: Sequence[Measurement]) -> None:
        """Record measurements, many in a call."""
        found = [Metric(value.name, value.value, value.time_ms, value.step) for value in values]
        with _reaching("measurements"):
            for first in range(0, len(found), _BATCH_METRICS):
                self._client.log_batch(run, metrics=found[first : first + _BATCH_METRICS])

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        with _reaching("tags"):
            self._client.log_batch(run, tags=_tags(tags))

    def text(self, run: str, name: str, text: str) -> None:
        """Lay a small file beside the run."""
        with _reaching(name):
            self._client.log_text(run, text, name)

    def picture(self, run: str, picture: Picture) -> None:
        """Lay a picture beside the run, in the folder ``pictures``; steps have so many digits that names sort by them."""
        with _reaching("picture"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{picture.name}-{picture.step:08d}.png"
            path.write_bytes(picture.png)
            self._client.log_artifact(run, str(path), PICTURES)

    def end(self, run: str, status: str) -> None:
        """Close a run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        with _reaching("end"):
            self._client.set_terminated(run, status)

    def _found_or_made(self, name: str, location: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        made: str = found.experiment_id if found else self._client.create_experiment(name, artifact_location=location)
        return made

    def _begin(self, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        plain = {tag.key: tag.value for tag in _tags(tags)}
        run: str = self._client.create_run(self._experiment, started_ms, plain, name).info.run_id
        return run

    def _end_orphans(self) -> None:
        """Close as killed what a process of this machine left open when it ended without a word, and its children."""
        host = socket.gethostname()
        for parent in self._running(f"tags.`lvmae.host` = '{host}'"):
            if not _lives(int(parent.data.tags["lvmae.pid"])):
                for child in self._running(f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"):
                    self._client.set_terminated(child.info.run_id, "KILLED")
                self._client.set_terminated(parent.info.run_id, "KILLED")

    def _running(self, condition: str) -> list[Any]:
        return list(self._client.search_runs([self._experiment], f"attributes.status = 'RUNNING' and {condition}"))


def _lives(pid: int) -> bool:
    """Whether another process has this id; this one's own, met again in a fresh container, is that of a dead one."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, value[:_LONGEST_VALUE]) for name, value in tags.items()]


@contextlib.contextmanager
def _reaching(what: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise StoreUnreachable(f"{what}: {str(error).partition(chr(10))[0]}") from error
