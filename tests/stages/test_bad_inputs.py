"""Every kind of bad input has the fate that is written down for it, all in one run, and nothing else is touched."""

import ctypes
import hashlib
import os
import socket
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest

from stages import shard
from stages.errors import Reason
from stages.places import spelled
from stages.storage.artifact import Outcome
from stages.storage.workspace import Workspace
from tests.stages import bad_inputs
from tests.stages.bad_inputs import Case, Clips, Growing

CLIP = {"num_frames": 16, "min_frames": 4, "size_px": 32, "encoding": {"name": "h264", "preset": "ultrafast"}}
LIMITS = {"max_frames": bad_inputs.MAX_FRAMES, "max_duration_s": bad_inputs.MAX_DURATION_S, "timeout_s": 60}
_IN_OPEN = 0x20


class Run(NamedTuple):
    """One run over all cases, and what was seen of it."""

    cases: list[Case]
    outcome: Outcome
    fates: dict[str, Clips | Reason]
    """By key."""
    details: dict[str, str]
    """What the quarantine says, by key."""
    sources: dict[str, dict[str, Any]]
    """The rows of the table of sources, by key."""
    opened: bytes
    """What the kernel told of the canary being opened."""
    called: bool
    """Whether anybody connected to the port that some inputs name."""
    changed: list[str]
    """Sources that were not afterwards what they had been before."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    base = tmp_path_factory.mktemp("bad")
    (base / "outside").mkdir()
    bad_inputs.ffmpeg(bad_inputs.VIDEO)(base / "outside" / "canary.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server, Watch(base / "outside" / "canary.mp4") as watch:
        server.setblocking(False)
        cases = list(bad_inputs.cases(base / "outside", server.getsockname()[1]))
        folder = make_all(cases, base / "sources")
        before = state(folder)
        with Growing(folder / "growing.mp4"):
            outcome = shard.run(config(folder), {}, Workspace(base / "root"))
        changed = [name for name, kept in state(folder).items() if name != "growing.mp4" and kept != before[name]]
        fates, details = read_fates(base / "root")
        sources = {row["key"]: row for row in rows(base / "root", "sources")}
        yield Run(cases, outcome, fates, details, sources, watch.events(), is_called(server), changed)


def config(folder: Path) -> shard.Config:
    fields = {"source": {"name": "folder", "path": folder}, "clip": CLIP, "limits": LIMITS, "sources_per_shard": 24}
    return shard.Config.model_validate({**fields, "max_failed_share": 1, "settle_s": 0.3, "abandoned_s": 0, "num_workers": 2})


def make_all(cases: list[Case], folder: Path) -> Path:
    for case in cases:
        (folder / case.name).parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda case: case.make(folder / case.name), cases))
    (folder / "labels.csv").write_text("path,class\nplaylist.m3u8,list\ngone.mp4,nothing\n")
    return folder


def read_fates(root: Path) -> tuple[dict[str, Clips | Reason], dict[str, str]]:
    """What the tables say became of every key, and the details of the quarantine."""
    clips: dict[str, Clips] = {}
    for row in rows(root, "index"):
        num_frames = clips[row["key"]].num_frames if row["key"] in clips else 0
        clips[row["key"]] = Clips(num_frames + row["num_frames"], row["width_px"], row["height_px"])
    quarantine = rows(root, "quarantine")
    assert Counter(row["key"] for row in quarantine).keys().isdisjoint(clips)
    return {**clips, **{row["key"]: Reason(row["reason"]) for row in quarantine}}, {
        row["key"]: row["detail"] for row in quarantine
    }


def rows(root: Path, table: str) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob(f"clips/*/{table}/*.parquet")) for row in pq.read_table(path).to_pylist()]


def state(folder: Path) -> dict[str, tuple[Any, ...]]:
    """What each entry below a folder is: of a regular file its bytes and times."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            digest = b""
            if stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
                digest = hashlib.sha256(Path(path).read_bytes()).digest()
            found[os.path.relpath(path, folder)] = (
                status.st_mode,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
                digest,
            )
    return found


