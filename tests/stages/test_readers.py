"""Readers list every source once, with a key, a place and all its labels."""

import re
import tarfile
from pathlib import Path, PurePosixPath

import fsspec
import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from models import extension
from stages.errors import ConfigError, SourceMissing
from stages.places import place_of, stamp
from stages.progress import Silent
from stages.readers import ReaderConfig, Source, folder, synthetic
from stages.storage.boxes import read_boxes
from stages.storage.workspace import Workspace
from stages.video_decode import decode

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


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _tar(path: Path) -> None:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("a.mp4"))


def made(name: str, root: Path) -> dict[str, object]:
    """The fields of a small set of one reader, whose annotations are written below ``root``."""
    official = {"annotations": str(root), "videos": str(root / "videos")}
    kinetics = "label,youtube_id,time_start,time_end,split\njump,a,0,10,train\n"
    epic = (
        "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class,all_noun_classes\n"
    )
    files: dict[str, dict[str, str]] = {
        "folder": {"videos/a.mp4": "", "videos/b/a.mp4": ""},
        "list": {"list.csv": "path\na.mp4\nb/a.mp4\n"},
        "path_label": {"train.csv": "a.mp4 1\n"},
        "kinetics": {"train.csv": kinetics, "val.csv": kinetics.replace(",a,", ",b,")},
        "something_something_v2": {
            "train.json": '[{"id": "1", "template": "Holding [something]"}]',
            "validation.json": "[]",
            "labels.json": '{"Holding something": "0"}',
        },
        "epic_kitchens_100": {
            "EPIC_100_train.csv": epic + "P01_01_0,P01,P01_01,00:00:00.14,00:00:03.37,open door,0,0,[0]\n",
            "EPIC_100_validation.csv": epic,
            "EPIC_100_verb_classes.csv": "id,key\n0,open\n",
            "EPIC_100_noun_classes.csv": "id,key\n0,door\n",
        },
        "diving48": {
            "Diving48_V2_train.json": '[{"vid_name": "a_0", "label": 0}]',
            "Diving48_V2_test.json": "[]",
            "Diving48_vocab.json": '[["Back", "15som", "NoTwis", "PIKE"]]',
        },
        "ucf101": {"classInd.txt": "1 Jump\n", "trainlist01.txt": "Jump/v_Jump_g01_c01.avi 1\n", "testlist01.txt": ""},
        "hmdb51": {"jump_test_split1.txt": "a.avi 1\n"},
        "finegym": {
            "finegym_annotation_info_v1.1.json": '{"v": {"E_0_9": {"timestamps": [[0, 9]], "segments":'
            ' {"A_0_1": {"timestamps": [[0, 1]]}}}}}',
            "gym99_train_element_v1.1.txt": "v_E_0_9_A_0_1 0\n",
            "gym99_val_element.txt": "",
            "gym99_categories.txt": "Clabel: 0; set: 1; (VT) salto\n",
        },
        "ava": {
            "ava_train_v2.2.csv": "a,0902,0.1,0.1,0.2,0.2,1,0\n",
            "ava_val_v2.2.csv": "",
            "ava_train_excluded_timestamps_v2.2.csv": "",
            "ava_val_excluded_timestamps_v2.2.csv": "",
            "ava_action_list_v2.2_for_activitynet_2019.pbtxt": 'item {\n  name: "stand"\n  id: 1\n}\n',
        },
    }
    (root / "videos").mkdir()
    for path, text in files.get(name, {}).items():
        written(root / path, text)
    if name == "webdataset":
        _tar(root / "0.tar")
    own: dict[str, dict[str, object]] = {
        "folder": {"path": str(root / "videos")},
        "list": {"path": str(root / "list.csv")},
        "path_label": {"lists": {"train": str(root / "train.csv")}},
        "webdataset": {"path": str(root / "0.tar")},
        "synthetic": SMALL,
    }
    return {"name": name, **own.get(name, official)}


