"""The campaign of faults and the table of resuming, in a short form: a real server, real workers, one seed."""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import chaos, chaos_faults
from tests.faults.chaos import WHOLE, Site
from tests.faults.situations import Table, copy_of_project
from tests.pipelines import STAGES

SEED, NUM_FAULTS = 140, 4
CHEAP = {
    "kill flow process": 4, "kill flow process and its children": 2, "terminate flow process": 1, "kill ffmpeg": 6,
    "stop and continue flow process": 1, "cancel": 1,
}  # fmt: skip
"""Kinds and their weights; without those that wait for a server or a worker to start."""
DURATIONS = {"shard": 2.0, "precompute": 2.0, "pretrain": 2.0, WHOLE: 8.0}
"""About how long the stages take; how long exactly only decides when a fault strikes."""


@pytest.fixture(scope="module")
def site(smoke_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("chaos")
    with chaos.site(folder, folder / "root", copy_of_project(folder / "project")) as found:
        found.reference = smoke_root
        found.durations = dict(DURATIONS)
        shutil.copytree(smoke_root, found.root, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
        yield found


def test_after_every_fault_nothing_is_lost_and_every_byte_is_as_undisturbed(site: Site) -> None:
    kinds = {name: chaos_faults.KINDS[name]._replace(weight=weight) for name, weight in CHEAP.items()}
    episodes = chaos.schedule(SEED, NUM_FAULTS, kinds, ["shard", "precompute", "pretrain"])
    records = [record for episode in episodes for record in chaos.play(site, episode, kinds)]
    assert [record["number"] for record in records] == list(range(NUM_FAULTS))
    assert all(record["evidence"] for record in records), "every fault happened"
    assert site.command("verify").returncode == 0
    for stage in STAGES:
        chaos.check(site, stage)


def test_resuming_executes_what_is_needed_and_no_more(site: Site) -> None:
    row = Table(site).retry()
    assert 0 < row.executed == row.needed < row.total, row
    chaos.check(site, WHOLE)


def test_a_seed_decides_all_that_is_drawn() -> None:
    first, again = (chaos.schedule(SEED, 200, chaos_faults.KINDS) for _ in range(2))
    assert first == again
    assert first != chaos.schedule(SEED + 1, 200, chaos_faults.KINDS)
    assert [fault.number for episode in first for fault in episode.faults] == list(range(200))
    assert {fault.kind for episode in first for fault in episode.faults} == set(chaos_faults.KINDS)
    assert {episode.stage for episode in first} == {*STAGES, WHOLE}


@pytest.mark.parametrize("harm", ["byte", "lost", "left over", "scratch"])
def test_what_must_hold_afterwards_can_fail(smoke_root: Path, site: Site, tmp_path: Path, harm: str) -> None:
    root = Path(shutil.copytree(smoke_root, tmp_path / "root"))
    harmed = dataclasses.replace(site, root=root, reference=smoke_root)
    chaos.check(harmed, "precompute")
    victim = next(root.glob("targets/*/targets.zarr/*/codes/c.*"))
    if harm == "byte":
        victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    elif harm == "lost":
        victim.unlink()
    elif harm == "left over":
        (victim.parent / ".c.0.tmp").write_bytes(b"")
    else:
        (root / ".scratch" / "clips").mkdir(parents=True)
        (root / ".scratch" / "clips" / "half.mp4").write_bytes(b"")
    with pytest.raises(AssertionError, match="left over" if harm == "scratch" else r"precompute|left over"):
        chaos.check(harmed, "precompute")
