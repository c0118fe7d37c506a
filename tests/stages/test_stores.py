"""Targets and checkpoints come back as they were written, or not at all."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from models.config import Config
from models.grid import Grid
from stages.errors import ArtifactDamaged
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import Checkpoint
from stages.storage.targets import Shape, TargetReader, TargetWriter, object_name
from stages.storage.workspace import Workspace


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
