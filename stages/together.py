"""Ranks of one training as processes of this machine, one per GPU, or a few on its processors.

The process that asks for them trains nothing: it passes on what the first rank reports, and sees to it that all of them end
when one does.
"""

import functools
import os
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from stages.children import begin_worker, fork_server
from stages.errors import PipelineError
from stages.fan_out import num_cores
from stages.progress import Monitor, Silent
from stages.ranks import TIMEOUT, Ranks, backend
from stages.signals import Ended, in_good_order

_PRELOADED = ["stages.pretrain", "torch._dynamo", "pandas"]
"""What every rank imports, the optimizer and the index in passing: once, by the server that they are forked from."""
_LOOK_S = 0.5


def together(function: Callable[[Ranks, Monitor], Any], *, num_ranks: int, monitor: Monitor) -> Any:
    """What the first of so many ranks returns.

    Args:
        function: of a module or a ``functools.partial`` of one; its result is small.
        num_ranks: processes; each has an equal share of the processor's cores, and a GPU of its own where there are any.
        monitor: told what the first rank reports.

    Raises:
        OSError: a rank ended without a word. All others are stopped.
        PipelineError: what the function raised in a rank.
    """
    return in_good_order(functools.partial(_together, function, num_ranks, monitor))


def _together(
    function: Callable[[Ranks, Monitor], Any], num_ranks: int, monitor: Monitor, is_asked_to_end: Callable[[], bool]
) -> Any:
    context = fork_server(_PRELOADED)
    said: SimpleQueue[Any] = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (function, num_ranks, str(Path(folder) / "meeting"), said)
        processes = [context.Process(target=_be_rank, args=(rank, *arguments)) for rank in range(num_ranks)]
        try:
            for process in processes:
                process.start()
            return _attend(processes, said, monitor, is_asked_to_end)
        finally:
            for process in processes:
                if process.pid is not None:
                    process.kill()
                    process.join()


def _attend(
    processes: Sequence[BaseProcess], said: "SimpleQueue[Any]", monitor: Monitor, is_asked_to_end: Callable[[], bool]
) -> Any:
    answers: list[Any] = []
    asked = False
    while not all(process.exitcode == 0 for process in processes):
        lost = [rank for rank, process in enumerate(processes) if process.exitcode]
        wait([process.sentinel for process in processes if process.exitcode is None], timeout=_LOOK_S)
        while not said.empty():
            word, values = said.get()
            if word == "error":
                raise values
            if word == "answer":
                answers.append(values)
            else:
                getattr(monitor, word)(*values[0], **values[1])
        if is_asked_to_end() and not asked:
            asked = True
            for process in processes:
                process.terminate()
        if asked and all(process.exitcode is not None for process in processes):
            raise Ended
        if lost and not asked:
            raise OSError(
                f"rank {lost[0]} of {len(processes)} ended with {_spelled(processes[lost[0]].exitcode)}, and the others were "
                "stopped; run again to continue from the last checkpoint"
            )
    (answer,) = answers or [said.get()[1]]
    return answer


def _spelled(exitcode: int | None) -> str:
    return f"signal {-exitcode}" if exitcode and exitcode < 0 else f"exit code {exitcode}"


class _Voice(Silent):
    """A monitor that speaks to the process that asked for the ranks."""

    def __init__(self, said: "SimpleQueue[Any]") -> None:
        self._said = said

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        """Pass it on."""
        self._said.put(("begin", ((label,), {"total": total, "done": done})))

    def advance(self, amount: int = 1) -> None:
        """Pass it on."""
        self._said.put(("advance", ((amount,), {})))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Pass it on."""
        self._said.put(("log", ((step, dict(values)), {})))

    def show(self, step: int, name: str, png: bytes) -> None:
        """Pass it on."""
        self._said.put(("show", ((step, name, png), {})))


def _be_rank(rank: int, function: Callable[[Ranks, Monitor], Any], size: int, meeting: str, said: "SimpleQueue[Any]") -> None:
    begin_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # it saves before it ends
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # nothing of it leaves the machine
    torch.set_num_threads(max(1, num_cores() // size))
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
    distributed.init_process_group(backend(), init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        answer = function(Ranks(rank, size), _Voice(said) if rank == 0 else Silent())
        if rank == 0:
            said.put(("answer", answer))
    except PipelineError as error:
        said.put(("error", error))
        raise
    finally:
        distributed.destroy_process_group()
