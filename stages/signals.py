"""Ending in good order when the system asks for it."""

import contextlib
import contextvars
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


class Ended(Exception):
    """Whoever was asked to end has put its things in order."""


def in_good_order(work: Callable[[Callable[[], bool]], Result]) -> Result:
    """What ``work`` returns. Asked to end by SIGTERM, it may put its things in order first and then raise ``Ended``.

    Where nobody handles the signal, it does what it did before once that is raised. A handler that raises, as Prefect's does,
    stays in place, for Prefect looks whether it is; then ``work`` runs in a thread, which what is raised waits for.

    Args:
        work: told how to see whether the process was asked to end.
    """
    if threading.current_thread() is not threading.main_thread():  # where signals do not arrive
        return work(lambda: False)
    if callable(signal.getsignal(signal.SIGTERM)):
        return _beside(work)
    with _noted() as is_asked:
        return work(is_asked)


def _beside(work: Callable[[Callable[[], bool]], Result]) -> Result:
    """Work in a thread; whatever is raised here while it goes on asks it to end, and waits until it has."""
    asked, ended = threading.Event(), threading.Event()  # not ``join``: once interrupted, Python 3.11 takes a thread for ended
    found, errors = list[Result](), list[BaseException]()
    context = contextvars.copy_context()

    def in_thread() -> None:
        try:
            found.append(context.run(work, asked.is_set))
        except BaseException as error:  # noqa: BLE001 (raised again below)
            errors.append(error)
        finally:
            ended.set()

    try:
        threading.Thread(target=in_thread, name="work", daemon=True).start()
        ended.wait()
    except RuntimeError:  # no thread can be started
        raise
    except BaseException:
        asked.set()
        ended.wait()
        raise
    for error in errors:
        raise error
    return found[0]


@contextlib.contextmanager
def _noted() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM is only noted; once ``Ended`` is raised, it does what it did before.

    Yields:
        whether the process was asked to end.
    """
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set()) or signal.SIG_DFL
    try:
        yield asked.is_set
    except Ended:
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt from None  # where the signal is ignored
    finally:
        signal.signal(signal.SIGTERM, before)
