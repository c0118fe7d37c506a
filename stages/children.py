"""Processes that belong to another one: how they are started, and that none of them outlives it."""

import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext


def fork_server(preloaded: Sequence[str]) -> ForkServerContext:
    """Starts processes that SIGTERM does not end, forked by a server that it does not end either.

    Prefect's workers send it to all processes of a flow run at once. The one that asked for the others then decides what
    becomes of them: a training still needs its loaders for the step in hand.

    Args:
        preloaded: modules that the server imports, if it does not run yet.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*preloaded])
    resource_tracker.ensure_running()  # here, for it unblocks the signal when it is started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def begin_worker() -> None:
    """See to it that this process of ``multiprocessing`` ends with the one that asked for it, however that ends.

    A signal upon the end of the parent would not do: the parent of a worker is the server that forked it, which lives for as
    long as its workers do.
    """
    threading.Thread(target=_with_parent, name="follow the parent", daemon=True).start()


def follow(process: int) -> None:
    """See to it that this process ends as soon as another has, however that ended.

    Args:
        process: its number; its child alone can be sure that it is no other's.
    """
    descriptor = os.pidfd_open(process)
    threading.Thread(target=_until_it_ends, args=(descriptor,), name="follow a process", daemon=True).start()


def _until_it_ends(descriptor: int) -> None:
    select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGKILL)


def _with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)
