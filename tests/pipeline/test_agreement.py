"""What ``lvmae plan`` and ``status`` say of the next run is what that run then does: scripted scenarios with real stages.

Most scenarios stop after pretraining, and on clips of a folder, with so few steps that they take a second; those with all six
stages start from the finished root that all tests share.
"""

import json
import os
import shutil
from pathlib import Path

import pytest

from stages import quarantine, shard
from stages.errors import ArtifactDamaged
from stages.storage.clips import Dataset
from tests.pipeline.scenarios import TRAINED, Scene, agree, copy_of
from tests.pipeline.test_command import DEMO, invoke

NOTHING = dict.fromkeys(TRAINED, "reuse 0") | {"shard": "look 0"}
ANEW = {"shard": "run 1", "tokenizer": "run 2", "precompute": "run at most 4", "pretrain": "run 4"}


@pytest.fixture(scope="module")
def trained(smoke_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with videos and a root in which a recipe was pretrained on them; one file is no video."""
    place = tmp_path_factory.mktemp("trained")
    (videos,) = (smoke_root / "sources").iterdir()
    shutil.copytree(videos, place / "all")
    (place / "videos").mkdir()
    for name in ("labels.csv", *sorted(f"videos/{path.name}" for path in (videos / "videos").iterdir())[5:10]):
        target = place / "videos" / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy2(videos / name, target)
    _forget_absent(place / "videos")
    (place / "videos" / "broken.mp4").write_bytes(b"no video at all")
    scene = Scene(place / "root", place / "videos")
    foreseen = agree(scene, scene.request(), TRAINED)
    assert foreseen == {**ANEW, "shard": "run 2"}
    return place


@pytest.fixture
def on_folder(trained: Path, tmp_path: Path) -> Scene:
    shutil.copytree(trained / "videos", tmp_path / "videos")
    return Scene(copy_of(trained / "root", tmp_path / "root"), tmp_path / "videos")


@pytest.fixture
def on_smoke(smoke_root: Path, tmp_path: Path) -> Scene:
    return Scene(copy_of(smoke_root, tmp_path / "root"))


def _forget_absent(folder: Path) -> None:
    """Keep the labels of videos that are there: those of others would be missing sources."""
    lines = (folder / "labels.csv").read_text().splitlines()
    kept = [line for line in lines[1:] if (folder / line.partition(",")[0]).exists()]
    (folder / "labels.csv").write_text("\n".join([lines[0], *kept]) + "\n")


def _land(scene: Scene, trained: Path, number: int, name: str) -> None:
    """Another video lands in the folder, whole."""
    source = sorted((trained / "all" / "videos").iterdir())[number]
    assert scene.source
    shutil.copy(source, scene.source / "arriving")
    (scene.source / "arriving").rename(scene.source / name)


def _artifact(scene: Scene, folder: str) -> Path:
    (found,) = (path for path in (scene.root / folder).iterdir() if path.is_dir())
    return found


def test_everything_is_made(on_smoke: Scene) -> None:
    assert set(agree(on_smoke, on_smoke.request()).values()) == {"look 0", "reuse 0"}


def test_status_says_the_same_as_plan(on_smoke: Scene) -> None:
    arguments = (*DEMO, "--overlay", "smoke", "--set", "pretrain.seed=3", "--json", "--root", str(on_smoke.root))
    planned = json.loads(invoke("plan", *arguments).stdout)["stages"]
    assert json.loads(invoke("status", *arguments).stdout)["next"] == planned
    assert [(one["stage"], one["action"], one["units"]) for one in planned[2:4]] == [
        ("precompute", "reuse", 0),
        ("pretrain", "run", 12),
    ]


@pytest.mark.parametrize(
    ("override", "stages", "expected"),
    [
        ("pretrain.seed=5", ("pretrain",), {"pretrain": "run 12"}),
        ("pretrain.optimization.learning_rate=0.001", ("pretrain", "export"), {"pretrain": "run 12", "export": "run 2"}),
        ("precompute.views.num_views=3", ("precompute", "pretrain"), {"precompute": "run 3", "pretrain": "run 12"}),
        ("precompute.num_workers=1", TRAINED, NOTHING),
        ("export.backends=[safetensors]", ("export",), {"export": "run 1"}),
        ("pretrain.target={name: pixels}", ("precompute", "pretrain"), {"precompute": "reuse 0", "pretrain": "run 12"}),
    ],
)
def test_a_setting_is_changed(override: str, stages: tuple[str, ...], expected: dict[str, str], on_smoke: Scene) -> None:
    assert agree(on_smoke, on_smoke.request(override), stages) == expected


def test_a_setting_of_the_clips_is_changed(on_folder: Scene) -> None:
    foreseen = agree(on_folder, on_folder.request("shard.clip.min_frames=20"), TRAINED)
    assert foreseen == {**ANEW, "shard": "run 2"}


def test_the_seed_of_the_tokenizer_is_changed(on_folder: Scene) -> None:
    foreseen = agree(on_folder, on_folder.request("tokenizer.seed=1"), TRAINED)
    assert foreseen == {"shard": "look 0", "tokenizer": "run 2", "precompute": "run 4", "pretrain": "run 4"}


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("targets", {"precompute": "run 4", "pretrain": "wait at most 4"}),
        ("tokenizers", {"tokenizer": "run 2", "precompute": "wait at most 4", "pretrain": "wait at most 4"}),
        (
            "clips",
            {"shard": "run 2", **dict(zip(TRAINED[1:], ("wait at most 2", "wait at most 4", "wait at most 4"), strict=True))},
        ),
    ],
)
def test_an_artifact_is_deleted_and_comes_out_the_same(folder: str, expected: dict[str, str], on_folder: Scene) -> None:
    shutil.rmtree(_artifact(on_folder, folder))
    assert agree(on_folder, on_folder.request(), TRAINED) == NOTHING | expected


def test_a_file_of_an_artifact_is_damaged_and_nothing_reads_it(on_smoke: Scene) -> None:
    (_artifact(on_smoke, "pretrain") / "decoder.safetensors").write_bytes(b"damaged")
    assert agree(on_smoke, on_smoke.request(), TRAINED) == NOTHING
    shown = json.loads(invoke("status", "--json", "--root", str(on_smoke.root)).stdout)["artifacts"]
    assert {one["stage"]: one["state"] for one in shown}["pretrain"] == "damaged"


def test_a_manifest_is_damaged_and_both_say_so(on_smoke: Scene) -> None:
    (_artifact(on_smoke, "pretrain") / "manifest.json").write_text("{}")
    request = on_smoke.request()
    with pytest.raises(ArtifactDamaged, match="not a manifest"):
        on_smoke.foreseen(request, TRAINED)
    with pytest.raises(ArtifactDamaged, match="not a manifest"):
        on_smoke.run(request, TRAINED)


def test_videos_landed(on_folder: Scene, trained: Path) -> None:
    for number in range(10, 14):
        _land(on_folder, trained, number, f"new-{number}.mp4")
    foreseen = agree(on_folder, on_folder.request(), TRAINED)
    assert foreseen == {**ANEW, "shard": "run 2", "precompute": "run at most 8"}


def test_videos_landed_and_the_recipe_goes_on_from_what_it_has(on_folder: Scene, trained: Path) -> None:
    _land(on_folder, trained, 12, "new.mp4")
    keeps = on_folder.request("tokenizer.on_new_data=keep", "pretrain.on_new_data=continue")
    foreseen = agree(on_folder, keeps, TRAINED)
    assert foreseen == {**ANEW, "tokenizer": "run 0", "precompute": "run at most 2"}


def test_an_upload_is_not_complete(on_folder: Scene, trained: Path) -> None:
    _land(on_folder, trained, 12, "new.mp4")
    assert on_folder.source
    whole = (on_folder.source / "new.mp4").read_bytes()
    (on_folder.source / "new.mp4").write_bytes(whole[: len(whole) // 2])
    assert agree(on_folder, on_folder.request("shard.abandoned_s=3600"), TRAINED) == NOTHING
    (on_folder.source / "new.mp4").write_bytes(whole)
    assert agree(on_folder, on_folder.request(), ("shard",)) == {"shard": "run 1"}


def test_a_video_is_touched_and_another_is_gone(on_folder: Scene) -> None:
    assert on_folder.source
    first, second, *_ = sorted((on_folder.source / "videos").iterdir())
    os.utime(first)
    second.unlink()
    _forget_absent(on_folder.source)
    assert agree(on_folder, on_folder.request(), TRAINED) == NOTHING


def test_a_video_is_overwritten_with_another(on_folder: Scene, trained: Path) -> None:
    assert on_folder.source
    _land(on_folder, trained, 14, sorted((on_folder.source / "videos").iterdir())[0].relative_to(on_folder.source).as_posix())
    assert agree(on_folder, on_folder.request(), ("shard",)) == {"shard": "run 1"}


def test_a_copy_of_a_video_lands(on_folder: Scene, trained: Path) -> None:
    _land(on_folder, trained, 6, "copy.mp4")
    assert agree(on_folder, on_folder.request(), TRAINED) == {**ANEW, "precompute": "run at most 6"}


def test_what_is_in_quarantine_is_tried_again(on_folder: Scene) -> None:
    dataset = Dataset(on_folder.workspace, shard.dataset_name(on_folder.request().load().shard))
    (case,) = quarantine.cases(dataset)
    quarantine.retry(dataset, [case])
    assert agree(on_folder, on_folder.request(), ("shard",)) == {"shard": "run 1"}


def test_an_earlier_snapshot_is_asked_for(on_folder: Scene, trained: Path) -> None:
    _land(on_folder, trained, 12, "new.mp4")
    agree(on_folder, on_folder.request(), ("shard",))
    later = ("tokenizer", "precompute", "pretrain")
    assert agree(on_folder, on_folder.request(snapshot="1"), later) == dict.fromkeys(later, "reuse 0")
    assert agree(on_folder, on_folder.request(snapshot="2"), ("tokenizer",)) == {"tokenizer": "run 2"}


@pytest.mark.parametrize(
    ("stage", "after", "expected"), [("pretrain", 7, ["run 6"]), ("precompute", 30, ["run 2", "run 3", "run 4"])]
)
def test_a_run_is_killed_in_the_middle(stage: str, after: int, expected: list[str], on_smoke: Scene) -> None:
    request = on_smoke.request("pretrain.seed=5")
    if stage == "precompute":
        shutil.rmtree(_artifact(on_smoke, "targets"))
    on_smoke.killed(request, (stage,), stage=stage, after=after)
    assert agree(on_smoke, request, (stage,))[stage] in expected


def test_a_run_is_killed_between_two_shards(on_folder: Scene, trained: Path) -> None:
    for number in range(10, 16):
        _land(on_folder, trained, number, f"new-{number}.mp4")
    request = on_folder.request()
    on_folder.killed(request, ("shard",), stage="shard", after=1)
    assert agree(on_folder, request, ("shard",)) == {"shard": "run 1"}


def test_a_run_is_killed_before_the_snapshot(on_folder: Scene, trained: Path) -> None:
    _land(on_folder, trained, 12, "new.mp4")
    request = on_folder.request()
    on_folder.killed(request, ("shard",), stage="shard", after=1)
    assert agree(on_folder, request, TRAINED) == {**ANEW, "shard": "run 0", "precompute": "run at most 6"}
