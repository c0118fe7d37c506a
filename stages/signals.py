"""Ending in good order when the system asks for it."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator


class Ended(Exception):
    """Whoever was asked to end has put its things in order."""


@contextlib.contextmanager
def ended_by_signal() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM is only noted; once ``Ended`` is raised, the signal does what it did before.

    Yields:
        whether the process was asked to end.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be caught
        yield asked.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: asked.set()) or signal.SIG_DFL
    try:
        yield asked.is_set
    except Ended:
        signal.signal(signal.SIGTERM, before)
        os.kill(os.getpid(), signal.SIGTERM)
        raise KeyboardInterrupt from None  # where somebody handles the signal and goes on
    finally:
        signal.signal(signal.SIGTERM, before)
