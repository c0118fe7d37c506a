"""Global batches depend on the clips, the seed and the step, and on nothing else: not on ranks, workers or a restart."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.batches import ClipFrames, Loader, Stream, batches, training_clips
from stages.errors import ArtifactDamaged, ArtifactMissing, ConfigError
from stages.storage.index import Index
from stages.video_decode import Crop
from tests.stages.clip_files import encoded, member, patches, snapshot, told
from tests.stages.numbered import clip, numbered
from tests.stages.processes import eventually, members

NUM_CLIPS, BATCH, STEPS = 23, 8, 6
REPOSITORY = Path(__file__).parents[2]
DRIVER = """
import time
from stages.batches import batches
from tests.stages.test_batches import stream
if __name__ == "__main__":
    found = batches(stream(), batch_clips=1, first_step=0, last_step=10**6, num_workers=2)
    next(found)
    print("begun", flush=True)
    time.sleep(600)
"""

Batch = list[tuple[int, int]]


def stream(seed: int = 3) -> Stream:
    return Stream([clip(str(number)) for number in range(NUM_CLIPS)], seed, numbered)


def global_batches(world_size: int, num_workers: int, *, first_step: int = 0) -> list[Batch]:
    """Per step the (clip, epoch) of all ranks, in the order of ranks."""
    options = {"batch_clips": BATCH, "first_step": first_step, "last_step": STEPS, "num_workers": num_workers}
    ranks = [list(batches(stream(), **options, rank=rank, world_size=world_size)) for rank in range(world_size)]
    joined = [[pair for part in parts for pair in _pairs(part)] for parts in zip(*ranks, strict=True)]
    assert [len(one) for one in joined] == [BATCH] * (STEPS - first_step)
    return joined


def _pairs(part: dict[str, Any]) -> Batch:
    return list(zip(part["clip"].tolist(), part["epoch"].tolist(), strict=True))


@pytest.fixture(scope="module", autouse=True)
def fresh_forkserver() -> None:
    """Workers start at once when the server that forks them has torch: one that an earlier test left has not."""
    forkserver._forkserver._stop()  # what the standard library's own tests call


@pytest.fixture(scope="module")
def alone() -> list[Batch]:
    return global_batches(1, 0)


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # more workers than this machine has cores
@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_workers_and_restarts_change_no_batch(alone: list[Batch], world_size: int, num_workers: int) -> None:
    resumed = random.Random(world_size * 10 + num_workers).randrange(1, STEPS)
    assert global_batches(world_size, num_workers, first_step=resumed) == alone[resumed:]
    if num_workers == 0:
        assert global_batches(world_size, num_workers) == alone


def test_every_clip_comes_once_per_epoch_and_each_epoch_in_its_own_order() -> None:
    seen = [(int(one["clip"]), int(one["epoch"])) for one in map(stream().__getitem__, range(3 * NUM_CLIPS))]
    epochs = [[clip for clip, epoch in seen if epoch == number] for number in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(NUM_CLIPS))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [epoch for _, epoch in seen] == sorted(epoch for _, epoch in seen)


def test_batches_are_positions_of_the_stream(alone: list[Batch]) -> None:
    positions = [(int(one["clip"]), int(one["epoch"])) for one in map(stream().__getitem__, range(STEPS * BATCH))]
    assert [pair for batch in alone for pair in batch] == positions
    other = [int(stream(seed=4)[position]["clip"]) for position in range(NUM_CLIPS)]
    assert other != [number for number, _ in positions[:NUM_CLIPS]]


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch_clips=8 does not divide among 3 ranks"):
        batches(stream(), batch_clips=8, first_step=0, last_step=1, num_workers=0, world_size=3)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("stored")
    videos = [encoded(folder, patches(40)), encoded(folder, patches(20))]
    labels = [{"split": ("train",)}, {"split": ("test",)}]
    members = [
        member(video, key=str(number), num_frames=40 - 20 * number, labels=labels[number])
        for number, video in enumerate(videos)
    ]
    return snapshot(folder, [members])


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
def test_reading_gives_the_window_and_the_crop(stored: Any, cache_bytes: int) -> None:
    frames, clip = ClipFrames(stored, cache_bytes), Index(stored)[0]
    whole = frames.read(clip)
    assert told(whole) == list(range(40))
    part = frames.read(clip, 18, 5, Crop(3, 6, 20, 30))
    assert (part == whole[18:23, 3:23, 6:36]).all()


def test_kept_clips_are_not_read_again_and_the_oldest_goes_first(stored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    decode = ClipFrames.read.__globals__["decode"]
    monkeypatch.setitem(
        ClipFrames.read.__globals__, "decode", lambda data, **options: read.append("") or decode(data, **options)
    )
    long, short = Index(stored)
    frames = ClipFrames(stored, cache_bytes=40 * 48 * 72 * 3)
    for one in (long, long, short, short, long):
        frames.read(one, 0, 3)
    assert len(read) == 3, "the long clip fills the memory alone"


def test_a_clip_that_is_shorter_than_its_row_is_damaged(stored: Any, tmp_path: Path) -> None:
    lying = snapshot(tmp_path, [[member(encoded(tmp_path, patches(20)), num_frames=40)]])
    for cache_bytes in (0, 1 << 20):
        with pytest.raises(ArtifactDamaged, match="claims 20 frames; 0 to 40 are wanted"):
            ClipFrames(lying, cache_bytes).read(Index(lying)[0])


def test_training_sees_what_is_not_excluded(stored: Any) -> None:
    assert [clip.key for clip in training_clips(stored, {"split": "test"})] == ["0"]
    assert len(training_clips(stored, {})) == 2


def test_a_training_without_clips_is_refused(tmp_path: Path) -> None:
    alone = snapshot(tmp_path, [[member(b"x", labels={"split": ("test",)})]])
    with pytest.raises(ArtifactMissing, match=r"no clip is left after exclude=\{'split': 'test'\}"):
        training_clips(alone, {"split": "test"})


def test_a_loader_tells_how_long_it_was_waited_for() -> None:
    def slow() -> Iterator[dict[str, Any]]:
        for number in range(4):
            time.sleep(0.3 if number == 0 else 0.05)
            yield {"x": torch.tensor(number)}

    loader = Loader(slow())
    assert loader.wait_share == 0
    assert int(next(loader)["x"]) == 0
    for _ in range(3):
        time.sleep(0.05)
        next(loader)
    assert 0.3 < loader.wait_share < 0.7, "half of the time, the first wait not counted"
    with pytest.raises(StopIteration):
        next(loader)


def test_no_worker_is_left_when_the_training_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=REPOSITORY, start_new_session=True, stdout=subprocess.PIPE
    ) as one:
        assert one.stdout is not None
        assert one.stdout.readline() == b"begun\n"
        assert len(members(one.pid)) > 2, "two workers and the server that forked them"
        one.kill()
        eventually(lambda: not members(one.pid))
