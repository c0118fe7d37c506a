"""Flow processes that start in milliseconds: a process that has imported everything forks one per flow run.

Prefect's worker starts ``CLIENT`` instead of ``python -m prefect.engine``. That hands its environment, folder and output to
the process here, which forks; the child runs Prefect's own engine. The client passes signals on, ends as the child ends, and
the child ends if the client is killed. What is saved are the imports, some five seconds of a processor each time.

Run as ``python -m tests.faults.warm_flows SOCKET MODULE...`` it is the process that forks.
"""

import array
import atexit
import contextlib
import importlib
import json
import os
import runpy
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

CLIENT = """
import array, json, os, signal, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect(sys.argv[1])
asked = json.dumps({"environment": dict(os.environ), "folder": os.getcwd(), "argv": sys.argv[2:]}).encode()
line.sendmsg([len(asked).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [1, 2]))])
line.sendall(asked)
answers = line.makefile("rb")
child = int(answers.readline())
open(sys.argv[1] + "." + os.environ.get("PREFECT__FLOW_RUN_ID", "none"), "w").write(str(child))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(child, number))
code = int(answers.readline() or b"1")
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def main(place: str, modules: list[str]) -> None:
    """Import, then fork whenever somebody connects."""
    for module in modules:
        importlib.import_module(module)
    _no_threads_but_this()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(16)
    while True:
        line, _ = listener.accept()
        _serve(line, listener)


def _no_threads_but_this() -> None:
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    assert not others, f"threads do not survive a fork: {others}"


def _serve(line: socket.socket, listener: socket.socket) -> None:
    """Fork twice: the first child waits for the second, which is the flow process."""
    asked, output = _received(line)
    if os.fork():
        for descriptor in output:
            os.close(descriptor)
        line.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return
    listener.close()
    child = os.fork()
    if child:
        for descriptor in output:
            os.close(descriptor)
        line.sendall(f"{child}\n".encode())
        threading.Thread(target=_follow, args=(line, child), daemon=True).start()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with contextlib.suppress(OSError):
            line.sendall(f"{code}\n".encode())
        os._exit(0)
    line.close()
    _become(asked, output)


def _received(line: socket.socket) -> tuple[dict[str, Any], list[int]]:
    descriptors = array.array("i")
    head, passed, _, _ = line.recvmsg(8, socket.CMSG_LEN(2 * descriptors.itemsize))
    for _, _, data in passed:
        descriptors.frombytes(data)
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += line.recv(size - len(text))
    return json.loads(text), list(descriptors)


def _follow(line: socket.socket, child: int) -> None:
    """End the flow process when whoever asked for it was killed by force."""
    if line.recv(1) == b"":
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _become(asked: dict[str, Any], output: list[int]) -> None:
    """Be the process that was asked for."""
    os.setsid()
    for number, descriptor in enumerate(output, start=1):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    module, *arguments = asked["argv"]
    sys.argv = [module, *arguments]
    sys.modules.pop(module, None)
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter itself does at the end
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def client_file(folder: Path) -> Path:
    """The client as a file, to be started without the site's packages: ``python -S -E FILE SOCKET MODULE ARGUMENT...``."""
    path = folder / "warm_client.py"
    path.write_text(CLIENT)
    return path


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
