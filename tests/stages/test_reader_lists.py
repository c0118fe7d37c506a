"""Lists of videos, in tables and in the text form of published video models, are read row by row and refused by line."""

import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from models import extension
from stages.errors import ConfigError, SourceMissing
from stages.places import place_of
from stages.readers import Source
from stages.storage.workspace import Workspace

ROWS = [
    {"path": "a/x.mp4", "class": "jump", "tags": ["high", "far"], "score": 3},
    {"path": "b y.mp4", "class": "run", "tags": None, "score": None},
]
NO_WORKSPACE = Workspace(Path("unused"))


def read(**fields: object) -> list[Source]:
    return list(extension.load("stages.readers", fields).sources(NO_WORKSPACE))


def table(folder: Path, text: str, name: str = "list.csv", **fields: object) -> list[Source]:
    (folder / name).write_text(text)
    return read(name="list", path=str(folder / name), **fields)


def save(path: Path, kind: str) -> None:
    """``ROWS`` as a list of one kind."""
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("".join(f"{json.dumps(row)}\r\n" for row in ROWS))
    else:
        comma = "," if kind == "csv" else "\t"
        quoted = '"[""high"", ""far""]"'
        lines = (["path", "class", "tags", "score"], ["a/x.mp4", "jump", quoted, "3"], ["b y.mp4", "run", "", ""])
        path.write_text("\ufeff" + "\r\n".join(comma.join(line) for line in lines))


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_list_gives_the_same_sources(tmp_path: Path, kind: str) -> None:
    save(tmp_path / f"my.{kind}", kind)
    sources = read(name="list", path=str(tmp_path / f"my.{kind}"), root=str(tmp_path / "videos"))
    assert sources == [
        Source(
            key="a/x.mp4",
            place=place_of(tmp_path / "videos" / "a" / "x.mp4"),
            labels={"class": ("jump",), "tags": ("high", "far"), "score": ("3",)},
        ),
        Source(key="b y.mp4", place=place_of(tmp_path / "videos" / "b y.mp4"), labels={"class": ("run",)}),
    ]


def test_a_list_of_another_ending_is_read_as_told(tmp_path: Path) -> None:
    save(tmp_path / "list.txt", "tsv")
    with pytest.raises(ConfigError, match="ends in 'txt'"):
        read(name="list", path=str(tmp_path / "list.txt"))
    assert len(read(name="list", path=str(tmp_path / "list.txt"), format="tsv")) == 2


def test_paths_are_relative_to_the_list_absolute_or_urls(tmp_path: Path) -> None:
    text = f"path\nx.mp4\n{tmp_path}/sub/y.mp4\n/else/z.mp4\nfile://{tmp_path}/u.mp4\ns3://bucket/v/w.mp4\n"
    assert [(source.key, source.place.url) for source in table(tmp_path, text)] == [
        ("x.mp4", f"{tmp_path}/x.mp4"),
        ("sub/y.mp4", f"{tmp_path}/sub/y.mp4"),
        ("else/z.mp4", "/else/z.mp4"),
        ("u.mp4", f"{tmp_path}/u.mp4"),
        ("bucket/v/w.mp4", "s3://bucket/v/w.mp4"),
    ]
    remote = table(tmp_path, "path\nx.mp4\ns3://bucket/v/w.mp4\n", root="s3://bucket/v/")
    assert [(source.key, source.place.url) for source in remote] == [
        ("x.mp4", "s3://bucket/v/x.mp4"),
        ("w.mp4", "s3://bucket/v/w.mp4"),
    ]


def test_rows_with_start_and_end_become_spans_of_one_source(tmp_path: Path) -> None:
    text = "path,start_s,end_s,id,class\na.mp4,0.5,2,first,jump\na.mp4,2,3.25,,run\nb.mp4,,,whole,run\nc.mp4,,,,\n"
    first, second, third = table(tmp_path, text)
    assert [(span.native_id, span.start_s, span.end_s, span.labels) for span in first.spans or ()] == [
        ("first", 0.5, 2.0, {"class": ("jump",)}),
        ("2-3.25", 2.0, 3.25, {"class": ("run",)}),
    ]
    assert first.labels == {}
    assert (second.spans, second.labels) == (None, {"class": ("run",), "id": ("whole",)})
    assert (third.spans, third.labels) == (None, {})


