"""``python -m pipeline.servers.tied MODULE ...`` is ``python -m MODULE ...``, asked to end when whoever started it has ended.

``lvmae up`` ends what it started. When it is killed it cannot, and what it started would go on without it: the next one would
find its ports taken. Linux tells a process when its parent ends; elsewhere nothing is done.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1
"""``PR_SET_PDEATHSIG``; it outlasts an exec, see prctl(2)."""


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit("the process that asked for this one is gone")
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])


if __name__ == "__main__":
    main()
