"""An artifact exists when its manifest does, and knows when a byte of it has changed."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from models.config import Config
from stages.errors import ArtifactBusy, ArtifactDamaged, ArtifactMissing, ConfigError
from stages.storage import artifact
from stages.storage.artifact import Artifact, Work
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace


class Nested(Config):
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"path"})
    path: str = "somewhere"
    size: int = 1


class Example(Config):
    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers"})
    width: int = 3
    num_workers: int = 1
    nested: Nested = Nested()


def produce(
    workspace: Workspace, config: Example, *, inputs: Mapping[str, Artifact] | None = None, data: bytes = b"model"
) -> artifact.Outcome:
    def make(folder: Path) -> Work:
        publish_bytes(folder / "model.bin", data)
        publish_bytes(folder / "checkpoints" / "step-1" / "state.json", b"{}")
        return Work(units_done=2, units_reused=1, counts={"parameters": 7})

    return artifact.produce("tokenizer", version=1, config=config, inputs=inputs or {}, workspace=workspace, make=make)


def test_a_second_run_reuses_the_artifact_and_writes_nothing(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, records={"recipe.yaml": b"name: x"})
    first = produce(workspace, Example())
    listing = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = produce(workspace, Example(), data=b"never written")
    assert (again.units_done, again.units_reused) == (0, 3)
    assert again.artifact.digest == first.artifact.digest
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == listing


def test_checkpoints_are_gone_once_the_artifact_is_published(tmp_path: Path) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    assert sorted(path.name for path in made.folder.iterdir()) == ["manifest.json", "model.bin"]
    assert sorted(made.manifest.files) == ["model.bin"]


def test_checkpoints_that_a_kill_left_beside_a_published_artifact_are_removed_by_the_next_run(tmp_path: Path) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    publish_bytes(made.folder / "checkpoints" / "step-1" / "state.json", b"{}")
    again = produce(Workspace(tmp_path), Example())
    assert again.units_done == 0
    assert sorted(path.name for path in made.folder.iterdir()) == ["manifest.json", "model.bin"]


def test_fields_that_change_no_byte_change_no_fingerprint_at_any_depth() -> None:
    base = artifact.fingerprint("tokenizer", 1, Example(), {})
    assert artifact.fingerprint("tokenizer", 1, Example(num_workers=9, nested=Nested(path="elsewhere")), {}) == base
    assert artifact.fingerprint("tokenizer", 1, Example(width=4), {}) != base
    assert artifact.fingerprint("tokenizer", 1, Example(nested=Nested(size=2)), {}) != base
    assert artifact.fingerprint("tokenizer", 2, Example(), {}) != base
    assert artifact.fingerprint("pretrain", 1, Example(), {}) != base


def test_what_came_out_of_the_input_decides_the_fingerprint(tmp_path: Path) -> None:
    one = produce(Workspace(tmp_path / "1"), Example(), data=b"one").artifact
    same = produce(Workspace(tmp_path / "2"), Example(), data=b"one").artifact
    other = produce(Workspace(tmp_path / "3"), Example(), data=b"other").artifact
    prints = [artifact.fingerprint("precompute", 1, Example(), {"tokenizer": made}) for made in (one, same, other)]
    assert prints[0] == prints[1] != prints[2]


def test_records_are_verified_and_do_not_touch_the_digest(tmp_path: Path) -> None:
    plain = produce(Workspace(tmp_path / "1"), Example()).artifact
    recorded = produce(Workspace(tmp_path / "2", records={"recipe.yaml": b"name: x"}), Example()).artifact
    assert recorded.digest == plain.digest
    (recorded.folder / "recipe.yaml").write_bytes(b"name: y")
    assert artifact.damages(recorded) == {"recipe.yaml": "sha256 differs"}


@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_file_is_found_and_refused(tmp_path: Path, damage: str) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    path = made.folder / "model.bin"
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(b"modeL" if damage == "flip" else b"mode")
    assert list(artifact.damages(made)) == ["model.bin"]
    with pytest.raises(ArtifactDamaged, match=r"model\.bin"):
        made.verified("model.bin")


def test_a_damaged_manifest_is_refused(tmp_path: Path) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    made.manifest_path.write_bytes(
        made.manifest_path.read_bytes().replace(made.manifest.files["model.bin"].sha256.encode(), b"0" * 64)
    )
    with pytest.raises(ArtifactDamaged, match="digest"):
        artifact.find(Workspace(tmp_path), "tokenizer", made.fingerprint)


def test_an_unnamed_file_is_not_served(tmp_path: Path) -> None:
    made = produce(Workspace(tmp_path), Example()).artifact
    (made.folder / "stray").write_bytes(b"x")
    with pytest.raises(ArtifactMissing, match="stray"):
        made.path("stray")


def test_two_live_runs_of_one_artifact_are_told_apart(tmp_path: Path) -> None:
    workspace, entered, leave = Workspace(tmp_path), threading.Event(), threading.Event()
    name = artifact.fingerprint("tokenizer", 1, Example(), {})

    def hold() -> None:
        with workspace.lock("tokenizer", name):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert entered.wait(10)
    with pytest.raises(ArtifactBusy, match=name):
        produce(workspace, Example())
    leave.set()
    thread.join()
    assert produce(workspace, Example()).units_done == 2


def test_an_object_store_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="s3"):
        Workspace.at("s3://bucket/root")
    assert Workspace.at("file:///somewhere").root == Path("/somewhere")
