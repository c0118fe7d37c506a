"""A child process cannot reach the network, cannot outgrow its limits and cannot outlive its parent."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import pytest

from stages.errors import Reason
from stages.video_command import ffmpeg_binary
from stages.video_process import Finished, execute, isolation
from tests.stages.videos import cut, refusal, script, write_ramp

CALLER = """#!{python}
import socket
try:
    socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
    word = "reached"
except OSError as error:
    word = str(error)
open({report!r}, "w").write(word)
"""


def run(
    folder: Path, command: str, *, timeout_s: float = 30.0, bounds: dict[int, int] | None = None, **more: bytes
) -> Finished:
    return execute(["/bin/sh", "-c", command], folder=folder, timeout_s=timeout_s, bounds=bounds or {}, **more)


def lives(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().split(")")[1].split()[0] != "Z"


def dies(process: int) -> bool:
    deadline = time.monotonic() + 5
    while lives(process) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not lives(process)


@pytest.mark.skipif("no network" not in isolation(), reason="this machine has no network namespaces to give")
def test_a_hostile_decoder_cannot_call_anyone(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 5)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port, report = listener.getsockname()[1], tmp_path / "report"
        caller = script(tmp_path / "caller", CALLER.format(python=sys.executable, port=port, report=str(report)))
        subprocess.run([caller], check=True)
        assert report.read_text() == "reached", "without isolation it does"
        refusal(path, binary=caller)
    assert "reachable" in report.read_text()


@pytest.mark.skipif("no new privileges" not in isolation(), reason="setpriv does not work here")
def test_a_child_cannot_gain_privileges_and_has_few_of_root(tmp_path: Path) -> None:
    status = run(tmp_path, "grep -E 'NoNewPrivs|CapBnd|CapEff' /proc/self/status >&2").log
    facts = dict(line.split(":\t") for line in status.splitlines())
    assert facts["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert int(facts["CapEff"], 16) == int(facts["CapBnd"], 16) == 0b110, "reading and writing files, nothing else"


@pytest.mark.parametrize("is_late", [False, True])
def test_memory_and_processor_time_and_file_size_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    """By prlimit before the child does anything; without it from outside, a moment later."""
    wait = ""
    if is_late:
        found = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name: None if name == "prlimit" else found(name))
        wait = "sleep 0.5; "
    grown = f"{wait}exec {sys.executable} -c 'bytearray(1 << 28)'"
    assert run(tmp_path, grown).exit_code == 0
    assert run(tmp_path, grown, bounds={resource.RLIMIT_AS: 1 << 28}).exit_code == 1
    assert run(tmp_path, "while :; do :; done", bounds={resource.RLIMIT_CPU: 1}).exit_code in {-signal.SIGXCPU, -signal.SIGKILL}
    written = run(tmp_path, f"{wait}exec head -c 1000000 /dev/zero > big", bounds={resource.RLIMIT_FSIZE: 1000})
    assert (written.exit_code, (tmp_path / "big").stat().st_size) == (-signal.SIGXFSZ, 1000)


def test_the_limits_of_a_source_are_those_of_its_decoder(tmp_path: Path) -> None:
    path, report = write_ramp(tmp_path / "a.mp4", 5), tmp_path / "limits"
    asking = script(tmp_path / "asking", f"#!/bin/sh\n/bin/sleep 0.1\ncat /proc/self/limits > {report}\n")
    refusal(path, binary=asking, memory_bytes=1 << 30, timeout_s=7)
    rows = [re.split(r"  +", line) for line in report.read_text().splitlines()]
    limits = {row[0]: row[1] for row in rows}
    assert (limits["Max address space"], limits["Max cpu time"], limits["Max core file size"]) == (str(1 << 30), "7", "0")
    assert refusal(path, memory_bytes=1 << 25).reason in {Reason.LIMIT, Reason.DECODER_CRASH}


def test_a_child_that_takes_too_long_is_killed_with_its_own_children(tmp_path: Path) -> None:
    began = time.monotonic()
    assert run(tmp_path, "/bin/sleep 60 & echo $! > child; wait", timeout_s=0.3).timed_out
    assert time.monotonic() - began < 5
    assert dies(int((tmp_path / "child").read_text()))


def test_a_child_that_ends_leaves_none_of_its_own_children_behind(tmp_path: Path) -> None:
    finished = run(tmp_path, "/bin/sleep 60 2>/dev/null & echo $! > child; exit 3")
    assert (finished.exit_code, finished.timed_out) == (3, False)
    assert dies(int((tmp_path / "child").read_text()))


@pytest.mark.skipif("no new privileges" not in isolation(), reason="setpriv does not work here")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    body = "from pathlib import Path; from stages.video_process import execute; import sys; "
    call = (
        "execute(['/bin/sh', '-c', 'echo $$ > child; exec /bin/sleep 60'], folder=Path(sys.argv[1]), timeout_s=60, bounds={})"
    )
    with subprocess.Popen([sys.executable, "-c", body + call, str(tmp_path)]) as parent:
        deadline = time.monotonic() + 20
        while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        parent.kill()
    assert dies(int((tmp_path / "child").read_text()))


def test_a_long_log_keeps_its_beginning_and_its_end_and_counts_every_marked_line(tmp_path: Path) -> None:
    loop = "i=0; while [ $i -lt 9000 ]; do echo 'a line of thirty two characters..'; i=$((i+1)); done"
    finished = run(tmp_path, f"exec >&2; echo first; {loop}; echo last", mark=b"thirty")
    assert finished.log.startswith("first\n")
    assert finished.log.endswith("last\n")
    assert len(finished.log) == 2 << 16
    assert finished.num_marked == 9000


def test_input_longer_than_a_pipe_arrives_and_may_be_left_unread(tmp_path: Path) -> None:
    data = bytes(3 << 20)
    assert run(tmp_path, "wc -c >&2", data=data).log.strip() == str(len(data))
    assert run(tmp_path, "exit 0", data=data).exit_code == 0


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_cutting_opens_nothing_but_the_source_the_scratch_and_libraries(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    path, trace = write_ramp(tmp_path / "source" / "a.mp4", 20), tmp_path / "trace"
    calls = "trace=open,openat,openat2,creat,connect,socket,execve,unlink,unlinkat,rename,renameat2"
    traced = script(
        tmp_path / "traced", f'#!/bin/sh\nexec strace -f -s 4096 -e {calls} -o {trace} {ffmpeg_binary(None)} "$@"\n'
    )
    made = cut(path, spans=[(0.0, 0.4), (0.2, 0.8)], binary=traced)
    assert len(made.segments) == 2
    lines = trace.read_text().splitlines()
    assert not [line for line in lines if "socket(" in line or "connect(" in line]
    opened = {found[1] for line in lines if (found := re.search(r'\bopen(?:at2?)?\([^"]*"([^"]*)"', line))}
    assert str(path) in opened
    libraries = ("/lib/", "/lib64/", "/usr/lib/", "/etc/ld.so", "/proc/self/", "/sys/devices/system/cpu")
    others = {name for name in opened if not name.startswith(libraries)} - {str(path)}
    assert all("/" not in name for name in others), f"names in the scratch folder alone, not {others}"


def test_an_ffmpeg_whose_trial_was_killed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    library = imageio_ffmpeg._utils
    monkeypatch.delenv("IMAGEIO_FFMPEG_EXE", raising=False)
    library._get_ffmpeg_exe.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(library, "_is_valid_exe", lambda path: False)
        with pytest.raises(OSError, match="does not start"):
            ffmpeg_binary(None)
    assert ffmpeg_binary(None).is_file()
