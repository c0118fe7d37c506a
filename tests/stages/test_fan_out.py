"""Pieces of work over processes: every result once, whatever happens to a worker, and no process left behind."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import pytest

from stages.errors import ConfigError, MediaError, Reason
from stages.fan_out import Piece, over_processes, surviving, tick, watched
from tests.stages.processes import PATIENCE_S, eventually, members

REPOSITORY = Path(__file__).parents[2]
DRIVER = """
import itertools, sys
from stages.fan_out import over_processes
from tests.stages.test_fan_out import forever
for _ in over_processes(forever, itertools.repeat(sys.argv[1]), num_workers=2, ticked=lambda: None):
    raise AssertionError("nothing is ever done")
"""


class Errand(NamedTuple):
    number: int
    folder: Path


def square(number: int) -> int:
    tick()
    tick()
    return number * number


def square_and_pid(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def die_at_first(errand: Errand) -> int:
    """The third errand kills its process, but only the first time."""
    if errand.number == 3:
        with contextlib.suppress(FileExistsError):
            (errand.folder / "died").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    return errand.number


def die_now_and_then(errand: Errand) -> int:
    """Every tenth errand kills its process the first time."""
    if errand.number % 10 == 0:
        with contextlib.suppress(FileExistsError):
            (errand.folder / f"{errand.number}").mkdir()
            os.kill(os.getpid(), signal.SIGKILL)
    return errand.number


def linger_while_others_die(errand: Errand) -> int:
    """The first errand is under way until three others have killed a process, or for as long as it may wait alone."""
    if errand.number:
        return die_now_and_then(errand)
    until = time.monotonic() + 5
    while len(list(errand.folder.iterdir())) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    return errand.number


def die_at(errand: Errand) -> int:
    """The third errand always kills its process; each time is recorded."""
    if errand.number == 3:
        (errand.folder / f"{time.monotonic_ns()}").mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    return errand.number


def refuse(number: int) -> int:
    raise ConfigError(f"number {number}")


def refuse_to_travel(number: int) -> int:
    raise MediaError(Reason.EMPTY, f"number {number}") if number else Untransportable(1, 2)


class Untransportable(Exception):
    """Cannot be made again from its message."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def forever(folder: str) -> None:
    (Path(folder) / str(os.getpid())).mkdir(exist_ok=True)
    time.sleep(600)


def errands(folder: Path, count: int) -> Iterator[Errand]:
    return (Errand(number, folder) for number in range(count))


def ignore() -> None:
    """A tick that nobody counts."""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_every_item_has_one_result_and_every_tick_arrives(num_workers: int) -> None:
    ticks = itertools.count()
    results = list(over_processes(square, range(20), num_workers=num_workers, ticked=lambda: next(ticks) and None))
    assert sorted(results) == [number * number for number in range(20)]
    assert next(ticks) == 40


def test_work_runs_in_as_many_processes_as_there_are_workers() -> None:
    pids = {pid for _, pid in over_processes(square_and_pid, range(40), num_workers=2, ticked=ignore)}
    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_one_worker_is_this_process() -> None:
    assert {pid for _, pid in over_processes(square_and_pid, range(3), num_workers=1, ticked=ignore)} == {os.getpid()}


def test_nobody_hears_ticks_once_the_work_is_over() -> None:
    ticks = itertools.count()
    list(over_processes(square, [1], num_workers=1, ticked=lambda: next(ticks) and None))
    tick()
    assert next(ticks) == 2


def test_a_watcher_inside_another_hides_it_for_as_long_as_it_watches() -> None:
    outer, inner = itertools.count(), itertools.count()
    with watched(lambda: next(outer) and None):
        with watched(lambda: next(inner) and None):
            tick()
        tick()
    assert (next(outer), next(inner)) == (1, 1)


def test_items_are_taken_as_they_are_needed() -> None:
    taken: list[int] = []
    endless = (taken.append(number) or number for number in itertools.count())
    results = over_processes(square, endless, num_workers=2, ticked=ignore)
    first = list(itertools.islice(results, 3))
    results.close()
    assert len(first) == 3
    assert len(taken) <= 3 + 2 * 2


