"""The inventory shows what lies on disk as it is, and notices every changed byte."""

import shutil
from collections.abc import Callable
from pathlib import Path

from pipeline.inventory import State, entries, verified
from pipeline.recipe import Recipe
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import commit_clips

Made = Callable[[], dict[str, Artifact]]


def listing(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def test_a_root_that_is_not_there_holds_nothing_and_stays_away(workspace: Workspace) -> None:
    assert entries(workspace) == []
    assert list(verified(workspace)) == []
    assert not workspace.root.exists()


def test_every_artifact_is_listed_with_what_it_was_made_from(workspace: Workspace, everything_made: Made) -> None:
    made = everything_made()
    before = listing(workspace.root)
    found = {entry.stage: entry for entry in entries(workspace)}
    assert set(found) == set(made)
    assert all(entry.state is State.COMMITTED and not entry.lost_inputs for entry in found.values())
    assert found["pretrain"].inputs == {name: made[name].fingerprint for name in ("shard", "precompute")}
    assert found["tokenizer"].digest == made["tokenizer"].digest
    assert found["tokenizer"].size_bytes == len(b"made")
    assert listing(workspace.root) == before


def test_an_input_that_is_gone_is_said_to_be_gone(workspace: Workspace, everything_made: Made) -> None:
    shutil.rmtree(everything_made()["precompute"].folder)
    lost = {entry.stage: entry.lost_inputs for entry in entries(workspace)}
    expected = {"shard": (), "tokenizer": (), "pretrain": ("precompute",), "evaluate": ("precompute",), "export": ()}
    assert lost == expected


def test_a_folder_without_manifest_is_in_progress(workspace: Workspace, everything_made: Made) -> None:
    everything_made()["evaluate"].manifest_path.unlink()
    assert {entry.stage: entry.state for entry in entries(workspace)}["evaluate"] is State.IN_PROGRESS


def test_a_file_that_is_cut_short_is_seen_without_reading_it(workspace: Workspace, everything_made: Made) -> None:
    (everything_made()["tokenizer"].folder / "file.bin").write_bytes(b"mad")
    entry = {entry.stage: entry for entry in entries(workspace)}["tokenizer"]
    assert entry.state is State.DAMAGED
    assert "file.bin" in entry.detail


def test_verify_finds_a_changed_byte_in_any_artifact(workspace: Workspace, everything_made: Made) -> None:
    made = everything_made()
    assert all(not faults for _, faults in verified(workspace))
    (made["tokenizer"].folder / "file.bin").write_bytes(b"mode")
    (part,) = made["shard"].folder.glob("index/*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    faults = {entry.stage: faults for entry, faults in verified(workspace) if faults}
    assert faults == {"shard": {"index/part-000000.parquet": "sha256 differs"}, "tokenizer": {"file.bin": "sha256 differs"}}


def test_a_broken_manifest_is_damage_and_hides_no_other_artifact(workspace: Workspace, everything_made: Made) -> None:
    everything_made()["pretrain"].manifest_path.write_text("{}")
    states = {entry.stage: (entry.state, faults) for entry, faults in verified(workspace)}
    assert states["pretrain"][0] is State.DAMAGED
    assert "not a manifest" in states["pretrain"][1]["manifest.json"]
    assert states["evaluate"][0] is State.COMMITTED


def test_a_grown_dataset_is_one_entry_and_its_older_snapshot_still_counts_as_an_input(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    everything_made()
    newest = commit_clips(recipe, workspace, shards=2)
    found = {entry.stage: entry for entry in entries(workspace)}
    assert found["shard"].digest == newest.digest
    assert found["tokenizer"].lost_inputs == ()
