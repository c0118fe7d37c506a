"""Garbage collection: it takes what nobody needs, never anything else, and a kill leaves nothing half done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inventory import State, entries
from pipeline.recipe import Recipe, Request
from pipeline.runner import Run
from pipeline.tracking.registry import CHAMPION, Registry
from pipeline.upkeep.collection import Key, Node, Policy, in_order, kept
from pipeline.upkeep.sweeping import TRASH, Wanted, collect, survey
from stages import shard
from stages.errors import ArtifactMissing
from stages.storage import artifact
from stages.storage.artifact import CHECKPOINTS, Artifact
from stages.storage.clips import Dataset
from stages.storage.locks import Readers, exclusive
from stages.storage.workspace import Workspace
from tests.pipeline.conftest import commit_clips, commit_stage
from tests.pipeline.test_command import invoke

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy

STAGES = ("tokenizer", "precompute", "pretrain", "evaluate", "export")
INPUTS = {
    "tokenizer": ("shard",),
    "precompute": ("shard", "tokenizer"),
    "pretrain": ("shard", "precompute"),
    "evaluate": ("shard", "tokenizer", "precompute", "pretrain"),
    "export": ("pretrain",),
}
ALL = Wanted(num_snapshots=1, named={}, grace_s=0)


@st.composite
def roots(draw: st.DrawFn) -> tuple[list[Node], Policy]:
    """Artifacts that were made of each other in any way, some of them of artifacts that are gone."""
    nodes: list[Node] = []
    for number in range(draw(st.integers(0, 14))):
        stage = draw(st.sampled_from(STAGES))
        inputs = {}
        for name in INPUTS[stage]:
            there = [node.digest for node in nodes if node.key.stage == name and node.digest]
            inputs[name] = draw(st.sampled_from(["s1", "s2", "s3"] if name == "shard" else [*there, "gone"]))
        is_committed = draw(st.booleans()) or draw(st.booleans())
        nodes.append(
            Node(
                Key(stage, f"{number:02d}"),
                f"digest-{number}" if is_committed else None,
                inputs if is_committed else {},
                age_s=draw(st.sampled_from([0.0, 100.0])),
                is_live=draw(st.integers(0, 5)) == 0,
                is_damaged=not is_committed and draw(st.booleans()),
            )
        )
    named = draw(st.dictionaries(st.sampled_from(["00", "03", "07"]), st.just("somebody"), max_size=2))
    newest = draw(st.frozensets(st.sampled_from(["s1", "s2", "s3"]), max_size=2))
    return nodes, Policy(newest, named, grace_s=draw(st.sampled_from([0.0, 50.0])))


def needed(nodes: list[Node], policy: Policy) -> set[Key]:
    """What has to stay, spelled out: a node is needed if it or something made of it, at any distance, is wanted for itself."""

    def origins(node: Node) -> set[str]:
        if "shard" in node.inputs:
            return {node.inputs["shard"]}
        return {one for source in nodes if is_source(source, node) for one in origins(source)}

    def is_source(source: Node, reader: Node) -> bool:
        return source.digest is not None and reader.inputs.get(source.key.stage) == source.digest

    def is_wanted(node: Node) -> bool:
        is_new = bool(node.digest) and (not origins(node) or bool(origins(node) & policy.newest))
        is_named = any(node.key.name.startswith(name) for name in policy.named)
        return node.is_live or node.is_damaged or node.age_s < policy.grace_s or is_named or is_new

    def is_needed(node: Node) -> bool:
        return is_wanted(node) or any(is_needed(reader) for reader in nodes if is_source(node, reader))

    return {node.key for node in nodes if is_needed(node)}


@settings(max_examples=100, deadline=None)
@given(roots())
def test_what_is_kept_is_what_the_definition_says(root: tuple[list[Node], Policy]) -> None:
    nodes, policy = root
    assert kept(nodes, policy).keys() == needed(nodes, policy)


@settings(max_examples=40, deadline=None)
@given(roots())
def test_readers_go_before_what_they_were_made_of(root: tuple[list[Node], Policy]) -> None:
    nodes, _ = root
    places = {node.key: place for place, node in enumerate(in_order(nodes))}
    assert len(places) == len(nodes)
    for reader in nodes:
        for source in nodes:
            if source.digest and reader.inputs.get(source.key.stage) == source.digest:
                assert places[reader.key] < places[source.key]


@pytest.fixture
def made(recipe: Recipe, workspace: Workspace) -> Mapping[str, Mapping[str, Artifact]]:
    """Everything twice: of the clips that there were first, and of those that there are now."""
    found = {}
    for age, shards in (("old", 1), ("new", 2)):
        commit_clips(recipe, workspace, shards=shards)
        found[age] = {stage: commit_stage(recipe, workspace, stage, data=age.encode()) for stage in STAGES}
    return found


def names(workspace: Workspace) -> set[str]:
    return {entry.name for entry in entries(workspace) if entry.stage != "shard"}


def whole(workspace: Workspace, kept: Mapping[str, Artifact]) -> bool:
    states = {entry.name: entry.state for entry in entries(workspace)}
    return all(states[one.fingerprint] is State.COMMITTED and not artifact.damages(one) for one in kept.values())


def test_nothing_is_changed_until_it_is_asked(workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]) -> None:
    before = {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    found = {one.path.rpartition("/")[2]: one for one in survey(workspace, ALL)}
    assert before == {path: path.stat().st_mtime_ns for path in workspace.root.rglob("*")}
    assert {name for name, one in found.items() if not one.is_kept} == {one.fingerprint for one in made["old"].values()}
    assert found[made["new"]["export"].fingerprint].why == "made from one of the newest snapshots"
    text = invoke("gc", "--root", str(workspace.root), "--snapshots", "1", "--grace", "0").stdout
    assert text.count("may go  artifact") == len(STAGES)
    assert "--delete removes it" in text


def test_what_is_old_goes_and_clips_never_do(workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]) -> None:
    lines = invoke("gc", "--root", str(workspace.root), "--snapshots", "1", "--grace", "0", "--delete", "--json").stdout
    gone = [json.loads(line) for line in lines.splitlines()]
    assert {one["path"].rpartition("/")[2] for one in gone} == {one.fingerprint for one in made["old"].values()}
    assert names(workspace) == {one.fingerprint for one in made["new"].values()}
    assert whole(workspace, made["new"])
    (clips,) = (entry for entry in entries(workspace) if entry.stage == "shard")
    assert clips.state is State.COMMITTED
    assert not list((workspace.root / TRASH).iterdir())
    assert list(collect(workspace, ALL)) == []


@pytest.mark.parametrize("wanted", [ALL._replace(num_snapshots=2), ALL._replace(grace_s=3600)])
def test_two_snapshots_or_youth_keep_all(
    wanted: Wanted, workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    assert list(collect(workspace, wanted)) == []
    assert whole(workspace, made["old"])


def test_what_a_person_names_is_kept_with_its_origins(workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]) -> None:
    arguments = ("gc", "--root", str(workspace.root), "--snapshots", "1", "--grace", "0", "--delete")
    assert invoke(*arguments, "--keep", made["old"]["pretrain"].fingerprint[:8]).exit_code == 0
    stayed = {made["old"][stage].fingerprint for stage in ("tokenizer", "precompute", "pretrain")}
    assert names(workspace) == stayed | {one.fingerprint for one in made["new"].values()}
    wrong = invoke(*arguments, "--keep", "no-such")
    assert (wrong.exit_code, "names no artifact" in wrong.stderr) == (2, True)


def test_what_an_alias_names_is_kept_and_without_the_registry_nothing_goes(
    recipe: Recipe, workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(workspace.root)
    champion = registry.register(recipe.name, made["old"]["pretrain"], evaluation=made["old"]["evaluate"])
    registry.promote(champion)
    arguments = ("gc", "--root", str(workspace.root), "--snapshots", "1", "--grace", "0", "--delete")
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patched.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        refused = invoke(*arguments)
    assert refused.exit_code == 2
    assert "nobody knows which encoders have an alias" in refused.stderr
    assert whole(workspace, {**made["old"]})
    assert f"alias {CHAMPION}" in invoke(*arguments[:-1]).stdout
    assert invoke(*arguments).exit_code == 0
    assert whole(workspace, {stage: one for stage, one in made["old"].items() if stage != "export"})
    assert made["old"]["export"].fingerprint not in names(workspace)


def test_what_a_live_run_makes_or_reads_is_kept_with_its_origins(
    workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    old, readers = made["old"], Readers()
    begun = workspace.artifact_folder("export", "0123456789abcdef")
    begun.mkdir()
    try:
        readers.take(old["precompute"].manifest_path)
        with exclusive(begun):
            gone = {one.path.rpartition("/")[2] for one in collect(workspace, ALL)}
    finally:
        readers.close()
    assert gone == {old[stage].fingerprint for stage in ("pretrain", "evaluate", "export")}
    assert begun.exists()
    assert {one.path for one in collect(workspace, ALL)} == {
        workspace.relative(path) for path in (begun, old["precompute"].folder, old["tokenizer"].folder)
    }


def test_a_run_that_comes_while_it_is_collected_takes_nothing_half(
    workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    manifest = made["old"]["tokenizer"].manifest_path
    with exclusive(manifest), pytest.raises(FileNotFoundError, match="being collected"):
        Readers().take(manifest)
    shutil.rmtree(manifest.parent)
    with pytest.raises(FileNotFoundError):
        Readers().take(manifest)


_KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from pipeline.upkeep import sweeping
from stages.storage.workspace import Workspace
left = int(sys.argv[2])
remove = shutil.rmtree
def removed(path, **settings):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    remove(path, **settings)
shutil.rmtree = removed
list(sweeping.collect(Workspace(Path(sys.argv[1])), sweeping.Wanted(1, {}, 0)))
"""


