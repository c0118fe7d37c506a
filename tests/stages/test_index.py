"""The index tells every clip of a snapshot and gives its bytes, or says that they are damaged."""

import gc
import json
import multiprocessing
import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset

from stages.errors import ArtifactDamaged, ConfigError
from stages.readers import Box
from stages.storage.artifact import Artifact
from stages.storage.index import Clip, Index, read_clip, read_motion
from stages.video_decode import decode
from tests.stages.clip_files import dataset, encoded, member, npy, patches, snapshot, told

MOTION = np.arange(-12, 12, dtype=np.int8).reshape(2, 3, 2, 2)
BOXES = (Box(0.5, 0.25, 0.0, 1.0, 0.75, "p1", ("run", "wave")),)


@pytest.fixture
def made(tmp_path: Path) -> Artifact:
    """Two shards of three clips, their labels and motion all different."""
    shards = []
    for ordinal in range(2):
        labels = [{"class": ("run",), "split": ("train",)}, {"class": ("run", "wave")}, {}]
        motion = [npy(MOTION), None, npy(-MOTION)]
        boxes: list[tuple[Box, ...]] = [(), BOXES, ()]
        shards.append(
            [
                member(f"video {ordinal}{slot}".encode() * 40, key=f"{ordinal}{slot}", motion=motion[slot], labels=labels[slot],
                       boxes=boxes[slot], native_id=f"part {slot}", start_s=1.5 * slot)
                for slot in range(3)
            ]
        )  # fmt: skip
    return snapshot(tmp_path, shards)


def keys(index: Index) -> list[str]:
    return [clip.key for clip in index]


def test_every_clip_comes_back_with_all_that_is_known_of_it(made: Artifact) -> None:
    index = Index(made)
    assert keys(index) == ["00", "01", "02", "10", "11", "12"]
    clip = index[4]
    assert (clip.ordinal, clip.slot, clip.native_id, clip.start_s, clip.num_frames) == (1, 1, "part 1", 1.5, 40)
    assert clip.labels == {"class": ("run", "wave")}
    assert clip.boxes == BOXES
    assert index[-1] == index[5]
    with pytest.raises(IndexError):
        index[6]


def test_selections_follow_labels_and_shards(made: Artifact) -> None:
    index = Index(made)
    assert keys(index.where({"class": "run"})) == ["00", "01", "10", "11"]
    assert keys(index.where({"class": "run", "split": "train"})) == ["00", "10"]
    assert keys(index.without({"class": "wave", "split": "train"})) == ["02", "12"]
    assert keys(index.having(["split", "unheard of"])) == ["00", "10"]
    assert keys(index.where({})) == keys(index.without({})) == keys(index)
    assert keys(index.of_shard(1).without({"class": "wave"})) == ["10", "12"]
    assert {ordinal: keys(part) for ordinal, part in index[1:5].by_shard().items()} == {0: ["01", "02"], 1: ["10", "11"]}
    assert index[:3].ordinals() == [0]
    assert index.where({"class": "jump"}).by_shard() == {}


def test_columns_are_those_of_the_chosen_clips(made: Artifact) -> None:
    chosen = Index(made).where({"class": "wave"})
    assert chosen.column("key").tolist() == ["01", "11"]
    assert chosen.column("ordinal").tolist() == [0, 1]
    assert chosen.label_columns() == ["class"]
    assert Index(made).label_columns() == ["class", "split"]


def test_a_label_is_one_value_none_or_refused(made: Artifact) -> None:
    one, several, none = Index(made)[:3]
    assert (one.label("class"), none.label("class")) == ("run", None)
    with pytest.raises(ConfigError, match=r"clip \w+ \(01\) has 2 values in 'class': run, wave"):
        several.label("class")