def test_a_cell_holds_several_labels_only_if_a_separator_is_given(tmp_path: Path) -> None:
    assert table(tmp_path, "path,class\na.mp4,jump|run\n")[0].labels == {"class": ("jump|run",)}
    assert table(tmp_path, "path,class\na.mp4,jump|run\n", separator="|")[0].labels == {"class": ("jump", "run")}
    assert table(tmp_path, "path,class\na.mp4,[sic]\n")[0].labels == {"class": ("[sic]",)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name\na.mp4\n", "line 1: has no column 'path'"),
        ("path\n../a.mp4\n", r"line 2: names '\.\./a.mp4', which is not below"),
        ("path,class\n,jump\n", "line 2: nothing stands in column 'path'"),
        ("path\na.mp4\nb.mp4\na.mp4\n", "line 4: 'a.mp4' comes a second time; sort the list by path"),
        ("path\na.mp4\na.mp4\n", "line 3: 'a.mp4' comes a second time, and is taken whole"),
        ("path,start_s,end_s\na.mp4,0,1\na.mp4,,\n", "line 3: 'a.mp4' comes a second time, and is taken whole"),
        ("path,start_s,end_s\na.mp4,0,\n", "line 2: end_s is '', which is not a number"),
        ("path,start_s,end_s\na.mp4,1,0\n", "line 2: runs from 1 s to 0 s"),
        ("path,start_s,end_s\na.mp4,-1,2\n", "line 2: runs from -1 s"),
        ("path,start_s,end_s\na.mp4,0,inf\n", "line 2: end_s is 'inf'"),
        ("path,start_s,end_s,id\na.mp4,0,1,x\na.mp4,1,2,x\n", "line 3: 'a.mp4' has a second span 'x'"),
        ("path\nhttp://host/a.mp4\n", "line 2: http://host/a.mp4: http:// is not read"),
    ],
)
def test_rows_that_cannot_be_meant_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"list\.csv, {message}"):
        table(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.mp4"}\n{"path":\n', "line 2: is not JSON"),
        ('["a.mp4"]\n', "line 1: is .* and not an object"),
        ('{"path": 3}\n', "line 1: nothing stands in column 'path'"),
        ('{"path": "a.mp4", "class": {"name": "jump"}}\n', "line 1: column 'class' is {'name': 'jump'}; a label is"),
    ],
)
def test_json_lines_that_cannot_be_meant_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table(tmp_path, text, "list.jsonl")


def test_what_is_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"list\.parquet: is not Parquet"):
        table(tmp_path, "path\na.mp4\n", "list.parquet")
    pq.write_table(pa.table({"name": ["a.mp4"]}), tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match="has no column 'path'"):
        read(name="list", path=str(tmp_path / "list.parquet"))


def test_a_list_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceMissing, match="nowhere"):
        read(name="list", path=str(tmp_path / "nowhere.csv"))
    with pytest.raises(SourceMissing, match="names no video"):
        table(tmp_path, "path\n")


@pytest.mark.parametrize("kind", ["csv", "parquet", "jsonl"])
def test_a_long_list_is_read_as_it_goes(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"long.{kind}"
    names = [f"{number:06d}.mp4" for number in range(10_000)]
    if kind == "parquet":
        pq.write_table(pa.table({"path": names}), path, row_group_size=1000)
    elif kind == "jsonl":
        path.write_text("".join(f'{{"path": "{name}"}}\n' for name in names) + "not JSON\n")
    else:
        path.write_text("path\n" + "".join(f"{name}\n" for name in names) + "a,b\n")
    sources = iter(extension.load("stages.readers", {"name": "list", "path": str(path)}).sources(NO_WORKSPACE))
    assert [next(sources).key for _ in names[:-1]] == names[:-1], "whatever comes after them"


def test_lists_are_read_from_an_object_store() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/list.csv": b"path\na.mp4\n"})
    (source,) = read(name="list", path="memory://bucket/list.csv")
    assert source.place.url == "memory://bucket/a.mp4"
    store.rm("/bucket", recursive=True)


def peers(folder: Path, text: str, **fields: object) -> list[Source]:
    (folder / "train.csv").write_text(text)
    return read(**{"name": "path_label", "lists": {"train": str(folder / "train.csv")}, **fields})


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("my videos/a (1).mp4 3\r\nb.mp4  4 \r\n", {}),
        ("my videos/a (1).mp4\t3\nb.mp4\t4\n", {"separator": "tab"}),
        ("my videos/a (1).mp4,3\nb.mp4, 4\n", {"separator": "comma"}),
    ],
)
def test_paths_with_spaces_keep_them_since_lines_are_split_from_the_right(
    tmp_path: Path, text: str, fields: dict[str, object]
) -> None:
    first, second = peers(tmp_path, text, **fields)
    assert first == Source(
        "my videos/a (1).mp4", place_of(tmp_path / "my videos/a (1).mp4"), {"class": ("3",), "split": ("train",)}
    )
    assert (second.key, second.labels["class"]) == ("b.mp4", ("4",))


