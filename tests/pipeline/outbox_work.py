"""What the tests of the outbox do in processes of their own, to be killed over it: `python outbox_work.py WHAT ROOT [N]`."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from pipeline.tracking.delivery import Delivery
from pipeline.tracking.outbox import Outbox


def write_for_ever(root: Path) -> None:
    """Write an open run and then measurements without end."""
    outbox = Outbox(root)
    own = open_run(outbox)
    sys.stdout.write("writing\n")
    sys.stdout.flush()
    step = 0
    while True:
        step += 1
        outbox.add(own, "measurements", {"step": step, "values": {"loss": 1.0 / step}})


def send_and_be_killed(root: Path, number: int) -> None:
    """Send all, and be killed after the store took the batch with this number, before that is noted."""
    from pipeline.tracking.sending import Sender

    applied = Delivery._apply
    count = 0

    def counting(self: Delivery, events: list[Any]) -> None:
        nonlocal count
        applied(self, events)
        count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Delivery._apply = counting  # type: ignore[method-assign]
    Sender(root).send_all()


def open_run(outbox: Outbox, name: str = "parent", parent: str | None = None, **tags: str) -> str:
    """Open a run, and give its own id."""
    own = f"{outbox.key}/{name}"
    outbox.add(own, "open", {"experiment": "test", "name": name, "parent": parent, "tags": tags})
    return own


if __name__ == "__main__":
    what, place, *rest = sys.argv[1:]
    if what == "write":
        write_for_ever(Path(place))
    else:
        send_and_be_killed(Path(place), int(rest[0]))
