"""What landed is what no run has ingested, and is complete by the rule of the recipe, whenever and however it came."""

import os
import time
from pathlib import Path

import fsspec
import pytest

from stages import shard
from stages.arrivals import Arrivals, arrivals
from stages.progress import Silent
from stages.storage.clips import Dataset
from stages.storage.workspace import Workspace
from tests.stages.videos import write_ramp

CLIP = {"num_frames": 8, "min_frames": 4, "size_px": 32, "encoding": {"name": "h264", "preset": "ultrafast"}}
HOUR_S = 3600


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


class KillAtCutting(Silent):
    """Ends the run when the first source has been cut."""

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self.cuts = label == "cut clips"

    def advance(self, amount: int = 1) -> None:
        if self.cuts:
            raise Killed


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_ramp(tmp_path_factory.mktemp("video") / "a.mp4", 8).read_bytes()


@pytest.fixture
def incoming(tmp_path: Path, video: bytes) -> Path:
    """A landing area with one complete video."""
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(video)
    return folder


def config(source: Path | str, **changes: object) -> shard.Config:
    fields: dict[str, object] = {"source": {"name": "folder", "path": str(source)}, "clip": CLIP, "num_workers": 1}
    fields["limits"] = {"max_frames": 1000}
    return shard.Config.model_validate({**fields, "settle_s": 0, "sources_per_shard": 1, **changes})


def look(source: Path | str, **changes: object) -> Arrivals:
    root = Path(source).parent / "root" if isinstance(source, Path) else Path("/nowhere")
    return arrivals(config(source, **changes), Workspace(root))


def ingest(source: Path, monitor: Silent | None = None, **changes: object) -> dict[str, int]:
    workspace = Workspace(source.parent / "root", monitor=monitor or Silent())
    return dict(shard.run(config(source, **changes), {}, workspace).counts)


def landed(found: Arrivals) -> list[str]:
    return [one.key for one in found.landed]


def another(video: bytes) -> bytes:
    """The same video with other bytes: a box that nobody reads at its end."""
    return video + b"\0\0\0\x0cfree" + os.urandom(4)


def test_what_was_ingested_has_landed_no_more_and_looking_writes_nothing(incoming: Path, video: bytes) -> None:
    before = look(incoming)
    assert landed(before) == ["a.mp4"]
    assert len(before.digest) == 64
    assert not (incoming.parent / "root").exists()
    ingest(incoming)
    after = look(incoming)
    assert (after.landed, after.waiting, after.digest, after.num_sources) == ((), (), "", 1)
    (incoming / "b.mp4").write_bytes(another(video))
    assert landed(look(incoming)) == ["b.mp4"]


def test_the_digest_says_which_bytes_landed_and_not_when_it_was_looked(incoming: Path, video: bytes) -> None:
    first = look(incoming).digest
    assert look(incoming).digest == first
    (incoming / "b.mp4").write_bytes(video)
    second = look(incoming).digest
    (incoming / "b.mp4").write_bytes(another(video))
    assert len({first, second, look(incoming).digest}) == 3
    (incoming / "b.mp4").unlink()
    assert look(incoming).digest == first


def test_a_late_file_with_old_times_is_new(incoming: Path, video: bytes) -> None:
    ingest(incoming)
    (incoming / "late.mp4").write_bytes(another(video))
    os.utime(incoming / "late.mp4", (1_000_000_000, 1_000_000_000))
    assert landed(look(incoming)) == ["late.mp4"]


def test_a_file_that_is_replaced_lands_again(incoming: Path, video: bytes) -> None:
    ingest(incoming)
    (incoming / "a.mp4").write_bytes(another(video))
    assert landed(look(incoming)) == ["a.mp4"]


