"""What the tests of the wiring share: the project's own recipe, and artifacts committed for it without any training."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prefect.testing.utilities import prefect_test_harness

from pipeline.plan import STAGES, config_of, newest_snapshot, plan
from pipeline.recipe import Recipe, Request
from stages import shard
from stages.storage import artifact
from stages.storage.artifact import Artifact, Work
from stages.storage.clips import Dataset
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace

COUNTS = {"inputs": 3, "committed": 2, "quarantined": 1, "pending": 0}


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """A temporary Prefect server, one for all tests."""
    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def request_() -> Request:
    return Request(recipe="lvmae", overlays=("demo",))


@pytest.fixture(scope="session")
def recipe(request_: Request) -> Recipe:
    return request_.load()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "root")


def commit_clips(recipe: Recipe, workspace: Workspace, *, shards: int = 1) -> Artifact:
    """A snapshot of shards without a clip, which is enough for everything that only looks at manifests."""
    dataset = Dataset(workspace, shard.dataset_name(recipe.shard))
    for ordinal in range(shards):
        if not dataset.is_committed(ordinal):
            dataset.write_unit(ordinal, [])
    return dataset.snapshot(config=recipe.shard, fingerprint="0" * 16, counts=COUNTS)


def commit_stage(recipe: Recipe, workspace: Workspace, stage: str, *, data: bytes = b"made") -> Artifact:
    """The artifact of a stage with one file, committed under the fingerprint that the plan expects."""

    def make(folder: Path) -> Work:
        publish_bytes(folder / "file.bin", data)
        return Work(units_done=1, units_reused=0, counts={})

    steps = {step.stage: step.artifact for step in plan(recipe, workspace)}
    inputs = {name: made for name in STAGES[stage].INPUTS if (made := steps[name])}
    config, version = config_of(recipe, stage), STAGES[stage].VERSION
    return artifact.produce(stage, version=version, config=config, inputs=inputs, workspace=workspace, make=make).artifact


@pytest.fixture
def everything_made(recipe: Recipe, workspace: Workspace) -> Callable[[], dict[str, Artifact]]:
    """Commits an artifact of every stage and gives them."""

    def commit() -> dict[str, Artifact]:
        made = {"shard": commit_clips(recipe, workspace)}
        for stage in ("tokenizer", "precompute", "pretrain", "evaluate", "export"):
            made[stage] = commit_stage(recipe, workspace, stage)
        assert newest_snapshot(recipe, workspace) is not None
        return made

    return commit
