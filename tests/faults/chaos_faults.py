"""The kinds of faults of a campaign. Each happens for real, and says by what it is known that it did."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests import servers
from tests.faults import processes
from tests.faults.chaos import RECIPE, WHOLE, Attempt, Fault, Kind
from tests.faults.processes import strike

_LOADING = ("tokenizer", "precompute", "pretrain")
"""The stages that can have loader workers."""
_SEEN_S = 45.0
_MOST_KILLS = 2
_FULL = (os.strerror(errno.ENOSPC), "NoRoom")
"""What a run says that was refused a write, or that saw before it began that it would be."""
BALLAST = ".ballast"


def kill_flow(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of the flow process."""
    pid = attempt.moment(fault)
    if pid is None or not strike(pid):
        return None
    return _ended(attempt, f"process {pid} was alive and is gone", "CRASHED")


def kill_tree(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of the flow process and all that came from it, as when a machine goes down and the worker does not."""
    pid = attempt.moment(fault)
    if pid is None:
        return None
    below = processes.descendants(pid)
    if not strike(pid):
        return None
    for child in below:
        strike(child)
    return _ended(attempt, f"process {pid} and {len(below)} below it are gone", "CRASHED")


def terminate_flow(attempt: Attempt, fault: Fault) -> str | None:
    """SIGTERM to the flow process from outside, as from a machine that goes down in good order."""
    pid = attempt.moment(fault)
    if pid is None or not strike(pid, signal.SIGTERM):
        return None
    ended = attempt.ended()
    return None if ended == "COMPLETED" else f"process {pid} ended by SIGTERM, run {ended}"


def kill_child(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of the ffmpeg that cuts a source: nothing is resumed, the source is read again.

    One whose decoder was killed twice is spared: at the third time it is meant to go to quarantine.
    """

    def found(pid: int) -> list[int]:
        return [
            child for child in processes.named(pid, "ffmpeg") if attempt.killed[processes.argument(child, "-i")] < _MOST_KILLS
        ]

    return _strike_below(attempt, fault, found)


def kill_loader(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of a worker of the loader."""
    if "loaders" not in attempt.environment:
        attempt.finish(fault.resume)
        attempt.site.reset(attempt.episode.stage)
        attempt.environment["loaders"] = "1"
        attempt.parameters["overrides"] = [f"{attempt.episode.stage}.num_workers=2"]
        attempt.start()
    return _strike_below(attempt, fault, lambda pid: [one for one in processes.descendants(pid) if _is_loader(one)])


def _is_loader(pid: int) -> bool:
    said = processes.described(pid)
    return "forkserver" in said or "multiprocessing" in said or "warm_flows" in said


def stop_flow(attempt: Attempt, fault: Fault) -> str | None:
    """SIGSTOP and, some seconds later, SIGCONT."""
    pid = attempt.moment(fault)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        servers.eventually(lambda: processes.state_of(pid) in ("T", "", "Z"), patience_s=10)
        if processes.state_of(pid) != "T":
            return None
        time.sleep(fault.seconds)
        was = processes.state_of(pid)
        os.kill(pid, signal.SIGCONT)
        return f"process {pid} was in state {was} for {fault.seconds} s" if was == "T" else None
    return None


def cancel(attempt: Attempt, fault: Fault) -> str | None:
    """Cancel, as the button does."""
    pid = attempt.moment(fault)
    if pid is None:
        return None
    servers.cancel(attempt.site.server, attempt.run)
    ended = attempt.ended()
    servers.eventually(lambda: not processes.is_alive(pid), patience_s=60)
    return f"process {pid} is gone, run {ended}" if ended == "CANCELLED" else None


def kill_worker(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of the worker, which leaves the flow process alone; another one is started."""
    pid = attempt.moment(fault)
    worker = attempt.site.workers[attempt.pool]
    if pid is None or not strike(worker.pid):
        return None
    survived = processes.is_alive(pid)
    attempt.site.start_worker(attempt.pool)
    servers.eventually(lambda: not processes.is_alive(pid))
    return _reported(attempt, f"worker {worker.pid} is gone, flow process {'went on' if survived else 'gone'}")


def kill_worker_and_flow(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of both: nobody is left to say so."""
    pid = attempt.moment(fault)
    worker = attempt.site.workers[attempt.pool]
    if pid is None or not strike(worker.pid):
        return None
    is_hit = strike(pid)
    attempt.site.start_worker(attempt.pool)
    return _reported(attempt, f"worker {worker.pid} and flow process {pid} are gone" if is_hit else "worker alone")


def kill_server(attempt: Attempt, fault: Fault) -> str | None:
    """SIGKILL of Prefect's server, and its restart."""
    return _without_server(attempt, fault, seconds=0)


def server_down(attempt: Attempt, fault: Fault) -> str | None:
    """Prefect's server is away for a while."""
    return _without_server(attempt, fault, seconds=6 * fault.seconds)


def mlflow_down(attempt: Attempt, fault: Fault) -> str | None:
    """A run with tracking to an address that refuses connections."""
    attempt.finish(fault.resume)
    attempt.site.reset(attempt.episode.stage)
    port = servers.free_port()
    attempt.parameters["tracking"] = True
    attempt.environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{port}"
    attempt.start()
    pid = attempt.process()
    before = _refuses(port)
    ended = attempt.ended()
    return f"port {port} refused before and after, run {ended}" if pid and before and _refuses(port) else None


def fill_disk(attempt: Attempt, fault: Fault) -> str | None:
    """The disk of the root is full, until a write was refused and somebody made room."""
    pid = attempt.moment(fault)
    if pid is None:
        return None
    ballast = attempt.site.root / BALLAST
    try:
        _fill(ballast)
        deadline = time.monotonic() + _SEEN_S
        while not (seen := _said(attempt, *_FULL)):
            if attempt.has_ended() or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        seen = seen or _said(attempt, *_FULL)
    finally:
        ballast.unlink(missing_ok=True)
    return f"the run says {seen[:120]!r}" if seen else None


def start_twice(attempt: Attempt, fault: Fault) -> str | None:
    """The same thing started by the same deployment again and by the command line, while it is being made."""
    pid = attempt.moment(fault)
    if pid is None:
        return None
    site, stage = attempt.site, attempt.episode.stage
    again = Attempt(site, attempt.episode)
    again.start()
    overlays = [part for name in RECIPE["overlays"] for part in ("--overlay", str(name))]
    said = site.command("run" if stage == WHOLE else stage, "lvmae", *overlays, "--no-tracking")
    at_once = processes.is_alive(pid)
    ended = (attempt.ended(), again.ended())
    if said.returncode and "another run is making it right now" not in said.stdout:
        raise AssertionError(f"the command line ended with {said.returncode}: {said.stdout[-1500:]}")
    refused = "refused" if said.returncode else "done"
    return f"command line {refused}, {'beside' if at_once else 'until after'} the run; runs {ended[0]}, {ended[1]}"


KINDS = {
    "kill flow process": Kind(10, kill_flow),
    "kill flow process and its children": Kind(6, kill_tree),
    "terminate flow process": Kind(4, terminate_flow),
    "kill ffmpeg": Kind(30, kill_child, ("shard",)),
    "kill loader worker": Kind(3, kill_loader, _LOADING),
    "stop and continue flow process": Kind(6, stop_flow),
    "cancel": Kind(5, cancel),
    "kill worker": Kind(3, kill_worker),
    "kill worker and flow process": Kind(1, kill_worker_and_flow),
    "kill server": Kind(1, kill_server),
    "server down": Kind(1, server_down),
    "MLflow down": Kind(1, mlflow_down, alone=True),
    "disk full": Kind(3, fill_disk),
    "started twice": Kind(2, start_twice),
}


def _strike_below(attempt: Attempt, fault: Fault, found: Callable[[int], list[int]]) -> str | None:
    pid = attempt.moment(fault)
    while pid is not None and processes.is_alive(pid):
        for child in found(pid):
            said, source = processes.described(child), processes.argument(child, "-i")
            if strike(child):
                attempt.killed[source] += 1
                return f"process {child} ({said.split(' ')[0].rpartition('/')[2]}) was alive and is gone"
        time.sleep(0.005)
    return None


def _ended(attempt: Attempt, evidence: str, state: str) -> str | None:
    ended = attempt.ended()
    return f"{evidence}, run {ended}" if ended == state else None


def _reported(attempt: Attempt, evidence: str) -> str:
    """A run whose worker died: nobody reports its end, so after a while it counts as crashed, which is done here at once."""
    for _ in range(10):
        if attempt.has_ended():
            return f"{evidence}, run {attempt.ended()}"
        time.sleep(0.5)
    body = {"state": {"type": "CRASHED", "name": "Crashed", "message": "No heartbeat."}, "force": True}
    servers.call(attempt.site.server, "POST", f"/flow_runs/{attempt.run}/set_state", body)
    return f"{evidence}, run left {attempt.state()['state_type']} and marked crashed"


def _without_server(attempt: Attempt, fault: Fault, *, seconds: float) -> str | None:
    pid = attempt.moment(fault)
    if pid is None:
        return None
    server = attempt.site.server
    old = server.process.pid
    server.kill()
    assert _refuses(server.port), "a server that was killed answers"
    time.sleep(seconds)
    server.restart()
    servers.eventually(lambda: not processes.is_alive(pid))
    return _reported(attempt, f"server {old} was gone and refused for {seconds:.0f} s and its start")


def _refuses(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def _said(attempt: Attempt, *texts: str) -> str:
    """The line of the run's log or state that has one of some texts."""
    lines = [str((attempt.state()["state"] or {}).get("message"))]
    filters = {"logs": {"flow_run_id": {"any_": [attempt.run]}}, "limit": 200}
    lines += [str(line["message"]) for line in servers.call(attempt.site.server, "POST", "/logs/filter", filters)]
    return next((line for line in lines if any(text in line for text in texts)), "")


def mounted(place: Path, megabytes: int) -> bool:
    """Whether a small file system of its own could be laid over a folder, for disks that are full."""
    place.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(place):
        return True
    argv = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", str(place)]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0