def test_a_paused_upload_waits_and_a_run_neither_ingests_nor_quarantines_it(incoming: Path, video: bytes) -> None:
    half = incoming / "half.mp4"
    half.write_bytes(another(video)[: len(video) // 2])
    found = look(incoming)
    assert landed(found) == ["a.mp4"]
    assert [one.key for one in found.waiting] == ["half.mp4"]
    assert "promises a box" in found.waiting[0].why
    counts = ingest(incoming)
    assert (counts["inputs"], counts["committed"], counts["quarantined"], counts["pending"]) == (2, 1, 0, 1)
    with half.open("wb") as file:
        file.write(another(video))
    assert landed(look(incoming)) == ["half.mp4"]
    assert ingest(incoming)["committed"] == 2


def test_an_upload_that_is_given_up_is_read_and_quarantined(incoming: Path, video: bytes) -> None:
    (incoming / "half.mp4").write_bytes(video[: len(video) // 2])
    assert landed(look(incoming, abandoned_s=0)) == ["a.mp4", "half.mp4"]
    counts = ingest(incoming, abandoned_s=0)
    assert (counts["committed"], counts["quarantined"], counts["pending"]) == (1, 1, 0)


def test_a_marker_makes_a_file_complete_and_is_no_source(incoming: Path, video: bytes) -> None:
    for name in ("b", "c"):
        (incoming / f"{name}.mp4").write_bytes(another(video))
    found = look(incoming, upload="marker")
    assert (landed(found), found.digest) == ([], "")
    assert found.waiting[0].why == "has no a.mp4.ok beside it"
    (incoming / "b.mp4.ok").touch()
    (incoming / "c.ok").touch()
    assert landed(look(incoming, upload="marker")) == ["b.mp4", "c.mp4"]
    counts = ingest(incoming, upload="marker")
    assert (counts["inputs"], counts["committed"], counts["pending"]) == (3, 2, 1)


def test_a_marker_of_an_earlier_upload_is_not_believed(incoming: Path) -> None:
    (incoming / "a.mp4.ok").touch()
    later = time.time() + 5
    os.utime(incoming / "a.mp4", (later, later))
    assert "changed after its marker" in look(incoming, upload="marker").waiting[0].why
    os.utime(incoming / "a.mp4.ok", (later, later))
    assert landed(look(incoming, upload="marker")) == ["a.mp4"]


def test_a_file_that_grows_while_it_is_looked_at_waits(incoming: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(_: float) -> None:
        with (incoming / "a.mp4").open("ab") as file:
            file.write(b"more")

    monkeypatch.setattr("stages.arrivals.time.sleep", sleep)
    assert look(incoming, settle_s=HOUR_S).waiting[0].why == "is still being written"


def test_what_a_killed_run_planned_counts_until_its_clips_are_made(incoming: Path, video: bytes) -> None:
    (incoming / "b.mp4").write_bytes(another(video))
    with pytest.raises(Killed):
        ingest(incoming, KillAtCutting())
    found = look(incoming)
    assert found.new == ()
    assert landed(found)
    ingest(incoming)
    assert look(incoming).landed == ()


def test_objects_of_a_store_are_complete_as_they_are(video: bytes) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/landing/a.mp4", video)
    store.pipe("/landing/cut.mp4", video[:100])
    try:
        assert landed(look("memory://landing")) == ["a.mp4", "cut.mp4"]
        assert landed(look("memory://landing", upload="marker")) == []
        store.pipe("/landing/a.mp4.ok", b"ok")
        assert landed(look("memory://landing", upload="marker")) == ["a.mp4"]
    finally:
        store.rm("/landing", recursive=True)


def test_the_rule_of_uploads_is_no_part_of_what_is_made(incoming: Path) -> None:
    names = {shard.dataset_name(config(incoming, **rule)) for rule in ({}, {"upload": "marker"}, {"abandoned_s": 5.0})}
    assert len(names) == 1


def test_losing_the_cache_of_sightings_makes_nothing_twice(incoming: Path) -> None:
    ingest(incoming)
    dataset = Dataset(Workspace(incoming.parent / "root"), shard.dataset_name(config(incoming)))
    (dataset.folder / "seen.parquet").unlink()
    assert landed(look(incoming)) == ["a.mp4"]
    assert ingest(incoming)["committed"] == 1
    assert len(dataset.snapshots()) == 1
