"""Many independent pieces of work at once: over processes here, or over whatever the caller brings, such as Prefect's tasks.

The work is a function of a module and its items are plain values, so that both can travel to another process or machine. What
it makes lies in files; what it returns is small. Every piece may be done twice without harm.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import os
import queue
import signal
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from contextvars import ContextVar
from multiprocessing.queues import SimpleQueue
from typing import Any, NamedTuple, Protocol, TypeVar

from stages.children import begin_worker, fork_server

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 2
"""Pieces that are under way or waiting per worker: enough that none is idle, few enough that any number of items may come."""
_SUSPECT_KILLS = 2
_TRIES_ALONE = 2
_LAZY = ("pandas",)
"""What pyarrow loads when it is first needed, if it is there: once for all workers rather than in each."""
_DRAIN_S = 0.2


class FanOut(Protocol):
    """Runs a function on every item."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        num_workers: int,
        ticked: Callable[[], None],
        total: int | None = None,
    ) -> Generator[Result]:
        """The results as they come, in any order; who stops early closes it, and that ends the work.

        Args:
            function: of a module; may call ``tick``.
            items: plain values, taken as they are needed.
            num_workers: how many at a time.
            ticked: called for every ``tick`` of the function, where the caller learns of them.
            total: how many items there are, where that is known; it decides only how they are grouped.
        """


_watcher: ContextVar[Callable[[], None]] = ContextVar("watcher", default=lambda: None)


def tick() -> None:
    """Tell whoever watches that a small part of a piece of work is done; in the thread that the piece was given to."""
    _watcher.get()()


@contextlib.contextmanager
def watched(ticked: Callable[[], None]) -> Iterator[None]:
    """Call ``ticked`` for every ``tick`` in this thread."""
    token = _watcher.set(ticked)
    try:
        yield
    finally:
        _watcher.reset(token)


@dataclasses.dataclass
class _Slots:
    """What the workers of this machine share: how many small parts may be under way in all of them together."""

    number: int = 0
    free: AbstractContextManager[Any] = dataclasses.field(default_factory=contextlib.nullcontext)


_slots = _Slots()


def slot() -> AbstractContextManager[Any]:
    """Held while a small part of a piece is under way, so that one worker uses the cores that another has no work for."""
    return _slots.free


def num_slots(alone: int) -> int:
    """How many small parts to keep under way at most: as many as there are slots, or ``alone`` where none are shared."""
    return _slots.number or alone


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def over_processes(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_workers: int,
    ticked: Callable[[], None],
    total: int | None = None,
) -> Generator[Result]:
    """Results from processes of this machine, or from this process where one worker is enough.

    A worker that is killed, for want of memory perhaps, is replaced and its piece done again. When the caller stops early, the
    workers are killed: what they had not finished is not there.

    Raises:
        OSError: workers were killed over the same piece, the last times with nothing else under way.
    """
    if num_workers > 1:
        return surviving(functools.partial(_flight, function, num_workers=num_workers, ticked=ticked), items)
    return _one_by_one(function, items, ticked=ticked)


def _one_by_one(function: Callable[[Item], Result], items: Iterable[Item], *, ticked: Callable[[], None]) -> Generator[Result]:
    for item in items:
        with watched(ticked):
            result = function(item)
        yield result


class Piece(NamedTuple):
    """An item, its number, and how often workers were killed while it was in their hands."""

    number: int
    item: Any
    kills: int = 0


Flight = Callable[[Iterator[Piece]], Generator[tuple[Piece, Any]]]
"""Hands pieces to one set of workers and yields each with its result; raises ``BrokenProcessPool`` when a worker was killed."""


