"""The other nodes of a training: runs of the deployment ``lvmae-node/node``, one per node, started and ended with it.

The run that asks for them is the first node itself, so that it hears the first rank. Prefect hands out no slots together:
runs that find none wait, and so would the others for them. Where the limits make that certain it is refused, and otherwise the
wait has an end, at which all of them are cancelled.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from uuid import UUID

from prefect import flow, get_client, runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Scheduled

from pipeline.launching.launch import NODES, Meeting, train
from pipeline.recipe import Request
from stages.errors import ConfigError

DEPLOYMENT = "lvmae-node/node"
WAIT_S = "LVMAE_NODES_WAIT_S"

_PATIENCE_S = 600.0
_LOOK_S = 5.0
_TELL_S = 30.0

_log = logging.getLogger(__name__)


def node_name() -> str:
    """The name of the current run of a node."""
    given = runtime.flow_run.parameters
    return f"{given['recipe']} node {given['node'] + 1} of {given['num_nodes']}"


@flow(name="lvmae-node", flow_run_name=node_name, persist_result=False)
def run_node(
    recipe: str,
    root: str,
    node: int,
    num_nodes: int,
    processes: int,
    address: str,
    meeting: str,
    overlays: Sequence[str] = (),
    source: str | None = None,
    overrides: Sequence[str] = (),
    snapshot: str | None = None,
) -> None:
    """One node of a pretraining over several. Started by the run of the first node, and of no use alone.

    Args:
        recipe: Name of a recipe, or path of a YAML file on the worker.
        root: Where artifacts lie, the same on every node.
        node: Which one, from 1; the first is the run that started this one.
        num_nodes: How many there are.
        processes: Ranks on each.
        address: Host and port of the first node.
        meeting: What the training is called, the same on every node.
        overlays: Names or paths of YAML files that change the recipe.
        source: Folder of videos, to take instead of the recipe's own source.
        overrides: Single values, each spelled section.key=value.
        snapshot: Which clips to train on.
    """
    request = Request(recipe=recipe, overlays=tuple(overlays), source=source, overrides=tuple(overrides), snapshot=snapshot)
    train(request, root, Meeting(num_nodes, processes, address, meeting), node=node, heard=lambda line: _log.info("%s", line))


@contextlib.contextmanager
def beside(request: Request, root: str, meeting: Meeting) -> Iterator[Callable[[], None]]:
    """Runs of all nodes but the first, for as long as the block lasts; those that have not ended by then are cancelled.

    Yields:
        what raises an ``OSError`` if one failed, or did not begin in time.

    Raises:
        ConfigError: there is no such deployment, or it may not have as many runs at once.
    """
    with get_client(sync_client=True) as client:
        limited(client, meeting.num_nodes)
        runs = [_started(client, request, root, meeting, node) for node in range(1, meeting.num_nodes)]
        try:
            yield _Watch(client, runs)
        finally:
            for run in runs:
                _cancelled(client, run)


def limited(client: SyncPrefectClient, num_nodes: int) -> None:
    """Refuse more nodes than may run at once.

    Raises:
        ConfigError: the deployment is not there, or a limit of it or of its work pool is too low.
    """
    try:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
    except ObjectNotFound as error:
        raise ConfigError(f"{NODES}={num_nodes} needs the deployment {DEPLOYMENT}: make it with `lvmae deploy`") from error
    most = deployment.global_concurrency_limit.limit if deployment.global_concurrency_limit else None
    if most is not None and most < num_nodes - 1:
        raise ConfigError(f"{NODES}={num_nodes}: {DEPLOYMENT} may have {most} runs at once, and {num_nodes - 1} are needed")
    pool = client.read_work_pool(deployment.work_pool_name) if deployment.work_pool_name else None
    if pool and pool.concurrency_limit is not None and pool.concurrency_limit < num_nodes:
        raise ConfigError(
            f"{NODES}={num_nodes}: the work pool {pool.name} may have {pool.concurrency_limit} runs at once, and {num_nodes} "
            "are needed, this one among them; raise its limit, or take fewer nodes"
        )


def _started(client: SyncPrefectClient, request: Request, root: str, meeting: Meeting, node: int) -> UUID:
    asked = request.model_dump(mode="json", include={"recipe", "overlays", "source", "overrides", "snapshot"})
    parameters = {
        **asked,
        "root": root,
        "node": node,
        "num_nodes": meeting.num_nodes,
        "processes": meeting.processes,
        "address": meeting.address,
        "meeting": meeting.name,
    }
    deployment = client.read_deployment_by_name(DEPLOYMENT)
    key = f"{meeting.name}-{node}"
    run = client.create_flow_run_from_deployment(
        deployment.id, parameters=parameters, state=Scheduled(), idempotency_key=key, tags=["lvmae", "node"]
    )
    return run.id


class _Watch:
    """Looks now and then how the runs of the other nodes fare; called much more often than it looks.

    Args:
        client: of the server.
        runs: theirs.
    """

    def __init__(self, client: SyncPrefectClient, runs: Sequence[UUID]) -> None:
        self._client, self._runs = client, runs
        self._began_s = self._looked_s = self._told_s = time.monotonic()
        self._patience_s = float(os.environ.get(WAIT_S) or _PATIENCE_S)

    def __call__(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_S:
            return
        self._looked_s = now_s
        found = [self._client.read_flow_run(run) for run in self._runs]
        for run in found:
            if run.state and run.state.is_final() and not run.state.is_completed():
                raise OSError(
                    f"{run.name} ended as {run.state.name}: {run.state.message or 'see its log'}; run again to continue"
                )
        waiting = [run for run in found if not _has_begun(run)]
        if waiting and now_s - self._began_s > self._patience_s:
            raise OSError(
                f"{len(waiting)} of {len(found)} runs of {DEPLOYMENT} did not begin within {self._patience_s:.0f} s, and were "
                f"cancelled; start as many workers with a free slot on other machines, or lower {NODES}"
            )
        if waiting and now_s - self._told_s > _TELL_S:
            self._told_s = now_s
            _log.warning("waits for a worker with a free slot for %d of %d other nodes", len(waiting), len(found))


def _has_begun(run: FlowRun) -> bool:
    return run.state is not None and (run.state.is_running() or run.state.is_final())


def _cancelled(client: SyncPrefectClient, run: UUID) -> None:
    """Cancel a run that has not ended, as far as the server can be reached."""
    try:
        found = client.read_flow_run(run)
        if found.state is None or not found.state.is_final():
            client.set_flow_run_state(run, Cancelling(message="The training ended."))
    except Exception as error:  # noqa: BLE001 (what ended the training is more important, and its ranks end with it)
        _log.warning("a run of %s may still wait for the others: %s", DEPLOYMENT, error)
