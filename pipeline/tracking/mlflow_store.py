"""The MLflow store that a run's outbox is sent to: a SQLite file below the root, or what ``MLFLOW_TRACKING_URI`` names.

Importing this module takes seconds, so only the sender and the registry do. Every call names its run; nothing is left to
MLflow's idea of an active run. Whatever is done twice comes to the same as done once. Bytes stay in the workspace; MLflow holds
measurements, records and pointers.
"""

import contextlib
import itertools
import json
import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param, RunTag
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import SQLAlchemyError

from pipeline.tracking.outbox import Measurement, StoreRefused, StoreUnreachable, address

ARTIFACTS = "mlartifacts"
PICTURES = "pictures"
RUN_KEY = "lvmae.run_key"
"""The tag by which a run that was made already is found."""
WORK = "lvmae.work"
"""The tag of what a run does: runs that continue each other share it."""
EVENT = "lvmae.event"
"""The tag with the number of the last event that a run holds."""

_BATCH_METRICS = 900
_BATCH_PARAMETERS = 90
"""What MLflow takes in one call, a little less."""
_LONGEST_VALUE = 500
"""Characters of a tag or a parameter that every kind of store takes."""
_DIGEST_CHARS = 36
"""Characters of a data set's digest that MLflow keeps."""
_PASSWORD = re.compile(r"//[^/@\s]*@")
"""User and password in an address."""
_NEVER = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's errors that another attempt does not help against."""


def client_of(root: Path) -> MlflowClient:
    """A client of the store that runs below ``root`` are recorded in, and of its registry.

    Raises:
        StoreUnreachable: a database cannot be opened; a server is not called yet.
    """
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with reaching("open the store"):
        return MlflowClient(tracking_uri=address(root), registry_uri=address(root))


