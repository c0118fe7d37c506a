"""Checkpoints come back as they were written, or not at all."""

import json
import shutil
from pathlib import Path

import torch

from stages.storage import checkpoints
from stages.storage.checkpoints import Checkpoint


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


def test_any_changed_byte_of_a_checkpoints_record_makes_the_one_before_be_taken(tmp_path: Path) -> None:
    for step in (1, 2):
        checkpoints.save(tmp_path, Checkpoint(step, {"a": torch.ones(3)}, {"history": [{"loss": 0.25}], "sample_digest": "ab"}))
    place = tmp_path / "checkpoints/step-00000002/state.json"
    whole = place.read_bytes()
    for number in range(len(whole)):
        for bit in (0, 4):
            place.write_bytes(whole[:number] + bytes([whole[number] ^ 1 << bit]) + whole[number + 1 :])
            assert checkpoints.newest_step(tmp_path) == 1 or json.loads(place.read_bytes()) == json.loads(whole), number
    place.write_bytes(whole)
    assert checkpoints.newest_step(tmp_path) == 2
