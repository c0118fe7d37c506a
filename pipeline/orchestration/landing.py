"""Landing: what of a request has arrived, what it is called, and whether a run has to be started for it.

The same for the sensor, which looks on a schedule and is the guarantee, and for the watcher, which is the fast path. Nothing is
remembered between two looks: what has landed follows from the source, the dataset and the server's list of runs.
"""

import dataclasses
import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Self

from pipeline.orchestration.parameters import asked
from pipeline.recipe import Request
from stages.arrivals import Arrivals, arrivals
from stages.places import place_of
from stages.storage.publish import canonical_json, sha256_bytes
from stages.storage.workspace import Workspace

EVENT = "lvmae.sources.landed"
"""What the watcher tells the server."""
RESOURCE = "lvmae.source"
"""The beginning of the resource that an event is about; the dataset follows."""
PIPELINE = "lvmae/pipeline"
"""The deployment that is started, by the names of its flow and its own."""

SHOWN_CHARS = 12
"""How much of a digest is shown."""

_NAMESPACE = uuid.UUID("5f2d9c1e-6f0b-5d0c-9a53-0d3c1f6a7b2e")
_PLACES = ("source", "root")
_ACTIVE = ("RUNNING", "PAUSED", "CANCELLING")
_NOT_BEGUN = ("SCHEDULED", "PENDING")
_DUE = datetime.timedelta(minutes=1)
"""A scheduled run that starts later than this takes nothing in soon enough. Our choice."""


@dataclasses.dataclass(frozen=True)
class Landing:
    """A source that is looked at, and for which recipe, in the words of the deployment ``pipeline``."""

    recipe: str
    recipe_file: str = ""
    overlays: tuple[str, ...] = ()
    overlay_files: tuple[str, ...] = ()
    source: str = ""
    dataset: str = ""
    root: str = ""
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, *, dataset: str, root: str) -> Self:
        """What the command line asks for; the deployment has a field each for names and for paths."""
        is_file = _is_path(request.recipe)
        return cls(
            recipe="lvmae" if is_file else request.recipe,
            recipe_file=request.recipe if is_file else "",
            overlays=tuple(name for name in request.overlays if not _is_path(name)),
            overlay_files=tuple(name for name in request.overlays if _is_path(name)),
            source=_absolute(request.source or ""),
            dataset=dataset,
            root=_absolute(root),
            overrides=request.overrides,
        )

    @property
    def request(self) -> Request:
        """The same as the command line spells it."""
        plain = self.parameters
        return asked(**{name: value for name, value in plain.items() if name != "root"}, snapshot="")

    @property
    def parameters(self) -> dict[str, Any]:
        """Of a run that takes in what landed."""
        plain = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}

    def dataset_name(self) -> str:
        """What the clips are called, without the hash of how they are made.

        Raises:
            ConfigError: the recipe does not fit.
        """
        section = self.request.load().shard
        return section.dataset or section.source.dataset_name()

    def look(self, workspace: Workspace) -> Arrivals:
        """What has landed.

        Raises:
            PipelineError: the recipe does not fit, or there is nothing at the source.
            OSError: a store does not answer.
        """
        return arrivals(self.request.load().shard, workspace)

    def key(self, digest: str) -> str:
        """The idempotency key of a run for what landed: of two recipes that read one source each gets its own."""
        return f"landed-{digest}-{sha256_bytes(canonical_json(self.parameters))[:SHOWN_CHARS]}"

    def is_asked_by(self, parameters: Mapping[str, Any]) -> bool:
        """Whether a run with these parameters reads the same source for the same recipe below the same root.

        A source or a root that one of the two leaves to the recipe or the worker is taken for the same.
        """
        own = self.parameters
        named = all((parameters.get(name) or None) == (own[name] or None) for name in own if name not in _PLACES)
        places = ((_absolute(own[name]), _absolute(parameters.get(name) or "")) for name in _PLACES)
        return named and all(one == other or not one or not other for one, other in places)


def event(landing: Landing, found: Arrivals) -> dict[str, Any]:
    """What the server is told of what landed; told twice it is the same event, for its id is made of the digest."""
    dataset = landing.dataset_name()
    return {
        "id": str(uuid.uuid5(_NAMESPACE, landing.key(found.digest))),
        "occurred": datetime.datetime.now(datetime.UTC).isoformat(),
        "event": EVENT,
        "resource": {"prefect.resource.id": f"{RESOURCE}.{dataset}", "prefect.resource.name": dataset},
        "payload": {**landing.parameters, "landed": found.digest, "num_files": len(found.landed)},
    }


@dataclasses.dataclass(frozen=True)
class Standing:
    """A run of the pipeline as the server knows it."""

    name: str
    run: str
    """Its id."""
    state_type: str
    state: str
    parameters: Mapping[str, Any]
    expected: datetime.datetime | None
    """When it was to start."""
    idempotency_key: str = ""

    def __str__(self) -> str:
        return f"run {self.name!r} ({self.run}, {self.state})"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What is done about what landed."""

    starts: bool
    """Whether a run has to be started."""
    why: str
    """One sentence for a person."""


def decide(landing: Landing, found: Arrivals, runs: Sequence[Standing], *, now: datetime.datetime) -> Decision:
    """Whether a run has to be started for what landed.

    Args:
        landing: what was looked at.
        found: what landed there.
        runs: of the pipeline, whoever started them.
        now: the time.
    """
    if not found.landed:
        return Decision(False, f"nothing new: {_counted(found)}")
    own = [run for run in runs if landing.is_asked_by(run.parameters)]
    for run in own:
        if run.parameters.get("landed") == found.digest or run.idempotency_key == landing.key(found.digest):
            return Decision(False, f"{_landed(found)}: {run} was started for exactly this{_advice(run)}")
    for run in own:
        is_due = run.expected is None or run.expected <= now + _DUE
        if run.state_type in _NOT_BEGUN and is_due:
            return Decision(False, f"{_landed(found)}: {run} has not begun and will take them in")
        if run.state_type in _ACTIVE and not found.new:
            return Decision(False, f"{_landed(found)}: {run} is at work on them")
    return Decision(True, f"{_landed(found)}: a run is started")


def _absolute(place: str) -> str:
    """A place as any process of this machine understands it; empty stays empty."""
    return place_of(place).url if place else ""


def _is_path(spelled: str) -> bool:
    return spelled.endswith((".yaml", ".yml"))


def _landed(found: Arrivals) -> str:
    what = "new" if found.new else "begun by a run that did not finish them"
    return f"{len(found.landed)} complete, {what} ({found.digest[:SHOWN_CHARS]})"


def _counted(found: Arrivals) -> str:
    waiting = f", {len(found.waiting)} not complete yet" if found.waiting else ""
    return f"{found.num_sources} sources{waiting}"


def _advice(run: Standing) -> str:
    if run.state_type in ("FAILED", "CRASHED"):
        return "; it ended early: press Retry on it, which does only what is missing"
    return "; it was cancelled: start one by hand" if run.state_type == "CANCELLED" else ""
