"""What a dataset of clips promises to whoever writes it: units are whole or absent, equal work gives equal bytes."""

import gc
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from models.config import Config
from stages.errors import ArtifactDamaged
from stages.readers import Box
from stages.storage.artifact import damages
from stages.storage.clips import Dataset, Member
from stages.storage.workspace import Workspace

MOTION = io.BytesIO()
np.save(MOTION, np.arange(8, dtype=np.int8).reshape(1, 2, 2, 2), allow_pickle=False)


def member(name: str, video: bytes, motion: bytes | None = None) -> Member:
    row = {
        "source_id": "s" + name,
        "key": f"{name}.mp4",
        "native_id": "",
        "start_s": 0.0,
        "start_frame": 0,
        "num_frames": 128,
        "fps": 30.0,
        "width_px": 64,
        "height_px": 64,
        "labels": {"split": ("train",), "class": ("hug", "wave")},
        "boxes": (Box(0.5, 0.0, 0.25, 0.5, 1.0, "one", ("stand",)),),
    }
    return Member(name, video, motion, row)


def good(key: str, *members: Member) -> tuple[object, dict[str, object], None]:
    row = {"source_id": "s" + key, "key": key, "size_bytes": 1, "status": "committed"}
    return members, {**row, "num_clips": len(members), "num_frames": 128 * len(members)}, None


def bad(key: str, reason: str = "corrupt") -> tuple[object, dict[str, object], dict[str, object]]:
    row = {"source_id": "s" + key, "key": key}
    return (), {**row, "status": "quarantined", "num_clips": 0, "num_frames": 0}, {**row, "reason": reason, "detail": "why"}


def filled(root: Path, units: int = 2) -> Dataset:
    dataset = Dataset(Workspace(root), "toy-1")
    for ordinal in range(units):
        clips = [
            member(f"{ordinal}{slot}" * 8, f"video {ordinal} {slot}".encode() * 50, MOTION.getvalue() if slot else None)
            for slot in range(3)
        ]
        dataset.write_unit(ordinal, [good(f"a{ordinal}", *clips), bad(f"b{ordinal}")])
    return dataset


def test_a_row_says_where_the_bytes_of_its_clip_lie(tmp_path: Path) -> None:
    dataset = filled(tmp_path, units=1)
    data = dataset.shard_path(0).read_bytes()
    rows = dataset.rows("index")
    assert [data[row["offset_bytes"] :][: row["size_bytes"]][:9] for row in rows] == [b"video 0 0", b"video 0 1", b"video 0 2"]
    assert data[rows[1]["motion_offset_bytes"] :][: rows[1]["motion_size_bytes"]] == MOTION.getvalue()
    assert rows[0]["motion_offset_bytes"] is None
    assert rows[0]["labels"] == {"class": ["hug", "wave"], "split": ["train"]}
    assert rows[0]["boxes"][0]["labels"] == ["stand"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_a_member_of_the_tar_tells_what_its_row_tells(tmp_path: Path) -> None:
    dataset = filled(tmp_path, units=1)
    found = list(webdataset.WebDataset(str(dataset.shard_path(0)), shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in found] == ["00" * 8, "01" * 8, "02" * 8]
    described = json.loads(found[1]["json"])
    assert described["labels"] == {"class": ["hug", "wave"], "split": ["train"]}
    assert described["boxes"][0]["track"] == "one"
    assert np.load(io.BytesIO(found[1]["npy"])).shape == (1, 2, 2, 2)
    with tarfile.open(dataset.shard_path(0)) as tar:
        assert {(info.mtime, info.uid, info.gid) for info in tar} == {(0, 0, 0)}


def test_writing_a_unit_again_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "1"), filled(tmp_path / "2")
    files = [path.relative_to(one.folder) for path in sorted(one.folder.rglob("*")) if path.is_file()]
    assert len(files) == 2 * 5
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_snapshot_is_made_once_and_keeps_what_it_named(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    first = dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={})
    assert damages(first) == {}
    assert dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={}).manifest_path == first.manifest_path
    assert dataset.new_units() == []
    dataset.write_unit(2, [good("later", member("ab" * 8, b"later"))])
    assert dataset.new_units() == [2]
    second = dataset.snapshot(config=Config(), fingerprint="e" * 16, counts={})
    assert (len(first.manifest.files), len(second.manifest.files)) == (8, 12)
    assert second.manifest_path.name == "000002.json"


def test_a_unit_without_its_record_does_not_exist(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    dataset.unit_path(1).unlink()
    assert not dataset.is_committed(1)
    assert dataset.committed() == [0]
    assert len(dataset.rows("index")) == 3


def test_a_unit_whose_record_was_changed_is_refused(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    path = dataset.unit_path(1)
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole.replace(b'"clips":3', b'"clips":4'), b"[]", b""):
        path.write_bytes(damaged)
        with pytest.raises(ArtifactDamaged, match=r"000001.json.*; delete it and run"):
            dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={})


def test_a_unit_in_which_nothing_made_a_clip_has_no_tar(tmp_path: Path) -> None:
    dataset = Dataset(Workspace(tmp_path), "toy-1")
    assert dataset.write_unit(0, [bad("a"), bad("b", "empty")]) == {"committed": 0, "quarantined": 2, "clips": 0}
    assert not dataset.shard_path(0).exists()
    assert [row["reason"] for row in dataset.quarantined()] == ["corrupt", "empty"]


def test_a_fault_counts_until_the_same_key_has_a_later_fate(tmp_path: Path) -> None:
    dataset = Dataset(Workspace(tmp_path), "toy-1")
    dataset.write_unit(0, [bad("a"), bad("b"), good("c", member("00" * 8, b"c"))])
    dataset.write_unit(1, [good("a", member("11" * 8, b"a"))])
    assert [row["key"] for row in dataset.quarantined()] == ["b"]
    assert sorted(dataset.fates(())["key"].to_pylist()) == ["a", "b", "c"]


def test_a_damaged_table_is_an_error_that_names_it(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    path = dataset.part_path("sources", 1)
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactDamaged, match="part-000001"):
        dataset.fates(("num_clips",))


def test_decisions_are_kept_in_order_with_the_units_of_their_time(tmp_path: Path) -> None:
    dataset = Dataset(Workspace(tmp_path), "toy-1")
    dataset.add_plan([[{"source_id": "a", "key": "a", "size_bytes": 1, "labels": {}, "detail": ""}]])
    dataset.decide({"action": "waive", "sources": []})
    dataset.decide({"action": "retry", "sources": []})
    assert [(decision["action"], decision["units"]) for decision in dataset.decisions()] == [("waive", 1), ("retry", 1)]
