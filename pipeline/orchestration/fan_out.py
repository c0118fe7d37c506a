"""A stage's independent pieces of work as Prefect tasks: in threads or processes here, or on machines that Dask or Ray reach.

``LVMAE_TASK_RUNNER`` says where: ``threads`` (the default), ``processes``, ``dask``, ``ray``, or an import path. The tasks
belong to the flow run and lie beside the task of their stage. What is done, the stage's files say; Prefect keeps nothing.
"""

import contextlib
import contextvars
import importlib
import itertools
import math
import os
import queue
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.importtools import import_object

from stages.children import begin_worker
from stages.errors import ConfigError, PipelineError
from stages.fan_out import AHEAD, Item, Piece, Result, surviving, watched

RUNNER = "LVMAE_TASK_RUNNER"
DASK_ADDRESS = "LVMAE_DASK_ADDRESS"
RAY_ADDRESS = "LVMAE_RAY_ADDRESS"

_RETRIES = 2
_RETRY_DELAYS_S = [10.0, 60.0]
_MAX_TASKS = 1000
"""Task runs that one stage adds to a flow run. Prefect's server takes some 30 a second and forgets some of many thousands."""

Runners = Callable[[int], TaskRunner[Any]]
"""Makes a task runner for a number of workers."""


def is_transient(_: Task[..., Any], __: TaskRun, state: State[Any]) -> bool:
    """Whether a failed task is worth repeating: the system failed it, and not the recipe, the data or the model."""
    return isinstance(state.data, OSError) and not isinstance(state.data, PipelineError)