@pytest.mark.parametrize("name", extension.names("stages.readers"))
class TestEveryReader:
    """What a reader is held to, whatever it reads."""

    def test_is_named_in_a_recipe_as_its_file_is_called(self, name: str, tmp_path: Path) -> None:
        config = extension.load("stages.readers", made(name, tmp_path))
        assert isinstance(config, ReaderConfig)
        assert config.model_dump()["name"] == name
        assert config.model_fields_set <= set(type(config).model_fields)
        assert type(config).model_validate(config.model_dump(mode="json")) == config

    def test_names_its_clips_with_plain_characters(self, name: str, tmp_path: Path) -> None:
        root = tmp_path / "my set, (1)"
        root.mkdir()
        assert re.fullmatch(r"[A-Za-z0-9_-]+", extension.load("stages.readers", made(name, root)).dataset_name())

    def test_says_what_each_parameter_means_and_refuses_others(self, name: str, tmp_path: Path) -> None:
        fields = made(name, tmp_path)
        config = type(extension.load("stages.readers", fields))
        assert config.__doc__
        assert not [field for field, about in config.model_fields.items() if not about.description]
        assert set(config.model_fields) >= getattr(config, "EXECUTION", frozenset())
        with pytest.raises(ValidationError, match="surprise"):
            extension.load("stages.readers", {**fields, "surprise": 1})

    def test_lists_each_source_once_and_again_the_same(self, name: str, tmp_path: Path) -> None:
        config = extension.load("stages.readers", made(name, tmp_path))
        workspace = Workspace(tmp_path / "workspace")
        sources = list(config.sources(workspace))
        assert sources
        assert len({source.key for source in sources}) == len(sources)
        assert list(config.sources(workspace)) == sources
        for source in sources:
            assert Path(source.place.url).is_absolute()
            assert not PurePosixPath(source.key).is_absolute()
            for labels in (source.labels, *(span.labels for span in source.spans or ())):
                assert all(isinstance(values, tuple) and values and all(values) for values in labels.values())


def test_a_folder_gives_its_videos_at_any_depth_and_leaves_the_rest(tmp_path: Path) -> None:
    for name in ("b.mp4", "a/c.MKV", "notes.txt", ".hidden.mp4", ".hidden/d.mp4"):
        written(tmp_path / name, "")
    sources = listed(tmp_path)
    assert sorted(sources) == ["a/c.MKV", "b.mp4"]
    assert sources["a/c.MKV"].place == place_of(tmp_path / "a" / "c.MKV")
    assert sources["b.mp4"].labels == {}


def test_every_column_of_the_labels_comes_along_unless_its_cell_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "labels.csv").write_text('path,class,note\na.mp4,jump,"high, and far"\nraw/b.bin,run,\n', encoding="utf-8-sig")
    sources = listed(tmp_path)
    assert sources["a.mp4"].labels == {"class": ("jump",), "note": ("high, and far",)}
    assert sources["raw/b.bin"].labels == {"class": ("run",)}, "what labels name is a source, whatever it is called"
    assert sources["raw/b.bin"].place == place_of(tmp_path / "raw" / "b.bin")


def test_a_cell_holds_several_labels_only_if_a_separator_is_given(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,class\na.mp4,jump|run | \n")
    assert listed(tmp_path)["a.mp4"].labels == {"class": ("jump|run |",)}
    assert listed(tmp_path, separator="|")["a.mp4"].labels == {"class": ("jump", "run")}


def test_labels_may_have_another_name_but_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "mine.csv").write_text("path,class\na.mp4,jump\n")
    assert listed(tmp_path, labels="mine.csv")["a.mp4"].labels == {"class": ("jump",)}
    with pytest.raises(ConfigError, match=r"other\.csv: no such file"):
        listed(tmp_path, labels="other.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,class\na.mp4,jump\n", "line 1: has no column 'path'"),
        ("path,class,class\na.mp4,jump,run\n", "line 1: a column comes twice"),
        ("path,class\n../a.mp4,jump\n", r"line 2: names '\.\./a.mp4', which is not below the folder"),
        ("path,class\n/a.mp4,jump\n", "line 2: names '/a.mp4', which is not below the folder"),
        ("path,class\na.mp4,jump\n./a.mp4,run\n", "line 3: names 'a.mp4' a second time"),
        ("path,class\na.mp4,jump,high\n", "line 2: has 3 fields and not the 2"),
        ("path,class\na.mp4\n", "line 2: has 1 fields and not the 2"),
        ('path,class\na.mp4,"jump\n', "line 2: is not CSV"),
        ("path,class\na.mp4,\xff\n", "is not a text in UTF-8"),
    ],
)
def test_labels_that_cannot_be_meant_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=rf"labels\.csv.*{message}"):
        listed(tmp_path)


