"""Every source ends as clips or in quarantine, once, and the bytes depend on nothing but sources and config."""

import hashlib
from pathlib import Path

import pytest

from stages import quarantine, shard
from stages.errors import ArtifactBusy, ConfigError, SourceMissing, TooManyFailures
from stages.progress import Silent
from stages.storage.artifact import Outcome, damages
from stages.storage.clips import SEEN, Dataset
from stages.storage.index import Index, read_clip, read_motion
from stages.storage.workspace import Workspace
from stages.video_decode import decode
from tests.stages.videos import numbers, write_ramp

CLIP = {"num_frames": 8, "min_frames": 4, "size_px": 32, "encoding": {"name": "h264", "preset": "ultrafast"}}


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
        "num_workers": 1,
        "min_failed": 0,
        "settle_s": 0,
        "abandoned_s": 0,
    }
    return shard.Config.model_validate({**fields, **changes})


def run(settings: shard.Config, root: Path, monitor: Silent | None = None) -> Outcome:
    return shard.run(settings, {}, Workspace(root, monitor=monitor or Silent()))


def tree(root: Path) -> dict[str, str]:
    """The digests of all files but the cache, which tells when and where the sources were seen."""
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.name != SEEN)
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def dataset(settings: shard.Config, root: Path) -> Dataset:
    return Dataset(Workspace(root), shard.dataset_name(settings))


