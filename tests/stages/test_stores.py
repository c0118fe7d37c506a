"""Clips, targets and checkpoints come back as they were written, or not at all."""

import dataclasses
import gc
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from models.config import Config
from models.grid import Grid
from stages.errors import ArtifactDamaged
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import Checkpoint
from stages.storage.clips import Clip, Dataset, Member, clips, read_clip
from stages.storage.targets import Shape, TargetReader, TargetWriter, object_name
from stages.storage.workspace import Workspace


def member(name: str, video: bytes) -> Member:
    row = {
        "source_id": "s" + name,
        "key": f"{name}.mp4",
        "start_frame": 0,
        "num_frames": 128,
        "fps": 30.0,
        "width_px": 64,
        "height_px": 64,
        "labels": {"class": "hug", "split": "train"},
    }
    return Member(clip_id=name, video=video, row=row)


def filled(root: Path, shards: int = 2) -> Dataset:
    dataset = Dataset(Workspace(root), "toy-1")
    for ordinal in range(shards):
        members = [member(f"{ordinal}{slot}" * 8, f"video {ordinal} {slot}".encode() * 50) for slot in range(3)]
        dataset.write_shard(ordinal, members, sources=[], quarantine=[])
    return dataset


def test_clips_come_back_with_their_bytes_and_labels(tmp_path: Path) -> None:
    snapshot = filled(tmp_path).snapshot(config=Config(), fingerprint="f" * 16, counts={"clips": 6})
    found = clips(snapshot)
    assert [(clip.ordinal, clip.slot) for clip in found] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [read_clip(snapshot, clip)[:9] for clip in found[:2]] == [b"video 0 0", b"video 0 1"]
    assert found[0].labels == {"class": "hug", "split": "train"}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files to the collector
def test_webdataset_reads_our_shards(tmp_path: Path) -> None:
    dataset = filled(tmp_path, shards=1)
    found = list(webdataset.WebDataset(str(dataset.shard_path(0)), shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in found] == ["00" * 8, "01" * 8, "02" * 8]
    assert found[1]["mp4"].startswith(b"video 0 1")


def test_writing_a_shard_again_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "1"), filled(tmp_path / "2")
    files = [path.relative_to(one.folder) for path in sorted(one.folder.rglob("*")) if path.is_file()]
    assert files
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_snapshot_is_made_once_and_keeps_what_it_named(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    first = dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={})
    assert dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={}).manifest_path == first.manifest_path
    dataset.write_shard(2, [member("ab" * 8, b"later")], sources=[], quarantine=[])
    second = dataset.snapshot(config=Config(), fingerprint="e" * 16, counts={})
    assert (len(clips(first)), len(clips(second))) == (6, 7)
    assert second.manifest_path.name == "000002.json"


def test_a_shard_without_its_index_part_does_not_exist(tmp_path: Path) -> None:
    dataset = filled(tmp_path)
    dataset.part_path("index", 1).unlink()
    assert not dataset.is_committed(1)
    assert len(clips(dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={}))) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_tar_never_becomes_a_clip(tmp_path: Path, damage: str) -> None:
    dataset = filled(tmp_path)
    snapshot = dataset.snapshot(config=Config(), fingerprint="f" * 16, counts={})
    clip, path = clips(snapshot)[1], dataset.shard_path(0)
    data = bytearray(path.read_bytes())
    data[clip.offset_bytes] ^= 1
    shards = {"flip": bytes(data), "cut": bytes(data[: clip.offset_bytes + 5])}
    path.unlink() if damage == "delete" else path.write_bytes(shards[damage])
    with pytest.raises(ArtifactDamaged, match=path.name):
        read_clip(snapshot, clip)


def committed_targets(root: Path) -> tuple[Artifact, dict[str, np.ndarray]]:
    shape = Shape(num_shards=2, rows_per_shard=3, num_views=2, grid=Grid(4, 2, 2))
    workspace = Workspace(root)
    writer = TargetWriter(workspace.artifact_folder("precompute", "f" * 16), shape, {"levels": [8] * 6})
    source = np.random.default_rng(0)
    written = {}
    for ordinal, count in ((0, 3), (1, 2)):
        for view in range(2):
            codes = source.integers(0, 2**18, (count, 4, 2, 2), dtype=np.uint32)
            priority = source.random((count, 4, 2, 2)).astype(np.float16)
            ids = [f"{ordinal}{slot}" for slot in range(count)]
            rows = [view_row(clip_id, view, ordinal * 3 + slot) for slot, clip_id in enumerate(ids)]
            writer.write_unit(ordinal, view, values={"codes": codes, "priority": priority}, views=rows)
            written.update({f"{clip_id}/{view}": codes[slot] for slot, clip_id in enumerate(ids)})
    made = artifact.commit(workspace, stage="precompute", name="f" * 16, config=Config(), inputs={}, counts={"units": 4})
    return made, written


def view_row(clip_id: str, view: int, row: int) -> dict[str, object]:
    return {
        "clip_id": clip_id, "view": view, "row": row, "start_frame": 0, "y_px": 0, "x_px": 1,
        "size_px": 32, "flip": bool(view), "num_real_frames": 8,
    }  # fmt: skip


def test_targets_come_back_for_every_clip_and_view(tmp_path: Path) -> None:
    made, written = committed_targets(tmp_path)
    reader = TargetReader(made)
    assert len(written) == 10
    for spelled, codes in written.items():
        clip_id, view = spelled.split("/")
        assert (reader.read(clip_id, int(view))["codes"] == codes).all()
    assert max(codes.max() for codes in written.values()) >= 2**17, "the test must need more than 17 bits"


@pytest.mark.parametrize("damage", ["flip", "cut", "delete", "swap"])
def test_damaged_targets_are_refused_and_never_read_as_values(tmp_path: Path, damage: str) -> None:
    made, _ = committed_targets(tmp_path)
    path, other = (made.folder / object_name("codes", 0, view) for view in (0, 1))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    replacements = {"flip": bytes(data), "cut": bytes(data[:-7]), "swap": other.read_bytes()}
    path.unlink() if damage == "delete" else path.write_bytes(replacements[damage])
    reader = TargetReader(made)
    with pytest.raises(ArtifactDamaged, match=r"targets\.zarr/codes/c/0/0"):
        reader.read("00", 0)
    assert reader.read("00", 1)["codes"].shape == (4, 2, 2)


def test_targets_of_an_unknown_clip_are_refused(tmp_path: Path) -> None:
    made, _ = committed_targets(tmp_path)
    with pytest.raises(ArtifactDamaged, match="no targets of clip 99"):
        TargetReader(made).read("99", 0)


def test_the_newest_whole_checkpoint_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, Checkpoint(step, {"a": torch.full((3,), float(step))}, {"history": [step]}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    newest = checkpoints.load_newest(tmp_path)
    assert newest is not None
    assert (newest.step, newest.tensors["a"].tolist(), newest.values) == (3, [3.0] * 3, {"history": [3]})
    (tmp_path / "checkpoints/step-00000003/state.safetensors").write_bytes(b"damaged")
    before = checkpoints.load_newest(tmp_path)
    assert before is not None
    assert before.step == 2
    shutil.rmtree(tmp_path / "checkpoints")
    assert checkpoints.load_newest(tmp_path) is None


def test_a_clip_is_a_value(tmp_path: Path) -> None:
    clip = clips(filled(tmp_path).snapshot(config=Config(), fingerprint="f" * 16, counts={}))[0]
    assert dataclasses.replace(clip) == clip
    assert isinstance(clip, Clip)
