"""One attempt at sending an outbox to MLflow, step by step, so that it can be cut off anywhere and begun again.

A run is found by its key before it is made; a tag of it says which event it holds; how far an outbox was sent is kept after
each call. MLflow chooses the ids of runs, so what is kept says which is which as well.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import environment
from pipeline.tracking.outbox import Event, Letters, Measurement, Progress, StoreRefused, address, number_of, png_of

if TYPE_CHECKING:
    from pipeline.tracking.mlflow_store import MlflowStore

_BATCH_VALUES = 900


class Stores:
    """The store that the environment names, opened once per experiment. MLflow is imported when it is first used.

    Args:
        root: the workspace's root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, MlflowStore] = {}

    def of(self, experiment: str) -> "MlflowStore":
        """The store of an experiment.

        Raises:
            StoreUnreachable: it cannot be opened.
        """
        environment.prepare()
        from pipeline.tracking.mlflow_store import MlflowStore

        if experiment not in self._open:
            self._open[experiment] = MlflowStore(self._root, experiment)
        return self._open[experiment]

    def digest(self) -> str:
        """What tells the store from others, without a password that its address may hold."""
        return hashlib.sha256(address(self._root).encode()).hexdigest()[:16]

    def forget(self) -> None:
        """Open it again before it is used again."""
        self._open.clear()


class Delivery:
    """One attempt at sending an outbox.

    Args:
        letters: the outbox; nobody else sends it meanwhile.
        stores: where it goes.

    Raises:
        StoreUnreachable: from every method, when the store cannot be reached; what was sent is not sent again.
    """

    def __init__(self, letters: Letters, stores: Stores) -> None:
        self._letters = letters
        self._stores = stores
        self._held: dict[str, int] = {}
        self.num_sent = 0
        self.num_refused = 0
        progress = letters.progress()
        self._progress = progress if progress.store == stores.digest() else Progress(store=stores.digest())

    def go_on(self) -> None:
        """Send what is written and was not sent yet."""
        if not self._knows_its_runs():
            self._stores.forget()
            self._progress, self._held = Progress(store=self._progress.store), {}
        for batch in _batches(self._letters.events(self._progress)):
            events = [event for event, _ in batch]
            self._take(events)
            self.num_sent += len(events)
            self._keep(offset_bytes=batch[-1][1], number=events[-1].number)

    def close(self) -> None:
        """Close as killed what was opened and not ended, for its process is no more."""
        for own in reversed(self._progress.running):
            store, run = self._stores.of(self._progress.experiment), self._progress.runs[own]
            store.tag(run, {"lvmae.error": "the process ended without a word"})
            store.end(run, "KILLED", int(self._letters.path.stat().st_mtime * 1000))
            store.link(run)
        self._keep(running=())

    def _knows_its_runs(self) -> bool:
        """Whether the store still holds the runs that were opened in it; one that lost them is given everything again."""
        try:
            for own in self._progress.running:
                store = self._stores.of(self._progress.experiment)
                self._held[own] = store.last_event(self._progress.runs[own])
        except StoreRefused:
            return False
        return True

    def _take(self, events: list[Event]) -> None:
        """Send events of one run and kind; those that the store refuses for good are put aside, one by one."""
        try:
            self._apply(events)
        except StoreRefused as error:
            if len(events) > 1:
                for event in events:
                    self._take([event])
            else:
                self._letters.keep_refused(events, str(error))
                self.num_refused += 1

    def _apply(self, events: list[Event]) -> None:
        first = events[0]
        if first.kind == "open":
            self._open(first)
            return
        run = self._progress.runs.get(first.run)
        if run is None:
            raise StoreRefused(f"run {first.run} was never opened")
        fresh = [event for event in events if event.number > self._held.get(first.run, -1)]
        if fresh:
            self._record(run, fresh)

    def _open(self, event: Event) -> None:
        body = event.body
        store, runs = self._stores.of(body["experiment"]), self._progress.runs
        tags = dict(body["tags"])
        if body["parent"] is not None:
            tags["mlflow.parentRunId"] = runs.get(body["parent"], "")
        run = store.begin(event.run, body["name"], tags, event.time_ms)
        self._held[event.run] = store.last_event(run)
        store.link(run)
        running = (*(own for own in self._progress.running if own != event.run), event.run)
        self._keep(
            experiment=body["experiment"], experiment_id=store.experiment, runs={**runs, event.run: run}, running=running
        )

    def _record(self, run: str, events: list[Event]) -> None:
        event, store = events[-1], self._stores.of(self._progress.experiment)
        body = event.body
        match event.kind:
            case "parameters":
                store.parameters(run, body["values"])
            case "inputs":
                store.inputs(run, body["made"])
            case "measurements":
                store.measurements(run, list(_measurements(events)), event=event.number)
            case "tags":
                store.tag(run, body["tags"])
            case "text":
                store.text(run, body["name"], body["text"])
            case "picture":
                store.picture(run, body["name"], body["step"], png_of(body))
            case "end":
                store.end(run, body["status"], event.time_ms)
                running = tuple(own for own in self._progress.running if own != event.run)
                self._keep(running=running)

    def _keep(self, **changed: object) -> None:
        self._progress = self._progress.model_copy(update={**changed, "problem": ""})
        self._letters.keep(self._progress)


def _batches(events: Iterable[tuple[Event, int]]) -> Iterator[list[tuple[Event, int]]]:
    """Measurements of one run together, as many as go into one call; everything else alone."""
    batch: list[tuple[Event, int]] = []
    num_values = 0
    for entry in events:
        event = entry[0]
        is_more = event.kind == "measurements" and batch and batch[0][0].kind == "measurements" and batch[0][0].run == event.run
        if batch and not (is_more and num_values < _BATCH_VALUES):
            yield batch
            batch, num_values = [], 0
        batch.append(entry)
        num_values += len(event.body.get("values", ()))
    if batch:
        yield batch


def _measurements(events: Iterable[Event]) -> Iterator[Measurement]:
    for event in events:
        for name, value in event.body["values"].items():
            yield Measurement(name, number_of(value), event.time_ms, event.body["step"])