def as_task(work: Callable[[], Result], *, name: str, run_name: str | None = None) -> Task[[], Result]:
    """A task that does some work, three times if the system fails it, and whose result is not stored.

    Args:
        work: takes no argument, for Prefect would copy and record what it is given.
        name: of the task.
        run_name: of its run; null leaves it to Prefect.
    """
    decorate = task(
        name=name,
        task_run_name=run_name,
        retries=_RETRIES,
        retry_delay_seconds=_RETRY_DELAYS_S,
        retry_condition_fn=is_transient,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(work)


# where tasks run


def chosen_runners() -> Runners:
    """What the environment names, ready to be made.

    Raises:
        ConfigError: nothing has that name, or its package is not installed.
    """
    name = os.environ.get(RUNNER) or "threads"
    if name in _NAMED:
        return _NAMED[name]()
    if ":" not in name:
        raise ConfigError(
            f"{RUNNER}={name!r}: expected {', '.join(_NAMED)}, or package.module:function, a function that takes the number of "
            "workers and gives a Prefect task runner"
        )
    try:
        made: Runners = import_object(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{RUNNER}={name!r} cannot be imported: {error}") from error
    return made


def _threads() -> Runners:
    return lambda num_workers: ThreadPoolTaskRunner(max_workers=num_workers)


def _processes() -> Runners:
    return lambda num_workers: ProcessPoolTaskRunner(max_workers=num_workers, initializer=begin_worker)


def _dask() -> Runners:
    runner = _extra("dask", "prefect_dask").DaskTaskRunner
    if address := os.environ.get(DASK_ADDRESS):
        return lambda _: runner(address=address)
    return lambda num_workers: runner(
        cluster_kwargs={"n_workers": num_workers, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    )


def _ray() -> Runners:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    runner = _extra("ray", "prefect_ray").RayTaskRunner
    if address := os.environ.get(RAY_ADDRESS):
        return lambda _: runner(address=address)
    return lambda num_workers: runner(init_kwargs={"num_cpus": num_workers, "include_dashboard": False})


_NAMED: dict[str, Callable[[], Runners]] = {"threads": _threads, "processes": _processes, "dask": _dask, "ray": _ray}


def _extra(name: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{RUNNER}={name} needs `pip install 'lvmae[{name}]'`: {error}") from error


# what runs there


class OverTasks:
    """A ``FanOut`` whose pieces are tasks of the current flow run; made in the flow itself, outside of all tasks.

    Args:
        name: of the tasks; a number is added.
        runners: where they run.
    """

    def __init__(self, name: str, runners: Runners) -> None:
        self._name = name
        self._runners = runners
        # What travels with a task is the context of the flow. That of a stage's task cannot: it holds the whole run.
        self._context = contextvars.copy_context()

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        num_workers: int,
        ticked: Callable[[], None],
        total: int | None = None,
    ) -> Generator[Result]:
        """Results as they come. ``ticked`` learns of a piece when all of it is done.

        Raises:
            OSError: processes were killed again and again with the same piece in their hands.
        """

        def flight(pieces: Iterator[Piece]) -> Generator[tuple[Piece, list[tuple[Result, int]]]]:
            with self._runner(num_workers) as submit:
                yield from self._flight(function, pieces, submit=submit, most=AHEAD * num_workers)

        batches = _batches(enumerate(items), math.ceil((total or 1) / _MAX_TASKS))
        for results in surviving(flight, batches):
            for result, num_ticks in results:
                for _ in range(num_ticks):
                    ticked()
                yield result

    @contextlib.contextmanager
    def _runner(self, num_workers: int) -> Iterator[Callable[[Task[..., Any]], PrefectFuture[Any]]]:
        """Submits a task to a runner that lives within the block."""
        context = self._context.copy()
        with contextlib.ExitStack() as stack:
            stack.callback(context.run, (inner := contextlib.ExitStack()).close)
            context.run(inner.enter_context, _one_server())
            runner = context.run(inner.enter_context, self._runners(num_workers))
            yield lambda piece: context.run(runner.submit, piece, {})

    def _flight(
        self,
        function: Callable[[Item], Result],
        pieces: Iterator[Piece],
        *,
        submit: Callable[[Task[..., Any]], PrefectFuture[Any]],
        most: int,
    ) -> Generator[tuple[Piece, list[tuple[Result, int]]]]:
        """What the tasks return, each when it comes; at most so many are submitted and not done."""
        done: queue.SimpleQueue[PrefectFuture[Any]] = queue.SimpleQueue()
        flying: dict[PrefectFuture[Any], Piece] = {}
        while True:
            for piece in itertools.islice(pieces, most - len(flying)):
                future = submit(self._task(function, piece.item))
                flying[future] = piece
                future.add_done_callback(done.put)
            if not flying:
                return
            future = done.get()
            results = future.result()
            yield flying.pop(future), results

    def _task(self, function: Callable[[Item], Result], batch: Sequence[tuple[int, Item]]) -> Task[..., Any]:
        items = [item for _, item in batch]

        def do_batch() -> list[tuple[Result, int]]:
            return [_counted(function, item) for item in items]

        first, last = (getattr(item, "ordinal", place) for place, item in (batch[0], batch[-1]))
        run_name = f"{self._name} {first:06d}" + (f" to {last:06d}" if len(batch) > 1 else "")
        return as_task(do_batch, name=self._name, run_name=run_name)


def _batches(items: Iterator[tuple[int, Item]], size: int) -> Iterator[list[tuple[int, Item]]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _counted(function: Callable[[Item], Result], item: Item) -> tuple[Result, int]:
    """The result, and how often the function called ``tick``."""
    ticks: list[None] = []
    with watched(lambda: ticks.append(None)):
        result = function(item)
    return result, len(ticks)


@contextlib.contextmanager
def _one_server() -> Iterator[None]:
    """Workers speak to the server of this flow run, also when that is a temporary one, and start none of their own."""
    flow_run = FlowRunContext.get()
    if flow_run is None or not isinstance(flow_run.client, SyncPrefectClient):
        raise RuntimeError("tasks need a flow run")
    with temporary_settings({PREFECT_API_URL: str(flow_run.client.api_url)}):
        yield
