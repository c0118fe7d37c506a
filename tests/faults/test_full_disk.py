"""A disk without room: said before a stage begins where it can be foreseen, said plainly where not, and overcome after."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import typer

from pipeline.commands.options import reporting
from stages.errors import NoRoom
from stages.preflight import check_room, is_full, saying_when_full
from stages.storage.workspace import Workspace
from tests.pipeline.scenarios import Scene

TOKENIZER = ("tokenizer",)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], check=False, capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def scene(small_disk: Path, smoke_root: Path) -> Scene:
    """Clips on a small disk."""
    shutil.copytree(smoke_root / "clips", small_disk / "root" / "clips")
    return Scene(small_disk / "root")


def fill(disk: Path, *, but: int) -> Path:
    path = disk / "filler"
    with path.open("wb") as file:
        left = shutil.disk_usage(disk).free - but
        while left > 0:
            left -= file.write(bytes(min(left, 1 << 20)))
    return path


def listing(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_a_stage_that_has_no_room_is_refused_before_it_writes(scene: Scene, small_disk: Path) -> None:
    fill(small_disk, but=5_000_000)
    before = listing(scene.root)
    with pytest.raises(NoRoom, match=r"tokenizer needs up to .* MB, and .* MB are free; it was not begun") as caught:
        scene.run(scene.request(), TOKENIZER)
    assert str(scene.root) in str(caught.value)
    assert "lvmae gc" in str(caught.value)
    assert listing(scene.root) == before
    (small_disk / "filler").unlink()
    assert scene.run(scene.request(), TOKENIZER)["tokenizer"].outcome.units_done == 12


class _Filler:
    """Fills the disk in the middle of a training, as somebody else's files would."""

    def __init__(self, disk: Path, after: int) -> None:
        self.disk, self.left, self.has_filled = disk, after, False

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            fill(self.disk, but=100_000)
            self.has_filled = True

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **settings: None


def test_a_disk_that_becomes_full_is_said_and_the_run_goes_on_once_there_is_room(scene: Scene, small_disk: Path) -> None:
    request, filler = scene.request(), _Filler(small_disk, after=5)
    with pytest.raises(NoRoom, match="the disk became full in tokenizer") as caught:
        scene.run(request, TOKENIZER, filler)
    assert filler.has_filled
    assert "the same command continues from there" in str(caught.value)
    (small_disk / "filler").unlink()
    outcome = scene.run(request, TOKENIZER)["tokenizer"].outcome
    assert (outcome.units_done, outcome.units_reused) == (8, 4), "it went on from the checkpoint before"


def test_a_full_disk_has_the_exit_code_of_a_disk(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as caught, reporting(verbose=False):
        raise NoRoom("/somewhere: tokenizer needs up to 5.0 MB")
    assert caught.value.exit_code == 1
    assert capsys.readouterr().err == "error: /somewhere: tokenizer needs up to 5.0 MB\n"


def test_a_library_without_error_numbers_is_understood(small_disk: Path) -> None:
    fill(small_disk, but=100_000)
    with pytest.raises(Exception, match=r"(?i)no space|os error 28") as caught:
        safetensors.torch.save_file({"a": torch.zeros(1_000_000)}, small_disk / "tensors")
    wrapped = OSError(str(caught.value))
    assert is_full(wrapped)
    assert not is_full(OSError(5, "Input/output error"))
    with pytest.raises(NoRoom), saying_when_full(small_disk, "a stage"):
        raise wrapped
    with pytest.raises(OSError, match="Input/output"), saying_when_full(small_disk, "a stage"):
        raise OSError(5, "Input/output error")


def test_what_is_not_known_is_not_refused(tmp_path: Path) -> None:
    root = Workspace(tmp_path / "not" / "there").root
    check_room(root, None, "shard")
    check_room(root, 1, "shard")
    with pytest.raises(NoRoom):
        check_room(root, 10**18, "shard")