def faults(settings: shard.Config, root: Path) -> dict[str, str]:
    return {case.key: case.reason.value for case in quarantine.cases(dataset(settings, root))}


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
        "gone": 0,
        "relabelled": 0,
    }
    shown: dict[str, list[int]] = {}
    for clip in Index(made.artifact):
        frames = decode(read_clip(made.artifact, clip))
        assert frames.shape == (clip.num_frames, clip.height_px, clip.width_px, 3)
        assert clip.label("class") == f"class{clip.key[0]}"
        assert clip.start_s == pytest.approx(clip.start_frame / 25)
        motion = read_motion(made.artifact, clip)
        assert motion is None or motion.shape == ((clip.num_frames + 1) // 2, 2, 3, 2)
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


def test_a_second_run_reads_no_source_and_touches_no_file(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(config(videos), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr("stages.places.digest", lambda place: pytest.fail(f"{place} is read again"))
    run(config(videos), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("num_workers", [2, 5])
def test_processes_and_threads_make_the_bytes_that_one_worker_makes(videos: Path, tmp_path: Path, num_workers: int) -> None:
    run(config(videos), tmp_path / "one")
    made = run(config(videos, num_workers=num_workers), tmp_path / "many")
    assert made.units_done == 3
    assert tree(tmp_path / "many") == tree(tmp_path / "one")


@pytest.mark.parametrize("amount", [0, 3])
def test_a_killed_run_is_finished_with_the_bytes_of_an_unbroken_one(videos: Path, tmp_path: Path, amount: int) -> None:
    run(config(videos), tmp_path / "unbroken")
    with pytest.raises(Killed):
        run(config(videos), tmp_path / "killed", KillAfter(amount))
    assert not list((tmp_path / "killed").rglob("snapshots"))
    finished = run(config(videos), tmp_path / "killed")
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
    assert (len(Index(first.artifact)), len(Index(second.artifact))) == (7, 8)


def test_the_same_bytes_under_two_names_are_stored_once(copy: Path, tmp_path: Path) -> None:
    (copy / "1" / "again.mp4").write_bytes((copy / "0" / "0.mp4").read_bytes())
    settings = config(copy, max_failed_share=0)
    made = run(settings, tmp_path / "root")
    assert (made.counts["inputs"], made.counts["committed"], made.counts["duplicates"]) == (6, 5, 1)
    assert faults(settings, tmp_path / "root") == {"1/again.mp4": "duplicate"}


def test_a_renamed_source_keeps_its_clips_and_is_counted_once_as_renamed(copy: Path, tmp_path: Path) -> None:
    settings = config(copy, max_failed_share=0)
    run(settings, tmp_path / "root")
    (copy / "labels.csv").unlink()
    (copy / "0" / "0.mp4").rename(copy / "0" / "renamed.mp4")
    made = run(settings, tmp_path / "root")
    assert (made.counts["clips"], made.counts["committed"], made.counts["gone"]) == (7, 5, 1)
    assert faults(settings, tmp_path / "root") == {"0/renamed.mp4": "renamed"}


def test_a_deleted_source_keeps_its_clips_and_is_counted_as_gone(copy: Path, tmp_path: Path) -> None:
    settings = config(copy)
    first = run(settings, tmp_path / "root")
    (copy / "labels.csv").unlink()
    (copy / "0" / "0.mp4").unlink()
    second = run(settings, tmp_path / "root")
    assert (second.artifact, second.counts["clips"], second.counts["gone"]) == (first.artifact, 7, 1)


def test_a_changed_source_is_a_new_one_and_the_old_clips_stay(copy: Path, tmp_path: Path) -> None:
    settings = config(copy)
    first = run(settings, tmp_path / "root")
    write_ramp(copy / "0" / "0.mp4", 16)
    second = run(settings, tmp_path / "root")
    assert (second.counts["inputs"], second.counts["clips"], second.units_done) == (6, 9, 1)
    assert len({clip.source_id for clip in Index(second.artifact) if clip.key == "0/0.mp4"}) == 2
    assert len(Index(first.artifact)) == 7


def test_a_changed_label_is_counted_and_changes_no_clip(copy: Path, tmp_path: Path) -> None:
    first = run(config(copy), tmp_path / "root")
    labels = copy / "labels.csv"
    labels.write_text(labels.read_text().replace("0/0.mp4,class0", "0/0.mp4,other"))
    second = run(config(copy), tmp_path / "root")
    assert (second.artifact, second.counts["relabelled"]) == (first.artifact, 1)


def test_a_source_that_is_mended_leaves_the_quarantine(copy: Path, tmp_path: Path) -> None:
    settings = config(copy, max_failed_share=1)
    whole = (copy / "0" / "4.mp4").read_bytes()
    (copy / "0" / "4.mp4").write_bytes(whole[: len(whole) // 2])
    first = run(settings, tmp_path / "root")
    assert set(faults(settings, tmp_path / "root")) == {"0/4.mp4"}
    (copy / "0" / "4.mp4").write_bytes(whole)
    second = run(settings, tmp_path / "root")
    assert faults(settings, tmp_path / "root") == {}
    assert (first.counts["inputs"], second.counts["inputs"], second.counts["committed"]) == (5, 5, 5)


def test_what_a_person_wants_tried_again_is_tried_once(copy: Path, tmp_path: Path) -> None:
    (copy / "0" / "text.mp4").write_text("no video")
    settings, root = config(copy, max_failed_share=1), tmp_path / "root"
    first = run(settings, root)
    (case,) = quarantine.cases(dataset(settings, root))
    assert case.state == "accepted"
    quarantine.retry(dataset(settings, root), [case])
    assert quarantine.cases(dataset(settings, root))[0].state == "retry"
    second = run(settings, root)
    assert (second.units_done, second.counts["inputs"], second.counts["quarantined"]) == (1, first.counts["inputs"], 1)
    assert quarantine.cases(dataset(settings, root))[0].ordinal == 3
    assert run(settings, root).units_done == 0


def test_copies_cannot_be_tried_again(copy: Path, tmp_path: Path) -> None:
    (copy / "1" / "again.mp4").write_bytes((copy / "0" / "0.mp4").read_bytes())
    settings, root = config(copy), tmp_path / "root"
    run(settings, root)
    with pytest.raises(ConfigError, match="the same bytes as another source"):
        quarantine.retry(dataset(settings, root), quarantine.cases(dataset(settings, root)))


def test_a_waived_source_no_longer_stops_a_run(copy: Path, tmp_path: Path) -> None:
    (copy / "0" / "text.mp4").write_text("no video")
    settings, root = config(copy, max_failed_share=0), tmp_path / "root"
    with pytest.raises(TooManyFailures, match="1 of 6 new sources"):
        run(settings, root)
    quarantine.waive(dataset(settings, root), quarantine.cases(dataset(settings, root)), "it is a note")
    assert run(settings, root).counts["quarantined"] == 1
    (case,) = quarantine.cases(dataset(settings, root))
    assert (case.state, case.note) == ("waived", "it is a note")


def test_broken_sources_are_recorded_and_too_many_stop_the_run_until_they_are_accepted(copy: Path, tmp_path: Path) -> None:
    (copy / "0" / "text.mp4").write_text("no video")
    (copy / "0" / "empty.mp4").touch()
    root = tmp_path / "root"
    for _ in range(2):  # running again does not make it better
        with pytest.raises(TooManyFailures, match="2 of 7 new sources are in quarantine"):
            run(config(copy, max_failed_share=0.2, sources_per_shard=9), root)
    assert not list(root.rglob("snapshots"))
    assert faults(config(copy, sources_per_shard=9), root) == {"0/text.mp4": "unreadable", "0/empty.mp4": "empty"}
    made = run(config(copy, max_failed_share=0.3, sources_per_shard=9), root)
    assert (made.units_done, made.counts["committed"], made.counts["quarantined"]) == (0, 5, 2)
    write_ramp(copy / "0" / "good.mp4", 9)
    assert run(config(copy, max_failed_share=0, sources_per_shard=9), root).counts["committed"] == 6, (
        "accepted faults count no more"
    )


def test_a_run_stops_as_soon_as_too_much_has_failed(copy: Path, tmp_path: Path) -> None:
    for number in range(4):
        (copy / "0" / f"0{number}.mp4").write_text(f"no video {number}")
    settings = config(copy, max_failed_share=0.2, min_failed=1)
    with pytest.raises(TooManyFailures, match=r"[23] of 9 new sources"):
        run(settings, tmp_path)
    assert len(dataset(settings, tmp_path).committed()) < 5
    assert run(config(copy, max_failed_share=0.2, min_failed=4), tmp_path).counts["committed"] == 5


def test_a_labelled_file_that_is_not_there_is_quarantined_once(copy: Path, tmp_path: Path) -> None:
    with (copy / "labels.csv").open("a") as file:
        file.write("gone.mp4,class0\n")
    settings = config(copy, max_failed_share=0.5)
    run(settings, tmp_path / "root")
    assert faults(settings, tmp_path / "root") == {"gone.mp4": "missing"}
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
    assert faults(settings, root) == {"0/0.mp4": "missing"}, "what was planned of 2.mp4 is superseded"
    assert {clip.num_frames for clip in Index(made.artifact) if clip.key == "0/2.mp4"} == {8, 4}
    assert {clip.label("class") for clip in Index(made.artifact) if clip.key == "1/1.mp4"} == {"class1"}
    (copy / "0" / "0.mp4").write_bytes(kept)
    back = run(settings, root)
    assert {clip.key for clip in Index(back.artifact)} == {"0/0.mp4", "0/2.mp4", "0/4.mp4", "1/1.mp4", "1/3.mp4"}
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
    assert shard.dataset_name(config(tmp_path / "set", clip={**CLIP, "size_px": 34})) != name
    assert shard.dataset_name(config(tmp_path / "set", dataset="mine")).startswith("mine-")