def test_every_list_is_a_split(tmp_path: Path) -> None:
    (tmp_path / "val.csv").write_text("b.mp4 1\n")
    lists = {"train": str(tmp_path / "train.csv"), "val": str(tmp_path / "val.csv")}
    sources = peers(tmp_path, "a.mp4 0\n", lists=lists, root="s3://bucket")
    assert [(source.place.url, source.labels["split"]) for source in sources] == [
        ("s3://bucket/a.mp4", ("train",)),
        ("s3://bucket/b.mp4", ("val",)),
    ]


def test_a_label_is_several_only_if_it_may_be(tmp_path: Path) -> None:
    assert peers(tmp_path, "a.mp4 1,5,7\n", multi_label=True)[0].labels["class"] == ("1", "5", "7")
    with pytest.raises(ConfigError, match=r"train\.csv, line 1: the label is '1,5,7'; set multi_label"):
        peers(tmp_path, "a.mp4 1,5,7\n")
    with pytest.raises(ConfigError, match="multi_label: commas cannot separate both"):
        peers(tmp_path, "a.mp4,1\n", multi_label=True, separator="comma")


def test_ranges_of_frames_become_spans_by_the_given_rate(tmp_path: Path) -> None:
    text = "a.mp4 0 50 1\na.mp4 50 25 2\nb.mp4 0 -1 3\nc.mp4 -1 -1 4\n"
    first, second, third = peers(tmp_path, text, columns="path start total label", fps=25.0)
    assert [(span.native_id, span.start_s, span.end_s, span.labels["class"]) for span in first.spans or ()] == [
        ("0+50", 0.0, 2.0, ("1",)),
        ("50+25", 2.0, 3.0, ("2",)),
    ]
    assert (second.spans, second.labels["class"]) == (None, ("3",))
    assert third.spans is None


def test_lists_for_pretraining_have_no_labels(tmp_path: Path) -> None:
    (source,) = peers(tmp_path, "a b.mp4 0 -1\n", columns="path start total")
    assert (source.key, source.labels) == ("a b.mp4", {"split": ("train",)})


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        ("a.mp4 0 50 1\n", {}, "line 1: takes frames 0 to 50; set fps"),
        ("a.mp4 5 -1 1\n", {"fps": 25.0}, "line 1: start 5 and total -1: give both"),
        ("a.mp4 x 50 1\n", {"fps": 25.0}, "line 1: start is 'x', which is not a whole number"),
        ("a.mp4 1\n", {}, "line 1: is 'a.mp4 1' and not 'path start total label' by space"),
        ("frames 0 50 1\n", {"fps": 25.0}, "line 1: 'frames' is a folder of images, which are not decoded"),
    ],
)
def test_ranges_that_cannot_be_meant_are_named(tmp_path: Path, text: str, fields: dict[str, object], message: str) -> None:
    (tmp_path / "frames").mkdir()
    with pytest.raises(ConfigError, match=rf"train\.csv, {message}"):
        peers(tmp_path, text, columns="path start total label", **fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4,1\n", "line 1: is 'a.mp4,1' and not 'path label' by space; set columns and separator"),
        ("a.mp4 1\nb.mp4\n", "line 2: is 'b.mp4'"),
        ("a.mp4 1\na.mp4 2\n", "line 2: 'a.mp4' comes a second time"),
        ("a.mp4 1\nb.mp4 1\na.mp4 1\n", "line 3: 'a.mp4' comes a second time; lines of one video must follow"),
        ("../a.mp4 1\n", r"line 1: names '\.\./a.mp4'"),
    ],
)
def test_lines_that_cannot_be_meant_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.csv, {message}"):
        peers(tmp_path, text)


def test_a_text_list_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="lists"):
        read(name="path_label", lists={})