def test_bytes_are_those_that_were_written(made: Artifact) -> None:
    for clip in Index(made):
        assert read_clip(made, clip) == f"video {clip.key}".encode() * 40
    motions = [read_motion(made, clip) for clip in Index(made)[:3]]
    assert motions[1] is None
    assert motions[0] is not None
    assert motions[2] is not None
    assert motions[0].dtype == np.int8
    assert (motions[0] == MOTION).all()
    assert (motions[2] == -MOTION).all()


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
@pytest.mark.parametrize("kind", ["video", "motion"])
@pytest.mark.parametrize("already_open", [True, False])
def test_damaged_bytes_never_become_a_clip(made: Artifact, damage: str, kind: str, already_open: bool) -> None:
    clip = Index(made)[2]
    read = read_clip if kind == "video" else read_motion
    if already_open:
        read(made, clip)
    path = made.folder / "shards" / "toy-1-000000.tar"
    offset = clip.offset_bytes if kind == "video" else clip.motion_offset_bytes
    assert offset is not None
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.unlink()
    if damage != "delete":
        path.write_bytes(data if damage == "flip" else data[: offset + 5])
    with pytest.raises(ArtifactDamaged, match=path.name):
        read(made, clip)


def test_a_restored_shard_is_read_again(made: Artifact) -> None:
    clip, path = Index(made)[0], made.folder / "shards" / "toy-1-000000.tar"
    kept = shutil.copy(path, made.folder / "kept.tar")
    path.unlink()
    with pytest.raises(ArtifactDamaged, match="missing"):
        read_clip(made, clip)
    Path(kept).rename(path)
    assert read_clip(made, clip) == b"video 00" * 40


def test_a_changed_index_is_refused(made: Artifact) -> None:
    path = made.folder / "index" / "part-000001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactDamaged, match=r"part-000001\.parquet: sha256 differs"):
        Index(made)


def test_few_shards_stay_open_and_none_is_inherited(tmp_path: Path) -> None:
    made = snapshot(tmp_path, [[member(b"x", key=str(number))] for number in range(66)])
    for clip in Index(made):
        read_clip(made, clip)
    ours = [number for number in os.listdir("/proc/self/fd") if _names(number, str(tmp_path))]
    assert 0 < len(ours) <= 64
    assert not any(os.get_inheritable(int(number)) for number in ours)


def test_a_forked_process_reads_what_its_parent_opened(made: Artifact) -> None:
    clips = list(Index(made))
    read_clip(made, clips[0])
    reader, writer = multiprocessing.Pipe(duplex=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of forking beside torch's threads
        child = os.fork()
    if not child:
        writer.send_bytes(b"".join(read_clip(made, clip)[:8] for clip in clips[:3]))
        os._exit(0)
    assert [read_clip(made, clip)[:8] for clip in clips[:3]] == [b"video 00", b"video 01", b"video 02"]
    assert reader.recv_bytes() == b"video 00video 01video 02"
    assert os.waitpid(child, 0)[1] == 0


def test_a_snapshot_without_clips_has_an_empty_index(tmp_path: Path) -> None:
    index = Index(snapshot(tmp_path, [[]]))
    assert len(index) == 0
    assert index.by_shard() == {}
    assert list(index.where({"class": "a"})) == []


def test_a_million_rows_cost_their_columns_alone(tmp_path: Path, made: Artifact) -> None:
    part = pq.read_table(made.folder / "index" / "part-000000.parquet")
    index = Index(made)
    index._table = pq.read_table(made.folder / "index" / "part-000000.parquet").take(np.arange(1_000_000) % len(part))
    index._rows = np.arange(1_000_000)
    assert index._table.nbytes < 400_000_000
    chosen = index.where({"class": "wave"})
    assert len(chosen) == 333_333
    assert chosen[-1].key == "01"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_the_same_shards(tmp_path: Path) -> None:
    video = encoded(tmp_path, patches(20))
    made = dataset(tmp_path, [[member(video, key="a", motion=npy(MOTION), num_frames=20, labels={"class": ("run",)})]])
    samples = list(webdataset.WebDataset(str(made.shard_path(0)), shardshuffle=False))
    gc.collect()
    assert [sorted(name for name in sample if not name.startswith("__")) for sample in samples] == [["json", "mp4", "npy"]]
    described = json.loads(samples[0]["json"])
    assert (described["clip_id"], described["labels"]) == (samples[0]["__key__"], {"class": ["run"]})
    assert told(decode(samples[0]["mp4"], start_frame=5, num_frames=3)) == [5, 6, 7]
    assert samples[0]["npy"] == npy(MOTION)


def test_a_clip_is_a_value(made: Artifact) -> None:
    assert Index(made)[1] == Index(made)[1] != Index(made)[2]
    assert isinstance(Index(made)[0], Clip)


def _names(descriptor: str, folder: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(folder)
    except FileNotFoundError:
        return False
