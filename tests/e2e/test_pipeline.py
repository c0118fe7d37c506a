"""The shrunk pipeline from end to end, by the command that a user types."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines import SMOKE, STAGES, artifact_files, by_stage, listing, lvmae


@pytest.fixture
def copied_root(smoke_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "root"
    shutil.copytree(smoke_root, root)
    return root


def test_every_stage_says_in_json_what_it_did(smoke_root: Path) -> None:
    stdout = (smoke_root.parent / "stdout.txt").read_text()
    lines = {line["stage"]: line for line in map(json.loads, stdout.splitlines()) if "stage" in line}
    assert tuple(lines) == STAGES
    for line in lines.values():
        assert line["units_done"] > 0
        assert line["units_reused"] == 0
        assert Path(line["path"]).is_dir()
        assert len(line["fingerprint"]) == 16
    shard = lines["shard"]
    assert shard["inputs"] == shard["committed"] + shard["quarantined"] + shard["pending"] > 0


def test_the_same_command_again_writes_no_byte(copied_root: Path) -> None:
    before = listing(copied_root)
    done = by_stage(lvmae(*SMOKE, "--json", root=copied_root))
    assert [done[stage]["units_done"] for stage in STAGES] == [0] * len(STAGES)
    after = listing(copied_root)
    changed = [Path(name).name for name in {*before, *after} if before.get(name) != after.get(name)]
    assert changed == ["seen.parquet"], "the cache learns that the copied sources lie elsewhere; nothing else is written"
    lvmae(*SMOKE, "--json", root=copied_root)
    assert listing(copied_root) == after


@pytest.mark.parametrize("stage", ["tokenizer", "evaluate", "export"])
def test_a_deleted_artifact_is_made_again_with_the_same_bytes_and_the_rest_is_reused(copied_root: Path, stage: str) -> None:
    before = artifact_files(copied_root)
    folder = Path(by_stage(lvmae(*SMOKE, "--json", root=copied_root))[stage]["path"])
    shutil.rmtree(folder)
    done = by_stage(lvmae(*SMOKE, "--json", root=copied_root))
    assert [name for name in STAGES if done[name]["units_done"]] == [stage]
    assert artifact_files(copied_root) == before


def test_verify_finds_a_flipped_byte(copied_root: Path) -> None:
    lvmae("verify", root=copied_root)
    victim = next(copied_root.glob("pretrain/*/encoder.safetensors"))
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    done = lvmae("verify", root=copied_root, code=1)
    assert "encoder.safetensors" in done.stdout + done.stderr


def test_one_stage_alone_needs_its_inputs(tmp_path: Path) -> None:
    done = lvmae("pretrain", *SMOKE[1:], root=tmp_path / "empty", code=2)
    assert "shard" in done.stderr
    assert "Traceback" not in done.stderr


def test_status_and_mlflow_agree_with_the_disk(smoke_root: Path) -> None:
    manifests = [json.loads(path.read_text()) for path in smoke_root.rglob("*.json") if path.parent.name == "snapshots"]
    manifests += [json.loads(path.read_text()) for path in smoke_root.glob("*/*/manifest.json")]
    on_disk = {(made["stage"], made["fingerprint"]) for made in manifests}
    assert {stage for stage, _ in on_disk} == set(STAGES)
    shown = lvmae("status", "--json", root=smoke_root).stdout
    assert {fingerprint for _, fingerprint in on_disk} == {name for _, name in on_disk if name in shown}
    assert recorded_in_mlflow(smoke_root) == on_disk


def recorded_in_mlflow(root: Path) -> set[tuple[str, str]]:
    """Stage and fingerprint of every finished child run, asked in a process of its own: MLflow changes global state."""
    script = """
import json, sys, mlflow
client = mlflow.MlflowClient(tracking_uri=sys.argv[1])
ids = [experiment.experiment_id for experiment in client.search_experiments()]
tags = [run.data.tags for run in client.search_runs(ids, filter_string="attributes.status = 'FINISHED'")]
print(json.dumps([[each["lvmae.stage"], each["lvmae.fingerprint"]] for each in tags if "lvmae.stage" in each]))
"""
    asked = [sys.executable, "-c", script, f"sqlite:///{root / 'mlflow.db'}"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True)
    return {(stage, fingerprint) for stage, fingerprint in json.loads(done.stdout.splitlines()[-1])}