class MlflowStore:
    """The runs of one experiment.

    Args:
        root: the workspace's root.
        experiment: its name; made when it is not there.

    Raises:
        StoreUnreachable: from every method, when the store cannot be reached.
        StoreRefused: from every method, when the store will never take this.
    """

    def __init__(self, root: Path, experiment: str) -> None:
        # A server chooses where small files go; a bare database would put them into the folder of whoever calls.
        location = None if address(root).startswith(("http", "databricks")) else (root / ARTIFACTS).as_uri()
        self._client = client_of(root)
        with reaching("open the store"):
            self.experiment = self._found_or_made(experiment, location)

    def begin(self, key: str, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        """The id of the run that has this key: made before, if an earlier attempt came so far, or made now."""
        with reaching(f"begin {name}"):
            found = self._having(RUN_KEY, key)
            if found:
                made: str = found[0].info.run_id
            else:
                plain = {tag.key: tag.value for tag in _tags({**tags, RUN_KEY: key})}
                made = self._client.create_run(self.experiment, started_ms, plain, name).info.run_id
            return made

    def last_event(self, run: str) -> int:
        """The number of the last event that a run holds, or -1."""
        with reaching("what is there"):
            return int(self._client.get_run(run).data.tags.get(EVENT, -1))

    def parameters(self, run: str, values: Mapping[str, str]) -> None:
        """Record a flat configuration."""
        found = [Param(name, value[:_LONGEST_VALUE]) for name, value in values.items()]
        with reaching("parameters"):
            for first in range(0, len(found), _BATCH_PARAMETERS):
                self._client.log_batch(run, params=found[first : first + _BATCH_PARAMETERS])

    def inputs(self, run: str, made: Mapping[str, Mapping[str, str]]) -> None:
        """Record input artifacts, by stage: ``fingerprint``, ``digest``, ``uri``; and which runs made them, where known."""
        datasets = [
            DatasetInput(Dataset(stage, one["digest"][:_DIGEST_CHARS], "local", json.dumps({"uri": one["uri"]})), tags=[])
            for stage, one in made.items()
        ]
        with reaching("inputs"):
            if datasets:
                self._client.log_inputs(run, datasets=datasets)
            producers = {stage: self._producer(one["fingerprint"]) for stage, one in made.items()}
        self.tag(run, {f"lvmae.producer.{stage}": producer for stage, producer in producers.items() if producer})

    def measurements(self, run: str, values: Sequence[Measurement], *, event: int) -> None:
        """Record measurements, many in a call, of events up to the one with the number ``event``."""
        found = [Metric(value.name, value.value, value.time_ms, value.step) for value in values]
        with reaching("measurements"):
            for first in range(0, len(found), _BATCH_METRICS):
                is_last = first + _BATCH_METRICS >= len(found)
                tags = [RunTag(EVENT, str(event))] if is_last else []
                self._client.log_batch(run, metrics=found[first : first + _BATCH_METRICS], tags=tags)

    def tag(self, run: str, tags: Mapping[str, str]) -> None:
        """Set tags."""
        with reaching("tags"):
            if tags:
                self._client.log_batch(run, tags=_tags(tags))

    def text(self, run: str, name: str, text: str) -> None:
        """Lay a small file beside the run."""
        with reaching(name):
            self._client.log_text(run, text, name)

    def picture(self, run: str, name: str, step: int, png: bytes) -> None:
        """Lay a picture beside the run, in the folder ``pictures``; steps have so many digits that names sort by them."""
        with reaching("picture"), tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}-{step:08d}.png"
            path.write_bytes(png)
            self._client.log_artifact(run, str(path), PICTURES)

    def end(self, run: str, status: str, ended_ms: int) -> None:
        """Close a run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        with reaching("end"):
            self._client.set_terminated(run, status, ended_ms)

    def link(self, run: str) -> None:
        """Name the run that this one continues, and in that one this one; and the other way about, whichever came first.

        A run continues the last one before it that does the same work, in the sense of the tag ``lvmae.work``, and did not
        finish.
        """
        with reaching("link"):
            work = self._client.get_run(run).data.tags.get(WORK)
            same = sorted(self._having(WORK, work), key=lambda each: int(each.info.start_time)) if work else []
        for earlier, later in itertools.pairwise(same):
            if run in (earlier.info.run_id, later.info.run_id) and earlier.info.status in ("KILLED", "FAILED"):
                self.tag(earlier.info.run_id, {"lvmae.successor": later.info.run_id})
                self.tag(later.info.run_id, {"lvmae.predecessor": earlier.info.run_id})

    def _found_or_made(self, name: str, location: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=location))
            except MlflowException as error:
                found = self._client.get_experiment_by_name(name)  # another sender was a moment faster
                if found is None:
                    raise error
        return str(found.experiment_id)

    def _producer(self, fingerprint: str) -> str | None:
        everywhere = [experiment.experiment_id for experiment in self._client.search_experiments()]
        condition = f"attributes.status = 'FINISHED' and tags.`lvmae.fingerprint` = '{fingerprint}'"
        found = self._client.search_runs(everywhere, condition, max_results=1)
        return found[0].info.run_id if found else None

    def _having(self, tag: str, value: str) -> list[Any]:
        """The runs of the experiment with a tag, newest first."""
        return list(self._client.search_runs([self.experiment], f"tags.`{tag}` = '{value}'"))


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, value[:_LONGEST_VALUE]) for name, value in tags.items()]


@contextlib.contextmanager
def reaching(what: str) -> Iterator[None]:
    """The time within which MLflow is called; ``what`` is done, for the message.

    Raises:
        StoreUnreachable: the store could not be reached, or is not able to answer now.
        StoreRefused: it answered that it will never take this.
    """
    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        message = f"{what}: {_PASSWORD.sub('//', str(error).partition(chr(10))[0])}"
        raise (StoreRefused if _is_final(error) else StoreUnreachable)(message) from error


def _is_final(error: Exception) -> bool:
    """Whether MLflow itself refused, and not something on the way to it."""
    if not isinstance(error, MlflowException) or error.error_code not in _NEVER:
        return False
    is_from_afar = "API request" in str(error)
    return isinstance(error, RestException) or not is_from_afar
