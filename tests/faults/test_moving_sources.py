"""Sources that grow, are replaced or vanish under a run: left alone or quarantined, and read once they have settled."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from stages import listing, shard
from stages.storage.clips import Dataset
from stages.storage.index import Index, read_clip
from stages.storage.workspace import Workspace
from tests.faults import shard_work

KEY = "moving.mp4"
OLD, NEW = b"old bytes" * 50, b"new bytes" * 50


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A source that will move, beside one that will not."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "still.mp4").write_bytes(b"still" * 50)
    (folder / KEY).write_bytes(OLD)
    return folder / KEY


def run(place: Path) -> dict[str, Any]:
    return shard_work.run(str(place.parents[1] / "root"), str(place.parent))["counts"]


def grow(place: Path) -> None:
    with place.open("ab") as file:
        file.write(b"more")


def replace_in_disguise(place: Path) -> None:
    """Other bytes of the same length, under the same time of change."""
    status = place.stat()
    place.write_bytes(NEW)
    os.utime(place, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (place.stat().st_size, place.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def swap_in_disguise(place: Path) -> None:
    """The same by a rename, which leaves the file that is being read as it is."""
    status, other = place.stat(), place.with_name(".other")
    other.write_bytes(NEW)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(place)


def standing(place: Path) -> dict[str, str]:
    """What is in quarantine, by key."""
    return {row["key"]: row["reason"] for row in dataset(place).quarantined()}


def dataset(place: Path) -> Dataset:
    workspace = Workspace(place.parents[1] / "root")
    return Dataset(workspace, next(workspace.stage_folder("shard").iterdir()).name)


def clips_of(place: Path, folder: Path) -> tuple[set[bytes], set[bytes]]:
    """The clips that a source has, and those that its bytes give."""
    snapshot = dataset(place).newest_snapshot()
    assert snapshot
    scratch = folder / "cut"
    scratch.mkdir()
    wanted = {segment.video.read_bytes() for segment in shard_work.cut(place, spans=None, scratch=scratch).segments}
    return {read_clip(snapshot, clip) for clip in Index(snapshot) if clip.key == KEY}, wanted


@pytest.mark.parametrize("move", [grow, replace_in_disguise, swap_in_disguise, os.unlink])
def test_a_source_that_moves_while_it_is_read_gives_no_clip_until_it_has_settled(
    place: Path, tmp_path: Path, move: Callable[[Path], None]
) -> None:
    fired, real = [], shard_work.cut

    def cut(path: Path, **rest: Any) -> Any:
        made = real(path, **rest)
        if path.name == KEY:
            fired.append(path)
            move(place)
        return made

    with mock.patch.object(shard_work, "cut", cut):
        counts = run(place)
    assert fired
    assert (counts["inputs"], counts["committed"], counts["quarantined"], counts["pending"]) == (2, 1, 1, 0)
    assert standing(place) == {KEY: "changed"}
    if not place.exists():
        place.write_bytes(OLD)
    assert run(place)["committed"] == 2
    assert standing(place) == {}
    found, wanted = clips_of(place, tmp_path)
    assert found == wanted


@pytest.mark.parametrize("move", [grow, replace_in_disguise, swap_in_disguise, os.unlink])
def test_a_source_that_moves_between_planning_and_reading_gives_no_clip_until_it_has_settled(
    place: Path, tmp_path: Path, move: Callable[[Path], None]
) -> None:
    fired, real = [], shard._make

    def make(*given: Any, **rest: Any) -> None:
        fired.append(move(place))
        real(*given, **rest)

    with mock.patch.object(shard, "_make", make):
        counts = run(place)
    assert fired
    assert (counts["inputs"], counts["committed"], counts["quarantined"], counts["pending"]) == (2, 1, 1, 0)
    assert set(standing(place).values()) <= {"changed", "missing"}
    if not place.exists():
        place.write_bytes(OLD)
    assert run(place)["committed"] == 2
    assert standing(place) == {}
    found, wanted = clips_of(place, tmp_path)
    assert found == wanted


@pytest.mark.parametrize("move", [grow, replace_in_disguise, swap_in_disguise])
def test_a_source_that_moves_while_it_is_identified_waits_for_the_next_run(
    place: Path, tmp_path: Path, move: Callable[[Path], None]
) -> None:
    fired, real = [], listing.places.digest

    def digest(where: Any) -> Any:
        found = real(where)
        if where.url == str(place):
            fired.append(move(place))
        return found

    with mock.patch.object(listing.places, "digest", digest):
        counts = run(place)
    assert fired
    assert (counts["inputs"], counts["committed"], counts["quarantined"], counts["pending"]) == (2, 1, 0, 1)
    assert run(place)["committed"] == 2
    found, wanted = clips_of(place, tmp_path)
    assert found == wanted
