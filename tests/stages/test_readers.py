"""Readers list every source once, with a key, a path and all its labels."""

from pathlib import Path

import numpy as np
import pytest

from models import extension
from stages import video
from stages.errors import ConfigError, SourceMissing
from stages.progress import Silent
from stages.readers import ReaderConfig, Source, folder, synthetic
from stages.storage.boxes import read_boxes
from stages.storage.workspace import Workspace

SCENES = {"num_frames": 8, "size_px": 32, "object_px": 12.0}
SMALL = {"scenes": SCENES, "num_train": 3, "num_test": 2, "preset": "ultrafast", "num_workers": 2}


class KillAfter(Silent):
    """Ends the run after a number of rendered videos."""

    def __init__(self, amount: int) -> None:
        self.left = amount

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


def listed(root: Path, **fields: object) -> dict[str, Source]:
    config = folder.Config.model_validate({"path": root, **fields})
    sources = list(config.sources(Workspace(root / "workspace")))
    assert len({source.key for source in sources}) == len(sources)
    return {source.key: source for source in sources}


@pytest.mark.parametrize("name", extension.names("stages.readers"))
def test_every_reader_is_named_in_a_recipe_as_its_file_is_called(name: str, tmp_path: Path) -> None:
    config = extension.load("stages.readers", {"name": name, **({"path": tmp_path / "my set"} if name == "folder" else {})})
    assert isinstance(config, ReaderConfig)
    assert config.model_dump()["name"] == name
    assert config.dataset_name().replace("_", "").replace("-", "").isalnum()
    assert config.dataset_name() == {"folder": "my_set"}.get(name, name)


def test_a_folder_gives_its_videos_at_any_depth_and_leaves_the_rest(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MKV", "notes.txt", ".hidden.mp4", ".hidden/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sources = listed(tmp_path)
    assert sorted(sources) == ["a/c.MKV", "b.mp4"]
    assert sources["a/c.MKV"].path == tmp_path / "a" / "c.MKV"
    assert sources["b.mp4"].labels == {}


def test_every_column_of_the_labels_comes_along(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "labels.csv").write_text('path,class,note\na.mp4,jump,"high, and far"\nraw/b.bin,run,\n', encoding="utf-8-sig")
    sources = listed(tmp_path)
    assert sources["a.mp4"].labels == {"class": "jump", "note": "high, and far"}
    assert sources["raw/b.bin"].labels == {"class": "run", "note": ""}, "what labels name is a source, whatever it is called"


def test_labels_may_have_another_name_but_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "mine.csv").write_text("path,class\na.mp4,jump\n")
    assert listed(tmp_path, labels="mine.csv")["a.mp4"].labels == {"class": "jump"}
    with pytest.raises(ConfigError, match=r"other\.csv: no such file"):
        listed(tmp_path, labels="other.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.mp4,jump\n", "no column 'path'"),
        ("path,class\n../a.mp4,jump\n", "row 2 names '../a.mp4', which is not below the folder"),
        ("path,class\n/a.mp4,jump\n", "row 2 names '/a.mp4', which is not below the folder"),
        ("path,class\na.mp4,jump\n./a.mp4,run\n", "row 3 names 'a.mp4' a second time"),
        ("path,class\na.mp4,jump,high\n", "row 2 has not the 2 fields"),
        ("path,class\na.mp4\n", "row 2 has not the 2 fields"),
        ("path,class\na.mp4,\xff\n", "not a CSV in UTF-8"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path)


def test_a_name_that_is_no_text_becomes_a_key_that_is(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").touch()
    sources = listed(tmp_path)
    assert list(sources) == ["caf\\xe9.mp4"]
    assert sources["caf\\xe9.mp4"].path.exists()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SourceMissing, match=name):
            listed(tmp_path / name)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, list[Source]]:
    """A workspace in which a small synthetic set was made, and its sources."""
    workspace = Workspace(tmp_path_factory.mktemp("synthetic"))
    return workspace, list(synthetic.Config.model_validate(SMALL).sources(workspace))


def test_synthetic_videos_show_their_scenes(rendered: tuple[Workspace, list[Source]]) -> None:
    config = synthetic.Config.model_validate(SMALL)
    _, sources = rendered
    videos = synthetic.videos(config)
    assert [source.key for source in sources] == [video.key for video in videos]
    for source, wish in zip(sources, videos, strict=True):
        frames = video.decode(source.path.read_bytes())
        rendering = synthetic._scenes.render(wish.scene, config.scenes)
        assert frames.shape == rendering.clip.shape
        assert np.abs(frames.astype(float) - rendering.clip).mean() < 8


def test_synthetic_labels_and_boxes_belong_to_the_videos(rendered: tuple[Workspace, list[Source]]) -> None:
    workspace, sources = rendered
    assert [source.labels["split"] for source in sources] == ["test"] * 2 + ["train"] * 3
    assert len({source.labels["group"] for source in sources}) == 5
    for source in sources:
        assert source.labels["class"] == f"{source.labels['first']}-{source.labels['last']}"
        assert {"marked", "shape"} <= set(source.labels)
    boxes = read_boxes(next(workspace.root.glob("sources/*/boxes.parquet")))
    assert list(boxes) == [source.key for source in sources]
    for source in sources:
        box, width_px = boxes[source.key], 12 * (1.3 if source.labels["shape"] == "diamond" else 1)
        assert box.shape == (8, 4)
        assert np.allclose(box[:, 2] - box[:, 0], width_px)


def test_a_synthetic_set_that_was_interrupted_is_finished_with_the_same_bytes(
    rendered: tuple[Workspace, list[Source]], tmp_path: Path
) -> None:
    config = synthetic.Config.model_validate(SMALL)
    with pytest.raises(KeyboardInterrupt):
        list(config.sources(Workspace(tmp_path, monitor=KillAfter(1))))
    assert not list(tmp_path.rglob("labels.csv"))
    list(config.sources(Workspace(tmp_path)))
    unbroken, finished = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (rendered[0].root, tmp_path)
    )
    assert finished == unbroken


def test_a_larger_synthetic_set_holds_the_same_scenes(rendered: tuple[Workspace, list[Source]]) -> None:
    small = {video.key: video.scene.number for video in synthetic.videos(synthetic.Config.model_validate(SMALL))}
    grown = synthetic.Config.model_validate({**SMALL, "num_train": 5, "num_test": 4})
    large = {video.key: video.scene.number for video in synthetic.videos(grown)}
    assert small.items() <= large.items()
    assert len(set(large.values())) == len(large)