def test_a_name_that_is_no_text_becomes_a_key_that_is(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.mp4").touch()
    sources = listed(tmp_path)
    assert list(sources) == ["caf\\xe9.mp4"]
    assert Path(sources["caf\\xe9.mp4"].place.url).exists()


def test_a_missing_or_empty_folder_is_named(tmp_path: Path) -> None:
    for name in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(SourceMissing, match=name):
            listed(tmp_path / name)


def test_annotations_without_the_folder_of_their_videos_are_no_data_set(tmp_path: Path) -> None:
    config = extension.load("stages.readers", {**made("ucf101", tmp_path), "videos": str(tmp_path / "vidoes")})
    with pytest.raises(SourceMissing, match="vidoes: no such folder"):
        list(config.sources(Workspace(tmp_path)))


def test_annotations_that_are_not_there_are_named(tmp_path: Path) -> None:
    config = extension.load("stages.readers", {**made("ucf101", tmp_path), "fold": 3})
    with pytest.raises(SourceMissing, match=r"holds none of trainlist03\.txt"):
        list(config.sources(Workspace(tmp_path)))


@pytest.mark.parametrize("file", ["{name}.mp4", "{id:d}.mp4", "{id", "{}.mp4", "{id.x}.mp4"])
def test_a_template_that_cannot_be_filled_in_is_refused_with_the_fields_it_may_name(file: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"may name \{id\}, \{class\}"):
        extension.load("stages.readers", {**made("ucf101", tmp_path), "file": file})


def test_videos_are_found_whatever_they_end_in_if_the_template_says_so(tmp_path: Path) -> None:
    fields = {**made("ucf101", tmp_path), "file": "{class}/{id}.*"}
    config = extension.load("stages.readers", fields)
    assert [source.key for source in config.sources(Workspace(tmp_path))] == ["Jump/v_Jump_g01_c01.mp4"], "missing, and listed"
    for suffix in ("mkv", "wav", "json"):
        written(tmp_path / "videos" / "Jump" / f"v_Jump_g01_c01.{suffix}", "")
    assert [source.key for source in config.sources(Workspace(tmp_path))] == ["Jump/v_Jump_g01_c01.mkv"]
    written(tmp_path / "videos" / "Jump" / "v_Jump_g01_c01.avi", "")
    with pytest.raises(ConfigError, match=r"trainlist01\.txt, line 1: .*c01\.avi' and .*c01\.mkv' are both there"):
        list(config.sources(Workspace(tmp_path)))


def test_official_annotations_are_read_from_an_object_store() -> None:
    store = fsspec.filesystem("memory")
    files = {"classInd.txt": b"1 Jump\n", "trainlist01.txt": b"Jump/v_Jump_g01_c01.avi 1\n", "testlist01.txt": b""}
    store.pipe({f"/bucket/lists/{name}": data for name, data in files.items()})
    config = extension.load(
        "stages.readers", {"name": "ucf101", "annotations": "memory://bucket/lists", "videos": "memory://bucket/videos/"}
    )
    source = next(iter(config.sources(Workspace(Path("unused")))))
    assert source.place == place_of("memory://bucket/videos/Jump/v_Jump_g01_c01.avi")
    store.rm("/bucket", recursive=True)


def test_several_folders_keep_their_videos_apart_by_name(tmp_path: Path) -> None:
    for name in ("one/a.mp4", "two/a.mp4"):
        written(tmp_path / name, "")
    written(tmp_path / "two" / "labels.csv", "path,class\na.mp4,jump\n")
    sources = listed(tmp_path, path=[tmp_path / "one", tmp_path / "two"])
    assert {key: dict(source.labels) for key, source in sources.items()} == {"one/a.mp4": {}, "two/a.mp4": {"class": ("jump",)}}
    assert folder.Config(path=(str(tmp_path / "one"), str(tmp_path / "two"))).dataset_name() == "one-two"


def test_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="have the same name"):
        folder.Config(path=(str(tmp_path / "one" / "videos"), str(tmp_path / "two" / "videos")))


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.mp4", ["a.mp4"]),
        ("s*", ["set1/b.mp4", "set1/deep/c.mp4", "set2/b.mp4"]),
        ("set[2]/*.mp4", ["set2/b.mp4"]),
        ("**/b.mp4", ["set1/b.mp4", "set2/b.mp4"]),
        ("set?/deep", ["set1/deep/c.mp4"]),
    ],
)
def test_a_glob_takes_files_that_match_and_all_below_folders_that_do(tmp_path: Path, pattern: str, keys: list[str]) -> None:
    root = tmp_path / "videos"
    for name in ("a.mp4", "set1/b.mp4", "set1/deep/c.mp4", "set2/b.mp4"):
        written(root / name, "")
    written(root / "labels.csv", "path,class\nset1/b.mp4,jump\nset2/b.mp4,jump\n")
    assert sorted(listed(tmp_path, path=root / pattern)) == keys