def surviving(flight: Flight, items: Iterable[Any]) -> Generator[Any]:
    """Results of items that are handed to one set of workers after the other, for as long as workers are killed.

    Which of the pieces under way cost a worker its life cannot be told, so one that was there twice is done alone.

    Raises:
        OSError: workers were killed over a piece with nothing else under way.
    """
    left: Iterator[Piece] = itertools.starmap(Piece, enumerate(items))
    while True:
        under_way: dict[int, Piece] = {}
        try:
            with contextlib.closing(flight(_noted(left, under_way))) as landed:
                for piece, result in landed:
                    del under_way[piece.number]
                    yield result
            return
        except BrokenProcessPool:
            again = [piece._replace(kills=piece.kills + 1) for piece in under_way.values()]
        for suspect in filter(_is_suspect, again):
            yield _alone(flight, suspect)
        left = itertools.chain(itertools.filterfalse(_is_suspect, again), left)


def _noted(pieces: Iterator[Piece], under_way: dict[int, Piece]) -> Iterator[Piece]:
    """Pieces as they are taken: from then on they are somebody's, even where handing them to a worker fails."""
    for piece in pieces:
        under_way[piece.number] = piece
        yield piece


def _is_suspect(piece: Piece) -> bool:
    return piece.kills >= _SUSPECT_KILLS


def _alone(flight: Flight, piece: Piece) -> Any:
    """The result of a suspect. It is tried more than once: it may never have begun before, and be killed from outside now."""
    for tries_left in reversed(range(_TRIES_ALONE)):
        try:
            ((_, result),) = flight(iter([piece]))
        except BrokenProcessPool as error:
            if not tries_left:
                raise OSError(
                    f"worker processes were killed {piece.kills + _TRIES_ALONE} times, the last {_TRIES_ALONE} with nothing "
                    "else under way, most likely for want of memory: give the run more, or smaller pieces, and run again"
                ) from error
        else:
            return result
    raise AssertionError("the last try returns or raises")


def _flight(
    function: Callable[[Item], Result],
    pieces: Iterator[Piece],
    *,
    num_workers: int,
    ticked: Callable[[], None],
) -> Generator[tuple[Piece, Result]]:
    """Results from one set of workers."""
    context = fork_server([function.__module__, *_LAZY])
    ticks, slots = context.SimpleQueue(), context.BoundedSemaphore(num_workers)
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(ticks, slots, num_workers))
    flying: dict[Future[Result], Piece] = {}
    # Not ``concurrent.futures.wait``: interrupted while it takes the locks of its futures, it would keep some of them for good.
    done: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    try:
        while True:
            for piece in itertools.islice(pieces, AHEAD * num_workers - len(flying)):
                future = pool.submit(_portably, function, piece.item)
                flying[future] = piece
                future.add_done_callback(done.put)
            if not flying:
                return
            landed = _next(done)
            _drain(ticks, ticked)
            if landed is not None:
                result = landed.result()
                yield flying.pop(landed), result
    finally:
        _end(pool, now=bool(flying))
        ticks.close()


def _next(done: "queue.SimpleQueue[Future[Result]]") -> Future[Result] | None:
    try:
        return done.get(timeout=_DRAIN_S)
    except queue.Empty:
        return None


def _drain(ticks: "SimpleQueue[Any]", ticked: Callable[[], None]) -> None:
    while not ticks.empty():
        ticks.get()
        ticked()


def _end(pool: ProcessPoolExecutor, *, now: bool) -> None:
    """End the workers; ``now``: whatever they are doing."""
    for worker in list((pool._processes or {}).values()) if now else []:
        worker.kill()
    pool.shutdown(wait=True, cancel_futures=True)


def _portably(function: Callable[[Item], Result], item: Item) -> Result:
    """The result; an error that could not be put together again where it is going becomes a plain one."""
    try:
        return function(item)
    except Exception as error:
        if _travels(error):
            raise
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def _travels(error: Exception) -> bool:
    """Whether an error can be made anew from what it is made of, as it is where it arrives."""
    try:
        copy.copy(error)
    except TypeError:
        return False
    return True


def _begin(ticks: "SimpleQueue[Any]", slots: AbstractContextManager[Any], number: int) -> None:
    """Prepare a worker."""
    begin_worker()
    _slots.number, _slots.free = number, slots
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _watcher.set(lambda: ticks.put(None))