def is_called(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except BlockingIOError:
        return False
    return True


class Watch:
    """Has the kernel tell when a file is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> "Watch":
        libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self._descriptor, os.fsencode(self._path), _IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        self._path.open("rb").close()
        assert self.events(), "the watch must be able to see an opening"
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def events(self) -> bytes:
        try:
            return os.read(self._descriptor, 4096)
        except BlockingIOError:
            return b""


def test_there_are_many_kinds() -> None:
    kinds = list(bad_inputs.cases(Path("/outside"), 1))
    assert len({case.name for case in kinds}) == len(kinds) >= 100
    assert {case.expected for case in kinds if isinstance(case.expected, Reason)} == set(Reason) - {
        Reason.TIMEOUT,
        Reason.DECODER_CRASH,
        Reason.CHANGED,
        Reason.RENAMED,
    }, "the others take a program that misbehaves, or a second run"


def test_every_input_has_the_fate_that_is_written_down(run: Run) -> None:
    expected = {spelled(case.name): case.expected for case in run.cases if case.expected is not None}
    wrong = {
        key: f"expected {fate}, found {run.fates.get(key)}: {run.details.get(key)}"
        for key, fate in expected.items()
        if run.fates.get(key) != fate
    }
    assert wrong == {}
    assert run.fates.keys() == expected.keys(), "and nothing else is a source"


def test_no_input_is_lost_between_the_two_fates(run: Run) -> None:
    counts = run.outcome.counts
    committed = sum(isinstance(case.expected, Clips) for case in run.cases)
    quarantined = sum(isinstance(case.expected, Reason) for case in run.cases)
    assert (counts["committed"], counts["quarantined"]) == (committed, quarantined)
    assert counts["pending"] == 1, "the file that is still being written waits for a later run"
    assert counts["inputs"] == committed + quarantined + 1


def test_nothing_but_the_sources_is_opened_and_nobody_is_called(run: Run) -> None:
    assert run.opened == b""
    assert not run.called


def test_no_source_is_moved_or_changed(run: Run) -> None:
    assert run.changed == []


def test_no_detail_depends_on_where_the_sources_lie_or_on_chance(run: Run) -> None:
    assert [detail for detail in run.details.values() if "/sources" in detail or " @ 0x" in detail] == []


@pytest.mark.parametrize(
    ("key", "facts"),
    [
        ("hdr.mkv", {"transfer": "smpte2084", "pixel_format": "yuv420p10le"}),
        ("hlg.mkv", {"transfer": "arib-std-b67"}),
        ("10_bit.mkv", {"transfer": "", "pixel_format": "yuv420p10le", "codec": "h264"}),
        ("full_range.mp4", {"pixel_format": "yuvj420p"}),
        ("444.mp4", {"pixel_format": "yuv444p"}),
        ("rotated.mp4", {"width_px": 64, "height_px": 48}),
        ("interlaced.mp4", {"interlaced": True}),
        ("still.mp4", {"interlaced": False, "variable_rate": False, "fps": 25.0, "num_frames_decoded": 20}),
        ("variable_rate.mkv", {"variable_rate": True}),
        ("matroska.mp4", {"container": "matroska,webm", "status": "committed"}),
        ("text.mp4", {"container": None, "status": "quarantined", "num_clips": 0}),
    ],
)
def test_what_was_odd_about_a_source_is_told(run: Run, key: str, facts: dict[str, Any]) -> None:
    assert {name: run.sources[key][name] for name in facts} == facts


def test_a_source_that_is_turned_says_by_how_much(run: Run) -> None:
    assert {abs(run.sources[key]["rotation_deg"]) for key in ("rotated.mp4", "upside_down.mp4")} == {90, 180}
