"""Checkpoints come back as they were written, or not at all."""

import random
import shutil
from pathlib import Path

import pytest
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


def test_damaged_checkpoints_are_set_aside_and_do_not_push_out_the_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (10, 15):
        checkpoints.save(tmp_path, Checkpoint(step, {"a": torch.full((3,), float(step))}, {}))
    (tmp_path / "checkpoints/step-00000015/state.safetensors").write_bytes(b"damaged")
    assert checkpoints.newest_step(tmp_path) == 10
    assert "step-00000015 damaged, set aside as" in caplog.text
    assert "going on from" in caplog.text
    assert "step-00000010" in caplog.text
    checkpoints.save(tmp_path, Checkpoint(20, {"a": torch.zeros(3)}, {}))
    (tmp_path / "checkpoints/step-00000020/state.json").write_bytes(b"{}")
    assert checkpoints.newest_step(tmp_path) == 10, "it was kept beside the newer one"


def test_a_thousand_flips_and_cuts_of_checkpoints_are_all_noticed(tmp_path: Path) -> None:
    source = random.Random(20_251_126)
    saved = {step: {"a": torch.rand(50), "b": torch.arange(step)} for step in (4, 8)}
    for step, tensors in saved.items():
        checkpoints.save(
            tmp_path / "whole", Checkpoint(step, tensors, {"history": [{"loss": step / 7}], "sample_digest": "ab"})
        )
    names = ("state.safetensors", "state.json")
    whole = {name: (tmp_path / "whole/checkpoints/step-00000008" / name).read_bytes() for name in names}
    folder = tmp_path / "run"
    for number in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "whole", folder)
        name = names[number % 2]
        data, place = bytearray(whole[name]), source.randrange(len(whole[name]))
        if number % 4 < 2:
            data[place] ^= 1 << source.randrange(8)
        else:
            data = data[:place]
        (folder / "checkpoints/step-00000008" / name).write_bytes(data)
        found = checkpoints.load_newest(folder)
        assert found is not None
        same_text = name == "state.json" and data.strip() == whole[name].strip()  # its last newline says nothing
        assert found.step == (8 if same_text else 4), (number, name, place)
        assert torch.equal(found.tensors["a"], saved[found.step]["a"])