def test_a_folder_with_wildcards_in_its_name_is_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "set [1]" / "a.mp4", "")
    assert list(listed(tmp_path / "set [1]")) == ["a.mp4"]


def test_a_prefix_of_an_object_store_is_listed_with_its_labels_and_versions() -> None:
    store = fsspec.filesystem("memory")
    store.pipe(
        {"/bucket/set/a.mp4": b"1", "/bucket/set/b/c.mp4": b"2", "/bucket/set/labels.csv": b"path,class\nb/c.mp4,jump\n"}
    )
    config = folder.Config(path="memory://bucket/set/")
    sources = {source.key: source for source in config.sources(Workspace(Path("unused")))}
    assert config.dataset_name() == "set"
    assert sorted(sources) == ["a.mp4", "b/c.mp4"]
    assert sources["b/c.mp4"].labels == {"class": ("jump",)}
    assert all(source.stamp == stamp(source.place) and source.stamp for source in sources.values())
    store.rm("/bucket", recursive=True)


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
        frames = decode(Path(source.place.url).read_bytes())
        rendering = synthetic._scenes.render(wish.scene, config.scenes)
        assert frames.shape == rendering.clip.shape
        assert np.abs(frames.astype(float) - rendering.clip).mean() < 8


def test_synthetic_labels_and_boxes_belong_to_the_videos(rendered: tuple[Workspace, list[Source]]) -> None:
    workspace, sources = rendered
    assert [source.labels["split"] for source in sources] == [("test",)] * 2 + [("train",)] * 3
    assert len({source.labels["group"] for source in sources}) == 5
    for source in sources:
        assert source.labels["class"] == (f"{source.labels['first'][0]}-{source.labels['last'][0]}",)
        assert {"marked", "shape"} <= set(source.labels)
    boxes = read_boxes(next(workspace.root.glob("sources/*/boxes.parquet")))
    assert list(boxes) == [source.key for source in sources]
    for source in sources:
        box, width_px = boxes[source.key], 12 * (1.3 if source.labels["shape"] == ("diamond",) else 1)
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


def test_the_documentation_shows_every_reader_with_parameters_it_has() -> None:
    text = (Path(__file__).parents[2] / "docs" / "readers.md").read_text()
    shown = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)]
    for value in shown:
        extension.load("stages.readers", value)
    names = set(extension.names("stages.readers"))
    assert {value["name"] for value in shown} == names - {"synthetic"}
    assert set(re.findall(r"^\| `(?!name)(\w+)` \| [^|]* \| a ", text, flags=re.MULTILINE)) == names
