"""Targets of real clips: what the frozen tokenizer says of the very pixels that a training will see, computed once."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from einops import rearrange
from pydantic import ValidationError

from models.tokenizers import WindowConfig
from models.tokenizers.linear import LinearTokenizer
from stages import precompute, tokenizing
from stages.batches import ClipFrames
from stages.errors import ArtifactBusy, ConfigError, TargetsInvalid
from stages.networks import load_tokenizer
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.index import Index
from stages.storage.targets.layout import ledger_name
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.tokenizing import Network
from stages.views import cut, stored_view
from tests.stages.target_files import contents, listing
from tests.stages.target_world import NUM_FRAMES, grow, precompute_config, words

NUM_SHARDS = 2


@dataclasses.dataclass
class World:
    """A dataset of two shards and then of three, and targets of the first two."""

    workspace: Workspace
    snapshots: list[Artifact]
    words: Artifact
    first: Outcome

    def inputs(self, number: int = 0) -> Mapping[str, Artifact]:
        return {"shard": self.snapshots[number], "tokenizer": self.words}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root, scratch = tmp_path_factory.mktemp("world"), tmp_path_factory.mktemp("scratch")
    workspace = Workspace(root)
    snapshots = [grow(workspace, ordinal, scratch) for ordinal in range(NUM_SHARDS + 1)][NUM_SHARDS - 1 :]
    tokenizer = words(workspace)
    first = precompute.run(precompute_config(), {"shard": snapshots[0], "tokenizer": tokenizer}, workspace)
    return World(workspace, snapshots, tokenizer, first)


def elsewhere(world: World, root: Path) -> World:
    """The same inputs below another root, and no targets."""

    def moved(made: Artifact) -> Artifact:
        folder = root / made.folder.relative_to(world.workspace.root)
        return Artifact(folder, made.manifest, folder / made.manifest_path.relative_to(made.folder))

    for stage in ("clips", "tokenizers"):
        shutil.copytree(world.workspace.root / stage, root / stage)
    return dataclasses.replace(
        world, workspace=Workspace(root), snapshots=[moved(made) for made in world.snapshots], words=moved(world.words)
    )


def made(world: World, number: int = 0, **changes: Any) -> Outcome:
    """Targets of a snapshot."""
    return precompute.run(precompute_config(**changes), world.inputs(number), world.workspace)


def unit_counts(outcome: Outcome) -> tuple[int, int]:
    return outcome.units_done, outcome.units_reused


def test_what_is_stored_is_what_the_tokenizer_says_of_the_view(world: World) -> None:
    reader = TargetReader(world.first.artifact)
    tokenizer = load_tokenizer(world.words)
    frames = ClipFrames(world.snapshots[0])
    clips = Index(world.snapshots[0])
    assert unit_counts(world.first) == (NUM_SHARDS * 2, 0)
    assert len(clips) == 6
    turned, all_codes = set(), set()
    for clip in clips:
        for number in range(2):
            place = reader.place(clip, number)
            view, stored = stored_view(place), reader.read(place)
            pixels = torch.from_numpy(cut(frames, clip, view, NUM_FRAMES))
            codes, priority = tokenizer.tokenize(rearrange(pixels, "T H W C -> 1 C T H W").float() / 255)
            assert stored["codes"].shape == (16, 2, 2)
            assert (stored["codes"] == codes[0].numpy()).all()
            assert (stored["priority"] == priority[0].numpy().astype(np.float16)).all()
            turned.add((number, view.flip, view.y_px != 8))
            all_codes |= set(stored["codes"].flatten().tolist())
    assert {flip for _, flip, _ in turned} == {True, False}
    assert (1, True, True) in turned, "one view must be both mirrored and cut elsewhere than in the middle"
    assert len(all_codes) > 50


def test_products_are_stored_beside_codes_and_belong_to_the_same_pixels(world: World) -> None:
    reader = TargetReader(world.first.artifact)
    assert [spec.name for spec in reader.extent.arrays] == ["codes", "priority", "codec_motion"]
    for number, clip in enumerate(Index(world.snapshots[0])):
        for view in range(2):
            place = reader.place(clip, view)
            motion = reader.read(place)["codec_motion"]
            assert motion.shape == (16, 2, 2, 2)
            real = place.num_real_frames // 2
            assert (motion[:real, ..., 1] == number / 4).all()
            assert (motion[:real, ..., 0] == number / 4 * (-1 if place.flip else 1)).all()
            assert (motion[real:] == 0).all()


def test_a_new_snapshot_computes_its_new_shard_alone_and_touches_nothing(world: World, tmp_path: Path) -> None:
    before = listing(world.first.artifact.folder)
    looks: list[str] = []
    with watching(looks):
        second = made(world, 1, verify_share=0)
    assert unit_counts(second) == (2, NUM_SHARDS * 2)
    assert {int(key) for key in looks} == {6, 7, 8}, "the clips of the third shard"
    assert listing(world.first.artifact.folder) == before
    anew = made(elsewhere(world, tmp_path), 1, verify_share=0)
    assert unit_counts(anew) == (6, 0)
    assert contents(second.artifact.folder) == contents(anew.artifact.folder)
    assert second.artifact.digest == anew.artifact.digest
    old, new = TargetReader(world.first.artifact), TargetReader(second.artifact)
    assert (len(old), len(new)) == (12, 18)
    for place in old.places():
        assert all((old.read(place)[name] == values).all() for name, values in new.read(place).items())


def test_more_views_adopt_those_that_are_there(world: World, tmp_path: Path) -> None:
    views = {"num_views": 3, "num_frames": NUM_FRAMES, "size_px": 32, "seed": 5}
    more = made(world, views=views)
    assert unit_counts(more) == (2, 4)
    anew = made(elsewhere(world, tmp_path), views=views)
    assert contents(more.artifact.folder) == contents(anew.artifact.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "bf16"},
        {"windows": {"batch_windows": 2, "first_slot": "look_back"}},
        {"windows": {"batch_windows": 2, "stride_frames": 8}},
        {"products": []},
        {"views": {"num_views": 2, "num_frames": NUM_FRAMES, "size_px": 32, "seed": 6}},
    ],
    ids=["precision", "first slot", "stride", "products", "seed"],
)
def test_other_ways_to_compute_adopt_nothing(world: World, change: dict[str, Any]) -> None:
    before = contents(world.first.artifact.folder)
    other = made(world, **change)
    assert unit_counts(other) == (4, 0)
    assert other.artifact.digest != world.first.artifact.digest
    assert contents(world.first.artifact.folder) == before


def test_another_tokenizer_adopts_nothing_and_leaves_the_old_targets_alone(world: World) -> None:
    before = listing(world.first.artifact.folder)
    other = made(dataclasses.replace(world, words=words(world.workspace, brightness=0.25)))
    assert unit_counts(other) == (4, 0)
    assert listing(world.first.artifact.folder) == before
    one, another = TargetReader(world.first.artifact), TargetReader(other.artifact)
    place = next(iter(one.places()))
    assert (one.read(place)["codes"] != another.read(next(iter(another.places())))["codes"]).any()


@pytest.mark.parametrize(
    "change", [{"num_workers": 2}, {"cache_bytes": 0}, {"verify_share": 1.0}], ids=["workers", "no cache", "all twice"]
)
def test_how_it_is_run_changes_no_byte(world: World, tmp_path: Path, change: dict[str, Any]) -> None:
    again = made(elsewhere(world, tmp_path), **change)
    assert again.artifact.fingerprint == world.first.artifact.fingerprint
    assert contents(again.artifact.folder) == contents(world.first.artifact.folder)


def test_clips_that_go_through_the_network_together_do_so_whichever_views_are_missing(world: World, tmp_path: Path) -> None:
    config = precompute_config(windows={"batch_windows": 4})
    network = Network(load_tokenizer(world.words), config.windows, NUM_FRAMES, "fp32", torch.device("cpu"))
    assert network.batch_clips == 2
    there = elsewhere(world, tmp_path)
    sizes = batch_sizes(config, there)
    assert sizes[:4] == [2, 2, 1, 1], "two views of two clips, then of the one that is left of three"
    shutil.rmtree(next(tmp_path.glob("targets/*")) / "ledger")
    (next(tmp_path.glob("targets/*")) / "manifest.json").unlink()
    assert batch_sizes(config, there) == sizes


def batch_sizes(config: precompute.Config, world: World) -> list[int]:
    """How many clips went through the network at a time."""
    sizes, real = [], LinearTokenizer.tokenize

    def counted(self: LinearTokenizer, clip: torch.Tensor, windows: WindowConfig) -> Any:
        sizes.append(len(clip))
        return real(self, clip, windows)

    with mock.patch.object(LinearTokenizer, "tokenize", counted):
        precompute.run(config, world.inputs(), world.workspace)
    return sizes


def watching(looks: list[str]) -> Any:
    """While this lasts, the keys of clips that are decoded."""
    real = tokenizing.Look.__call__

    def counted(self: tokenizing.Look, item: Any) -> Any:
        looks.append(item[0].key)
        return real(self, item)

    return mock.patch.object(tokenizing.Look, "__call__", counted)


def test_a_killed_run_computes_what_is_missing(world: World, tmp_path: Path) -> None:
    there = elsewhere(world, tmp_path)
    whole = made(there)
    expected = contents(whole.artifact.folder)
    whole.artifact.manifest_path.unlink()
    (whole.artifact.folder / ledger_name(1, 0)).unlink()
    looks: list[str] = []
    with watching(looks):
        again = made(there, verify_share=0)
    assert unit_counts(again) == (1, 3)
    assert looks == ["3", "4", "5"], "no clip of the whole shard is decoded, and no clip twice"
    assert contents(again.artifact.folder) == expected


def test_a_unit_that_was_damaged_while_nothing_ran_is_computed_again(world: World, tmp_path: Path) -> None:
    there = elsewhere(world, tmp_path)
    whole = made(there)
    expected = contents(whole.artifact.folder)
    whole.artifact.manifest_path.unlink()
    hurt = sorted(whole.artifact.folder.glob("targets.zarr/000001/codes/c.*"))[1]
    data = bytearray(hurt.read_bytes())
    data[20] ^= 4
    hurt.write_bytes(data)
    again = made(there)
    assert unit_counts(again) == (1, 3)
    assert contents(again.artifact.folder) == expected


def spoiled(spoil: Callable[[int, torch.Tensor, torch.Tensor], None]) -> Any:
    """While this lasts, a tokenizer whose answers are spoiled, given the number of the call."""
    real, calls = LinearTokenizer.tokenize, iter(range(10**6))

    def tokenize(self: LinearTokenizer, clip: torch.Tensor, windows: WindowConfig) -> Any:
        codes, priority = real(self, clip, windows)
        spoil(next(calls), codes, priority)
        return codes, priority

    return mock.patch.object(LinearTokenizer, "tokenize", tokenize)


def test_a_unit_with_a_value_that_cannot_be_is_not_stored_and_all_others_are(world: World, tmp_path: Path) -> None:
    there = elsewhere(world, tmp_path)
    clip = Index(world.snapshots[0])[1]

    def spoil(call: int, codes: torch.Tensor, priority: torch.Tensor) -> None:
        if call == 3:  # the second view of the second clip
            codes[0, 5, 1, 1] = 2**18

    with (
        spoiled(spoil),
        pytest.raises(TargetsInvalid, match=rf"1 of 4 units .* codes of clip {clip.clip_id} in view 1 is 262144"),
    ):
        made(there, verify_share=0)
    assert sorted(path.name for path in tmp_path.glob("targets/*/ledger/*")) == [
        "part-000000-00.parquet", "part-000001-00.parquet", "part-000001-01.parquet",
    ]  # fmt: skip
    assert not list(tmp_path.glob("targets/*/manifest.json"))
    mended = made(there)
    assert unit_counts(mended) == (1, 3)
    assert contents(mended.artifact.folder) == contents(world.first.artifact.folder)


@pytest.mark.parametrize("share", [0.01, 1.0])
def test_a_machine_that_computes_something_else_the_second_time_is_found_out(
    world: World, tmp_path: Path, share: float
) -> None:
    clip = Index(world.snapshots[0])[0]

    def spoil(call: int, codes: torch.Tensor, priority: torch.Tensor) -> None:
        if call == 6:  # after three clips in two views: the first one again
            priority[0, 3, 0, 0] += 1

    expected = rf"priority of clip {clip.clip_id} in view 0 came out differently .*\(1 of 64 values\)"
    with spoiled(spoil), pytest.raises(TargetsInvalid, match=expected):
        made(elsewhere(world, tmp_path), verify_share=share)
    assert len(list(tmp_path.glob("targets/*/ledger/*"))) == 3


def test_without_a_second_look_such_a_machine_is_not_found_out(world: World, tmp_path: Path) -> None:
    seen = []

    def spoil(call: int, codes: torch.Tensor, priority: torch.Tensor) -> None:
        seen.append(call)

    with spoiled(spoil):
        made(elsewhere(world, tmp_path), verify_share=0)
    assert len(seen) == 12, "six clips in two views, none of them twice"


def test_progress_counts_clips_in_views(world: World, tmp_path: Path) -> None:
    class Bar:
        def __init__(self) -> None:
            self.begun: list[tuple[str, int, int]] = []
            self.steps: list[int] = []

        def begin(self, label: str, *, total: int, done: int = 0) -> None:
            self.begun.append((label, total, done))

        def advance(self, amount: int = 1) -> None:
            self.steps.append(amount)

        def log(self, step: int, values: Mapping[str, float]) -> None:
            raise AssertionError

    bar = Bar()
    there = elsewhere(world, tmp_path)
    made(dataclasses.replace(there, workspace=Workspace(tmp_path, monitor=bar)))
    assert bar.begun == [("precompute", 12, 0)]
    assert sum(bar.steps) == 12
    assert len(bar.steps) > 6


def test_views_that_do_not_fit_the_tokenizer_are_refused(world: World, tmp_path: Path) -> None:
    there = elsewhere(world, tmp_path)
    for change, message in (
        ({"views": {"num_frames": 24, "size_px": 32}}, r"views\.num_frames=24 and precompute\.windows do not fit .* 16 frames"),
        ({"windows": {"stride_frames": 5}}, r"stride_frames 5 must be a multiple of patching\.tubelet_frames 2"),
        ({"views": {"num_frames": 32, "size_px": 40}}, r"precompute\.views does not fit tokenizer\.model\.patching"),
    ):
        with pytest.raises(ConfigError, match=message):
            made(there, **change)


def test_a_config_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"windows\.stride_frames 48 is more than views\.num_frames 32"):
        precompute_config(windows={"stride_frames": 48})
    with pytest.raises(ValidationError, match=r"products name something twice.*: codes, priority, flow, flow"):
        precompute_config(products=["flow", {"name": "flow", "preset": "medium"}])
    assert precompute_config(products=["flow"]).product_names == {"codes", "priority", "flow"}


def test_targets_know_what_made_them(world: World) -> None:
    attributes = TargetReader(world.first.artifact).attributes
    assert attributes["tokenizer_digest"] == world.words.digest
    assert attributes["snapshot_digest"] == world.snapshots[0].digest
    assert attributes["quantizer"]["name"] == "fsq"
    assert attributes["codebook_size"] == 2**18
    assert attributes["views"]["num_frames"] == NUM_FRAMES


def test_a_second_run_gives_way_to_one_that_is_at_it_and_then_finds_the_work_done(world: World, tmp_path: Path) -> None:
    there = elsewhere(world, tmp_path)
    name = artifact.fingerprint("precompute", precompute.VERSION, precompute_config(), there.inputs())
    with there.workspace.lock("precompute", name), pytest.raises(ArtifactBusy):
        made(there)
    assert unit_counts(made(there)) == (4, 0)
    assert unit_counts(made(there)) == (0, 4)
