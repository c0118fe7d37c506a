"""A sample of the pretraining carries the pixels of one stored view and what was stored of that very view."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import precompute, pretrain
from stages.batches import ClipFrames, Stream, batches
from stages.errors import ArtifactDamaged, ConfigError
from stages.storage.artifact import Artifact
from stages.storage.index import Index
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.views import cut, stored_view
from tests.stages.target_world import NUM_FRAMES, grow, precompute_config, words


@dataclasses.dataclass
class World:
    """Six clips and their targets, with a product beside codes and priorities."""

    snapshot: Artifact
    targets: Artifact

    def stream(self, **changes: Any) -> Stream:
        """The samples of a pretraining."""
        reader = TargetReader(self.targets)
        return pretrain._stream(pretrain._task(pretrain_config(**changes), self.snapshot, reader), self.snapshot, reader)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    workspace, scratch = Workspace(tmp_path_factory.mktemp("world")), tmp_path_factory.mktemp("scratch")
    snapshot = [grow(workspace, ordinal, scratch) for ordinal in range(2)][-1]
    inputs = {"shard": snapshot, "tokenizer": words(workspace)}
    return World(snapshot, precompute.run(precompute_config(), inputs, workspace).artifact)


def pretrain_config(**changes: Any) -> pretrain.Config:
    fields: dict[str, Any] = {
        "model": {"encoder": {"width": 16, "depth": 1, "num_heads": 2}, "decoder": {"width": 16, "depth": 1, "num_heads": 2}},
        "encoder_masking": {"name": "tube", "ratio": 0.75},
        "decoder_masking": "priority",
        "target": "code_vectors",
        "optimization": {"num_steps": 1, "batch_clips": 2, "learning_rate": 1e-3},
        "seed": 3,
    }
    return pretrain.Config.model_validate({**fields, **changes})


def test_codes_and_pixels_of_a_sample_are_those_of_one_stored_view(world: World) -> None:
    reader, frames, stream = TargetReader(world.targets), ClipFrames(world.snapshot), world.stream()
    clips = {clip.clip_id: clip for clip in Index(world.snapshot)}
    views = set()
    for position in range(12):
        draw, sample = stream.draw(position), stream[position]
        ((place, repeat),) = draw.attached
        assert repeat == 0
        assert place.clip_id == draw.clip.clip_id
        assert place == reader.place(clips[place.clip_id], place.view)
        codes = torch.from_numpy(reader.read(place)["codes"].astype("int64")).flatten()
        assert (sample["product/codes"] == codes[sample["predict"]]).all()
        assert sample["product/codes"].dtype == torch.int64
        pixels = torch.from_numpy(cut(frames, draw.clip, stored_view(place), NUM_FRAMES))
        token = int(sample["visible"][0])
        t, h, w = token // 4, token // 2 % 2, token % 2
        block = pixels[2 * t : 2 * t + 2, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16]
        assert (sample["visible_patches"][0] == block.flatten()).all()
        views.add((place.clip_id, place.view))
    assert {view for _, view in views} == {0, 1}


def test_a_clip_that_comes_several_times_is_decoded_once_and_masked_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    monkeypatch.setattr(pretrain, "cut", lambda frames, clip, *args: decoded.append(clip.clip_id) or cut(frames, clip, *args))
    once, stream = world.stream(), world.stream(masks_per_clip=3)
    assert stream.num_samples == 3 * once.num_samples
    samples = [stream[position] for position in range(6)]
    names = [sample["sample"] for sample in samples]
    first, second = (once.draw(position).clip.clip_id for position in range(2))
    assert names == [f"{first} 0", f"{first} 0 1", f"{first} 0 2", f"{second} 0", f"{second} 0 1", f"{second} 0 2"]
    assert decoded == [first, second]
    assert len({tuple(sample["visible"].tolist()) for sample in samples[:3]}) > 1
    assert torch.equal(samples[0]["visible"], once[0]["visible"]), "the first mask is the one that there was alone"


def test_only_what_the_target_reads_is_sent_on(world: World) -> None:
    sample = world.stream(decoder_masking={"name": "priority", "by": "codec_motion"})[0]
    assert [name for name in sample if name.startswith("product/")] == ["product/codes"]


def test_workers_get_places_and_make_the_same_samples(world: World) -> None:
    options = {"batch_clips": 2, "first_step": 1, "last_step": 4}
    alone = list(batches(world.stream(), **options, num_workers=0))
    beside = list(batches(world.stream(), **options, num_workers=1))
    assert len(alone) == len(beside) == 3
    for one, other in zip(alone, beside, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one if isinstance(one[name], torch.Tensor))


def test_no_table_is_sent_to_the_workers(world: World) -> None:
    sent = pickle.dumps(world.stream().sample)
    assert b"_parts" not in sent
    assert all(clip.clip_id.encode() not in sent for clip in Index(world.snapshot))


def test_a_masking_by_what_was_not_stored_is_refused(world: World) -> None:
    with pytest.raises(ConfigError, match=r"pretrain needs flow per token; these targets hold codes, priority, codec_motion"):
        world.stream(decoder_masking={"name": "priority", "by": "flow"})


def test_targets_of_another_snapshot_are_refused(world: World, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    (tmp_path / "scratch").mkdir()
    other = grow(workspace, 2, tmp_path / "scratch")
    reader = TargetReader(world.targets)
    stream = pretrain._stream(pretrain._task(pretrain_config(), other, reader), other, reader)
    with pytest.raises(ArtifactDamaged, match=r"holds no targets of clip .* run precompute on this one"):
        stream[0]
