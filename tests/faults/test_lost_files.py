"""A file that was deleted is made again, and a decoder that somebody killed costs no source."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from stages import units
from stages.errors import ArtifactDamaged, Reason
from stages.storage.artifact import damages
from stages.storage.workspace import Workspace
from stages.video_log import DecoderKilled
from tests.stages.test_artifact import Example, produce
from tests.stages.test_shard import config, faults, run, tree
from tests.stages.videos import refusal, script, write_ramp


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        write_ramp(folder / f"{number}.mp4", 8 + number)
    return folder


@pytest.mark.parametrize("lost", ["model.bin", "recipe.yaml"])
def test_an_artifact_that_lost_a_file_is_made_again_and_is_the_same(tmp_path: Path, lost: str) -> None:
    first = produce(Workspace(tmp_path, records={"recipe.yaml": b"name: x"}), Example()).artifact
    (first.folder / lost).unlink()
    again = produce(Workspace(tmp_path, records={"recipe.yaml": b"name: y"}), Example())
    assert again.units_done == 2
    assert again.artifact.digest == first.digest
    assert damages(again.artifact) == {}
    assert produce(Workspace(tmp_path), Example()).units_done == 0


def test_an_artifact_that_comes_out_differently_is_not_passed_off_as_the_one_that_lost_a_file(tmp_path: Path) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    (made.folder / "model.bin").unlink()
    with pytest.raises(ArtifactDamaged, match="other bytes"):
        produce(Workspace(tmp_path), Example(), data=b"other")


@pytest.mark.parametrize("pattern", ["shards/*.tar", "index/*.parquet", "quarantine/*.parquet"])
def test_a_unit_of_clips_that_lost_a_file_is_made_again_alone(videos: Path, tmp_path: Path, pattern: str) -> None:
    settings, root = config(videos), tmp_path / "root"
    run(settings, root)
    before = tree(root)
    max(root.glob(f"clips/*/{pattern}")).unlink()
    again = run(settings, root)
    assert (again.units_done, again.units_reused) == (1, 1)
    assert tree(root) == before


def test_a_unit_whose_sources_are_gone_as_well_is_not_replaced_by_another(videos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(videos, tmp_path / "videos"))
    settings, root = config(folder), tmp_path / "root"
    run(settings, root)
    max(root.glob("clips/*/shards/*.tar")).unlink()
    (folder / "3.mp4").unlink()
    with pytest.raises(ArtifactDamaged, match="restore the file or the sources"):
        run(settings, root)


@pytest.mark.parametrize(("num_kills", "expected"), [(2, {}), (3, {"0.mp4": "decoder_crash"})])
def test_a_source_whose_decoder_is_killed_is_read_again_and_at_last_quarantined(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_kills: int, expected: dict[str, str]
) -> None:
    cut, kills = units.video.cut, iter(range(num_kills))

    def killed(path: Path, **options: Any) -> Any:
        if path.name.endswith("0.mp4") and next(kills, None) is not None:
            raise DecoderKilled(Reason.DECODER_CRASH, "ffmpeg was killed")
        return cut(path, **options)

    monkeypatch.setattr(units.video, "cut", killed)
    settings = config(videos, min_failed=1)
    made = run(settings, tmp_path / "root")
    assert faults(settings, tmp_path / "root") == expected
    assert made.counts["committed"] == 4 - len(expected)
    assert list((tmp_path / "root" / ".scratch").glob("*/*")) == []


def test_a_kill_is_told_from_a_crash(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 5)
    found = {name: refusal(path, binary=script(tmp_path / name, f"#!/bin/sh\nkill -{name} $$\n")) for name in ("KILL", "SEGV")}
    assert {name: isinstance(error, DecoderKilled) for name, error in found.items()} == {"KILL": True, "SEGV": False}
