"""Sending outboxes to MLflow: a process beside the run sends while it works, and ``lvmae track sync`` sends what is left.

The run itself never waits for the store. Its sender is a process of its own, not a thread: MLflow's client computes as much
as it waits, and a thread would take that from the training's interpreter. When the run ends, or is killed, its sender notices
that its input is closed, tries once more, and is gone after a fixed time even if the store never answers.

Every step can be repeated: runs are found by their key before they are made, a run's tag says which event it holds, and how far
an outbox was sent is kept after each call.

Importing this module is quick; MLflow is imported when there is something to send.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.tracking.delivery import Delivery, Stores
from pipeline.tracking.outbox import Letters, StoreUnreachable, address

FLUSH_S = 5.0
"""How long measurements may lie before they are sent."""
PAUSE_S = 60.0
"""How long a store that failed is left alone."""
CLOSING_S = 20.0
"""How long the end of a run waits for a server."""
CLOSING_LOCAL_S = 120.0
"""How long it waits for a database file, which is slow only where everything is."""


class Sent(NamedTuple):
    """What became of one outbox."""

    key: str
    events: int
    """That were sent now."""
    refused: int
    """That the store will never take; they are put aside, in the file that ends in ``.refused``."""


class Sender:
    """Sends outboxes to the store that the environment names.

    Args:
        root: the workspace's root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._stores = Stores(root)

    def send_all(self) -> list[Sent]:
        """Send every outbox below the root, oldest first; those that another process is sending are left to it.

        Raises:
            StoreUnreachable: the store cannot be reached; what was sent so far is not sent again.
        """
        return [sent for letters in Letters.below(self._root) if (sent := self.send(letters))]

    def send(self, letters: Letters) -> Sent | None:
        """Send one outbox as far as it is written; and close what its run left open, if that was killed.

        Raises:
            StoreUnreachable: as above.
        """
        with letters.sole_sender() as is_ours:
            if not is_ours:
                return None
            is_over = not letters.is_written_to  # asked before it is read: nothing can come after what is read then
            letters.sync()
            delivery = Delivery(letters, self._stores)
            try:
                delivery.go_on()
                if is_over:
                    delivery.close()
            except StoreUnreachable as error:
                letters.keep(letters.progress().model_copy(update={"problem": str(error)}))
                raise
            if is_over:
                letters.remove()
            return Sent(letters.key, delivery.num_sent, delivery.num_refused)


class SenderProcess:
    """The process that sends while a run works.

    Args:
        root: the workspace's root.
    """

    def __init__(self, root: Path) -> None:
        self._allowed_s = closing_s(root)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(root.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def finish(self) -> None:
        """Let it try once more, and wait until it is gone: a bounded time."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(self._allowed_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def closing_s(root: Path) -> float:
    """How long the end of a run waits for the store."""
    return CLOSING_LOCAL_S if address(root).startswith("sqlite:") else CLOSING_S


def send_until_told(root: Path) -> None:
    """Send what is below a root again and again, until the standard input is closed, and then once more."""
    ending = threading.Event()
    threading.Thread(target=_end_with_input, args=(ending, closing_s(root)), daemon=True).start()
    sender = Sender(root)
    is_last = False
    while not is_last:
        is_last = ending.is_set()
        try:
            sender.send_all()
            pause_s = FLUSH_S
        except StoreUnreachable:
            pause_s = PAUSE_S
        if not is_last:
            ending.wait(pause_s)


def _end_with_input(ending: threading.Event, allowed_s: float) -> None:
    sys.stdin.buffer.read()
    ending.set()
    time.sleep(allowed_s)
    os._exit(1)  # a store that never answers holds the other thread


if __name__ == "__main__":
    # Interrupts reach a whole group of processes; this one ends with the run, which has its last words to be sent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it tries again itself
    send_until_told(Path(sys.argv[1]))
