"""Status says of every artifact whether it is out of date and why, what holds it, and what lies around it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.inventory import entries
from pipeline.plan import STAGES
from pipeline.recipe import Recipe
from pipeline.tracking.outbox import Outbox
from stages.storage.artifact import Artifact
from stages.storage.locks import Readers
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import commit_clips, commit_stage
from tests.pipeline.test_command import DEMO, invoke

Made = Callable[[], dict[str, Artifact]]


def stale(workspace: Workspace) -> dict[str, tuple[str, ...]]:
    return {entry.stage: entry.stale for entry in entries(workspace) if entry.stale}


def shown(*arguments: str, workspace: Workspace) -> str:
    result = invoke("status", *arguments, "--root", str(workspace.root))
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_what_is_up_to_date_has_no_reason(workspace: Workspace, everything_made: Made) -> None:
    everything_made()
    assert stale(workspace) == {}
    assert "out of date" not in shown(workspace=workspace)


def test_what_was_made_of_an_older_snapshot_says_how_much_older(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    everything_made()
    commit_clips(recipe, workspace, shards=2)
    commit_clips(recipe, workspace, shards=3)
    found = stale(workspace)
    assert found["tokenizer"] == ("its snapshot is not the newest: 2 newer",)
    assert found["export"] == ("its pretrain is out of date",)
    assert "shard" not in found
    assert "committed, out of date" in shown(workspace=workspace)


def test_an_input_that_came_out_differently_or_is_gone_is_named(
    recipe: Recipe, workspace: Workspace, everything_made: Made
) -> None:
    made = everything_made()
    shutil.rmtree(made["precompute"].folder)
    assert stale(workspace)["pretrain"] == ("its precompute is gone",)
    commit_stage(recipe, workspace, "precompute", data=b"other")
    assert stale(workspace)["pretrain"] == ("its precompute was made again and came out differently",)
    assert "tokenizer" not in stale(workspace)


def test_a_version_that_was_bumped_is_named(
    workspace: Workspace, everything_made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything_made()
    before = STAGES["pretrain"].VERSION
    monkeypatch.setattr(STAGES["pretrain"], "VERSION", before + 1)
    found = stale(workspace)
    assert found["pretrain"] == (f"made by version {before} of its stage, which is now {before + 1}",)
    assert found["export"] == ("its pretrain is out of date",)
    monkeypatch.setattr(STAGES["shard"], "VERSION", 99)
    assert stale(workspace)["shard"] == ("made by version 2 of its stage, which is now 99",)


def test_settings_in_which_the_recipe_differs_are_named(workspace: Workspace, everything_made: Made) -> None:
    everything_made()
    changes = ("--set", "pretrain.seed=7", "--set", "pretrain.optimization.learning_rate=0.5")
    assert "optimization.learning_rate: 0.002 -> 0.5; seed: 0 -> 7" in shown(*DEMO, *changes, workspace=workspace)
    found = json.loads(shown(*DEMO, *changes, "--json", workspace=workspace))
    assert {one["stage"]: len(one["differs"]) for one in found["artifacts"]}["pretrain"] == 2
    assert not any(one["differs"] for one in found["artifacts"] if one["stage"] != "pretrain")
    assert "out of date" not in shown(*DEMO, workspace=workspace)


def test_what_a_live_run_makes_or_reads_is_marked(workspace: Workspace, everything_made: Made) -> None:
    made, readers = everything_made(), Readers()
    readers.take(made["tokenizer"].manifest_path)
    try:
        with workspace.lock("export", made["export"].fingerprint):
            found = {entry.stage: (entry.is_held, entry.is_read) for entry in entries(workspace)}
            text = shown(workspace=workspace)
    finally:
        readers.close()
    assert found["export"] == (True, False)
    assert found["tokenizer"] == (False, True)
    assert "committed, being made" in text
    assert "committed, being read" in text
    assert not any(entry.is_held or entry.is_read for entry in entries(workspace))


def test_disk_freshness_and_what_waits_for_mlflow_are_said(workspace: Workspace, everything_made: Made) -> None:
    everything_made()
    outbox = Outbox(workspace.root)
    outbox.add("run", "measurements", {"values": []})
    text = shown(workspace=workspace)
    assert "disk        " in text
    assert "freshness   newest snapshot of synthetic" in text
    assert "outbox      1 events of 1 runs wait for MLflow" in text
    outbox.close()
    record = json.loads(shown("--json", workspace=workspace))
    assert record["disk"]["free_bytes"] > 0
    assert record["outbox"] == {"runs": 1, "events": 1}
    assert record["next"] is None


def test_what_landed_and_is_not_ingested_is_counted(tmp_path: Path, workspace: Workspace, smoke_root: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    source = next((smoke_root / "sources").glob("*/videos/*.mp4"))
    shutil.copy(source, folder / "one.mp4")
    (folder / "two.mp4").write_bytes(source.read_bytes()[:2000])
    found = json.loads(shown(*DEMO, "--source", str(folder), "--json", workspace=workspace))["source"]
    assert (found["new_sources"], found["waiting"], found["committed"]) == (1, 1, 0)
    assert found["oldest_s"] >= 0
    text = shown(*DEMO, "--source", str(folder), workspace=workspace)
    assert "source      1 landed and not ingested, the oldest" in text
    assert "1 not complete yet" in text
    assert not workspace.root.exists()
