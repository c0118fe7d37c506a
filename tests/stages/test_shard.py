"""Every source ends as clips or in quarantine, once, and the bytes depend on nothing but sources and config."""

import hashlib
from pathlib import Path

import pytest

from stages import shard, video
from stages.errors import ArtifactBusy, SourceMissing, TooManyFailures
from stages.progress import Silent
from stages.storage.artifact import Outcome, damages
from stages.storage.clips import Dataset, clips, read_clip
from stages.storage.workspace import Workspace
from tests.stages.videos import numbers, write_ramp

CLIP = {"num_frames": 8, "min_frames": 4, "size_px": 32, "preset": "ultrafast"}


class Killed(BaseException):
    """Stands for a signal: nothing may catch it."""


class KillAfter(Silent):
    """Ends the run after a number of finished sources."""

    def __init__(self, amount: int) -> None:
        self.left = amount

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self.counts = label == "cut clips"

    def advance(self, amount: int = 1) -> None:
        if self.counts:
            self.left -= amount
            if self.left < 0:
                raise Killed


def config(folder: Path, **changes: object) -> shard.Config:
    fields: dict[str, object] = {
        "limits": {"max_frames": 1000},
        "source": {"name": "folder", "path": folder},
        "clip": CLIP,
        "sources_per_shard": 2,
        "num_workers": 2,
    }
    return shard.Config.model_validate({**fields, **changes})


def run(settings: shard.Config, root: Path, monitor: Silent | None = None) -> Outcome:
    return shard.run(settings, {}, Workspace(root, monitor=monitor or Silent()))


