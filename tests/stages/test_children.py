"""Processes of our own: what ends them and what does not, and work that is asked to end."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stages.children import fork_server
from stages.signals import Ended, in_good_order

FOLLOWER = (
    "import os, time; from stages.children import follow; follow(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
)
LEADER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FOLLOWER!r}])"


class Termination(BaseException):
    """What a handler raises."""


def terminate(number: int, frame: object) -> None:
    raise Termination


@pytest.fixture
def handled() -> Iterator[None]:
    """SIGTERM raises an error, as in a flow run of Prefect."""
    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def test_sigterm_ends_no_process_of_ours_and_stays_as_it_was_in_this_one() -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    process = fork_server([]).Process(target=time.sleep, args=(60,))
    process.start()
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (blocked,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigBlk"))
        assert blocked & 1 << signal.SIGTERM - 1
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask
    finally:
        process.kill()
        process.join()


def test_a_process_that_follows_another_ends_with_it() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADER], stdout=subprocess.PIPE, text=True) as leader:
        assert leader.stdout is not None
        follower = int(leader.stdout.readline())
        leader.kill()
        assert leader.stdout.read() == "", "the follower has closed it"
    assert not Path(f"/proc/{follower}/cmdline").exists() or not Path(f"/proc/{follower}/cmdline").read_bytes()


def test_a_handler_that_raises_stays_and_what_it_raises_waits_for_the_work(handled: None) -> None:
    seen: list[object] = []

    def work(is_asked: Callable[[], bool]) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        os.kill(os.getpid(), signal.SIGTERM)
        while not is_asked():
            time.sleep(0.01)
        seen.append("saved")
        raise Ended

    with pytest.raises(Termination):
        in_good_order(work)
    assert seen == [terminate, "saved"]


def test_work_beside_a_handler_gives_its_result_and_its_error(handled: None) -> None:
    assert in_good_order(lambda is_asked: (is_asked(), threading.current_thread() is threading.main_thread())) == (False, False)
    with pytest.raises(ZeroDivisionError):
        in_good_order(lambda is_asked: 1 / 0)


def test_without_a_handler_the_signal_is_noted_until_the_work_has_ended() -> None:
    asked: list[bool] = []
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # or it would end the tests

    def work(is_asked: Callable[[], bool]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        asked.append(is_asked())
        raise Ended

    try:
        with pytest.raises(KeyboardInterrupt):
            in_good_order(work)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert asked == [True]