def test_a_killed_worker_is_replaced_and_its_piece_done_again(tmp_path: Path) -> None:
    results = list(over_processes(die_at_first, errands(tmp_path, 8), num_workers=2, ticked=ignore))
    assert (tmp_path / "died").exists()
    assert sorted(results) == list(range(8))


def test_any_number_of_kills_is_survived_as_long_as_they_are_not_at_the_same_piece(tmp_path: Path) -> None:
    results = list(over_processes(die_now_and_then, errands(tmp_path, 30), num_workers=2, ticked=ignore))
    assert len(list(tmp_path.iterdir())) == 3
    assert sorted(results) == list(range(30))


def test_a_piece_that_waited_while_others_killed_workers_may_still_be_killed_from_outside() -> None:
    flights = itertools.count()

    def flight(pieces: Iterator[Piece]) -> Generator[tuple[Piece, int]]:
        number, taken = next(flights), list(itertools.islice(pieces, 2))
        if number < 3:  # twice beside another one, then once alone
            raise BrokenProcessPool
        yield from ((piece, piece.item) for piece in (*taken, *pieces))

    assert sorted(surviving(flight, range(10, 12))) == [10, 11]


def test_a_piece_that_was_taken_for_workers_that_are_dead_already_is_not_lost() -> None:
    flights = itertools.count()

    def flight(pieces: Iterator[Piece]) -> Generator[tuple[Piece, int]]:
        is_first = next(flights) == 0
        for piece in pieces:
            if is_first and piece.number == 2:
                raise BrokenProcessPool  # as handing a piece to a broken set of workers does
            yield piece, piece.item

    assert sorted(surviving(flight, range(10, 15))) == list(range(10, 15))
    assert next(flights) == 2


def test_a_piece_that_is_under_way_whenever_another_kills_its_worker_is_not_blamed(tmp_path: Path) -> None:
    results = list(over_processes(linger_while_others_die, errands(tmp_path, 40), num_workers=2, ticked=ignore))
    assert len(list(tmp_path.iterdir())) == 3
    assert sorted(results) == list(range(40))


def test_a_piece_that_kills_its_worker_every_time_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    results: list[int] = []
    with pytest.raises(OSError, match="want of memory"):
        results.extend(over_processes(die_at, errands(tmp_path, 20), num_workers=2, ticked=ignore))
    assert len(list(tmp_path.iterdir())) == 4
    assert len(results) == len(set(results)), "no result comes twice"
    assert 3 not in results


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_error_of_a_piece_reaches_the_caller_as_it_is(num_workers: int) -> None:
    with pytest.raises(ConfigError, match="number 4"):
        list(over_processes(refuse, [4], num_workers=num_workers, ticked=ignore))


def test_an_error_that_cannot_travel_is_told_in_words_and_is_not_taken_for_a_kill() -> None:
    with pytest.raises(RuntimeError, match="Untransportable: 1 and 2"):
        list(over_processes(refuse_to_travel, [0], num_workers=2, ticked=ignore))


def test_whoever_stops_early_does_not_wait_for_what_is_under_way(tmp_path: Path) -> None:
    results = over_processes(slow_but_first, itertools.count(), num_workers=2, ticked=ignore)
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PATIENCE_S


def slow_but_first(number: int) -> int:
    if number:
        time.sleep(600)
    return number


def test_no_process_is_left_when_the_one_that_started_them_is_killed(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        eventually(lambda: len(list(tmp_path.iterdir())) == 2)
        assert len(members(process.pid)) > 2
        process.kill()
        process.wait(PATIENCE_S)
        eventually(lambda: not members(process.pid))


def test_an_interrupt_ends_it_at_once_and_with_one_traceback(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        eventually(lambda: len(list(tmp_path.iterdir())) == 2)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        eventually(lambda: not members(process.pid))
    assert process.returncode == -signal.SIGINT
    assert said.count("Traceback") == 1
    assert said.rstrip().endswith("KeyboardInterrupt")


@contextlib.contextmanager
def driver(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process, in a session of its own, whose two workers never end and leave their numbers in the folder."""
    argv = [sys.executable, "-c", DRIVER, str(folder)]
    with subprocess.Popen(argv, cwd=REPOSITORY, start_new_session=True, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            for pid in [process.pid, *members(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