def test_a_collection_that_is_killed_is_finished_by_the_next(
    workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    after = 3
    arguments = [sys.executable, "-c", _KILLED, str(workspace.root), str(after)]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL, "it was killed"
    (left,) = (workspace.root / TRASH).iterdir()
    assert (left / "manifest.json").exists(), "it was taken out of use whole"
    assert not [entry for entry in entries(workspace) if entry.state is not State.COMMITTED]
    assert next(one.what for one in survey(workspace, ALL)) == "trash"
    finished = list(collect(workspace, ALL))
    assert len(finished) == len(STAGES) - after
    assert names(workspace) == {one.fingerprint for one in made["new"].values()}
    assert whole(workspace, made["new"])
    assert not list((workspace.root / TRASH).iterdir())


def test_a_reader_beside_it_sees_an_artifact_whole_or_not_at_all(
    recipe: Recipe, workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    old = made["old"]["tokenizer"]
    copy = workspace.root / "copy"
    shutil.copytree(old.folder, copy)
    seen = {"whole": 0, "away": 0, "broken": 0}
    is_over, end = threading.Event(), time.monotonic() + 60

    def until_more(kind: str) -> None:
        """Waits until the reader has seen this once more."""
        before = seen[kind]
        while seen[kind] == before and time.monotonic() < end:
            time.sleep(0.001)

    def read() -> None:
        while not is_over.is_set():
            readers = Readers()
            try:
                found = artifact.find(workspace, "tokenizer", old.fingerprint)
                if found is None:
                    raise FileNotFoundError
                readers.take(found.manifest_path)
                time.sleep(0.001)
                seen["broken" if artifact.damages(found) else "whole"] += 1
            except FileNotFoundError:
                seen["away"] += 1
            finally:
                readers.close()
            time.sleep(0.005)  # else somebody always reads, and nothing goes

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while seen["away"] < 5 and time.monotonic() < end:
            list(collect(workspace, ALL))
            if not old.folder.exists():
                until_more("away")
                shutil.copytree(copy, workspace.root / "arriving")
                os.replace(workspace.root / "arriving", old.folder)
                until_more("whole")
    finally:
        is_over.set()
        reader.join()
    assert seen["broken"] == 0
    assert seen["whole"] > 0
    assert seen["away"] > 0


def test_a_run_that_reads_what_is_being_collected_says_so(
    recipe: Recipe, workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]], request_: Request
) -> None:
    run, inputs = Run(request_, recipe, str(workspace.root)), dict(made["new"])
    with exclusive(made["new"]["pretrain"].manifest_path), pytest.raises(ArtifactMissing, match="run again"):
        run.stage("export", inputs)


def test_what_dead_runs_left_goes_unless_a_live_one_holds_it(
    recipe: Recipe, workspace: Workspace, made: Mapping[str, Mapping[str, Artifact]]
) -> None:
    dataset = Dataset(workspace, shard.dataset_name(recipe.shard))
    tokenizer = made["new"]["tokenizer"].folder
    left = [
        tokenizer / ".model.safetensors.0123.tmp",
        tokenizer / CHECKPOINTS / "step-00000002" / "state.json",
        dataset.shard_path(7),
        dataset.part_path("index", 7),
        workspace.root / ".scratch" / dataset.name / "half" / "clip.mp4",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"left")
    keep_all = ALL._replace(num_snapshots=9)
    with workspace.lock("shard", dataset.name), workspace.lock("tokenizer", tokenizer.name):
        assert list(collect(workspace, keep_all)) == []
    kinds = {one.what for one in collect(workspace, keep_all)}
    assert kinds == {"temporary files", "shards without a record", "checkpoints", "scratch"}
    assert not any(path.exists() for path in left)
    assert whole(workspace, made["new"])
    assert len(dataset.snapshots()) == 2
    assert Path(dataset.folder / "index").is_dir()