def tree(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def quarantine(settings: shard.Config, root: Path) -> dict[str, str]:
    rows = Dataset(Workspace(root), shard.dataset_name(settings)).rows("quarantine")
    return {row["key"]: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of different lengths with labels."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_ramp(folder / f"{number % 2}" / f"{number}.mp4", 5 + 3 * number)
    rows = [f"{number % 2}/{number}.mp4,class{number % 2}" for number in range(5)]
    (folder / "labels.csv").write_text("\n".join(["path,class", *rows]) + "\n")
    return folder


@pytest.fixture
def copy(videos: Path, tmp_path: Path) -> Path:
    """The same videos in a folder that a test may change."""
    folder = tmp_path / "videos"
    for path in videos.rglob("*.*"):
        target = folder / path.relative_to(videos)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return folder


def test_every_recorded_frame_is_found_through_the_index(videos: Path, tmp_path: Path) -> None:
    made = run(config(videos), tmp_path)
    assert dict(made.counts) == {
        "inputs": 5,
        "committed": 5,
        "quarantined": 0,
        "duplicates": 0,
        "pending": 0,
        "clips": 7,
        "dropped_frames": 4,
    }
    shown: dict[str, list[int]] = {}
    for clip in clips(made.artifact):
        frames = video.decode(read_clip(made.artifact, clip))
        assert frames.shape == (clip.num_frames, clip.height_px, clip.width_px, 3)
        assert clip.labels["class"] == f"class{clip.key[0]}"
        assert numbers(frames)[0] == clip.start_frame
        shown.setdefault(clip.key, []).extend(numbers(frames))
    assert {key: len(found) for key, found in shown.items()} == {
        "0/0.mp4": 5, "0/2.mp4": 8, "0/4.mp4": 16, "1/1.mp4": 8, "1/3.mp4": 14
    }  # fmt: skip
    assert all(found == list(range(len(found))) for found in shown.values())
    assert damages(made.artifact) == {}


def test_a_second_run_does_nothing_and_writes_nothing(videos: Path, tmp_path: Path) -> None:
    first = run(config(videos), tmp_path)
    before = tree(tmp_path)
    second = run(config(videos), tmp_path)
    assert (second.units_done, second.units_reused) == (0, 3)
    assert (second.artifact, second.counts) == (first.artifact, first.counts)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("amount", [0, 3])
def test_a_killed_run_is_finished_with_the_bytes_of_an_unbroken_one(videos: Path, tmp_path: Path, amount: int) -> None:
    run(config(videos), tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(config(videos, num_workers=1), tmp_path / "killed", KillAfter(amount))
    assert not list((tmp_path / "killed").rglob("snapshots"))
    finished = run(config(videos, num_workers=3), tmp_path / "killed")
    assert finished.units_reused == amount // 2
    assert tree(tmp_path / "killed") == tree(tmp_path / "unbroken")


def test_new_sources_make_new_shards_and_leave_the_old_ones_alone(copy: Path, tmp_path: Path) -> None:
    first = run(config(copy), tmp_path / "root")
    before = tree(tmp_path / "root")
    write_ramp(copy / "0" / "00.mp4", 9)
    second = run(config(copy), tmp_path / "root")
    after = tree(tmp_path / "root")
    assert {name: after[name] for name in before} == before
    assert (second.units_done, second.units_reused, second.counts["inputs"]) == (1, 3, 6)
    assert second.artifact.fingerprint != first.artifact.fingerprint
    assert len(clips(first.artifact)) == 7
    assert len(clips(second.artifact)) == 8


def test_the_same_bytes_under_two_names_are_stored_once(copy: Path, tmp_path: Path) -> None:
    (copy / "1" / "again.mp4").write_bytes((copy / "0" / "0.mp4").read_bytes())
    settings = config(copy, max_failed_share=0)
    made = run(settings, tmp_path / "root")
    assert (made.counts["inputs"], made.counts["committed"], made.counts["duplicates"]) == (6, 5, 1)
    assert quarantine(settings, tmp_path / "root") == {"1/again.mp4": "duplicate"}
    (copy / "labels.csv").unlink()
    (copy / "0" / "0.mp4").rename(copy / "0" / "renamed.mp4")
    assert run(settings, tmp_path / "root").counts["clips"] == 7


def test_broken_sources_are_recorded_and_too_many_stop_the_run_until_they_are_accepted(copy: Path, tmp_path: Path) -> None:
    (copy / "0" / "text.mp4").write_text("no video")
    (copy / "0" / "empty.mp4").touch()
    root = tmp_path / "root"
    for _ in range(2):  # running again does not make it better
        with pytest.raises(TooManyFailures, match="2 of 7 new sources are in quarantine"):
            run(config(copy, max_failed_share=0.2), root)
    assert not list(root.rglob("snapshots"))
    assert quarantine(config(copy), root) == {"0/text.mp4": "unreadable", "0/empty.mp4": "empty"}
    made = run(config(copy, max_failed_share=0.3), root)
    assert (made.units_done, made.counts["committed"], made.counts["quarantined"]) == (0, 5, 2)
    write_ramp(copy / "0" / "good.mp4", 9)
    assert run(config(copy, max_failed_share=0), root).counts["committed"] == 6, "accepted faults do not count again"


def test_a_labelled_file_that_is_not_there_is_quarantined_once(copy: Path, tmp_path: Path) -> None:
    with (copy / "labels.csv").open("a") as file:
        file.write("gone.mp4,class0\n")
    settings = config(copy, max_failed_share=0.5)
    run(settings, tmp_path / "root")
    assert quarantine(settings, tmp_path / "root") == {"gone.mp4": "missing"}
    assert run(settings, tmp_path / "root").units_done == 0


def test_a_source_that_goes_or_changes_after_it_was_planned_is_never_read_under_its_old_identity(
    copy: Path, tmp_path: Path
) -> None:
    settings, root = config(copy, max_failed_share=1, sources_per_shard=9), tmp_path / "root"
    with pytest.raises(Killed):
        run(settings, root, KillAfter(0))
    kept = (copy / "0" / "0.mp4").read_bytes()
    (copy / "0" / "0.mp4").unlink()
    (copy / "labels.csv").unlink()
    write_ramp(copy / "0" / "2.mp4", 20)
    made = run(settings, root)
    assert quarantine(settings, root) == {"0/0.mp4": "missing", "0/2.mp4": "changed"}
    assert {clip.num_frames for clip in clips(made.artifact) if clip.key == "0/2.mp4"} == {8, 4}
    assert {clip.labels["class"] for clip in clips(made.artifact) if clip.key == "1/1.mp4"} == {"class1"}
    (copy / "0" / "0.mp4").write_bytes(kept)
    back = run(settings, root)
    assert {clip.key for clip in clips(back.artifact)} == {"0/0.mp4", "0/2.mp4", "0/4.mp4", "1/1.mp4", "1/3.mp4"}
    assert back.counts["pending"] == 0
    assert run(settings, root).units_done == 0


def test_nothing_to_read_is_an_error_that_names_the_place(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="nowhere"):
        run(config(tmp_path / "nowhere"), tmp_path / "root")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceMissing, match="empty"):
        run(config(tmp_path / "empty"), tmp_path / "root")
    (tmp_path / "empty" / "a.mp4").write_text("no video")
    with pytest.raises(SourceMissing, match="none of 1 sources makes a clip"):
        run(config(tmp_path / "empty", max_failed_share=1), tmp_path / "root")


def test_two_runs_never_write_the_same_dataset_at_once(videos: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with workspace.lock("shard", shard.dataset_name(config(videos))), pytest.raises(ArtifactBusy):
        shard.run(config(videos), {}, workspace)


def test_the_name_of_a_dataset_tells_clip_formats_apart_and_nothing_else(tmp_path: Path) -> None:
    here = config(tmp_path / "here" / "set")
    name = shard.dataset_name(here)
    assert name.startswith("set-")
    assert shard.dataset_name(config(tmp_path / "there" / "set", num_workers=7, max_failed_share=0.5)) == name
    assert shard.dataset_name(config(tmp_path / "set", clip={**CLIP, "crf": 21})) != name
    assert shard.dataset_name(config(tmp_path / "set", dataset="mine")).startswith("mine-")
