"""Foreign tars are read where they lie; whatever is cut, damaged, compressed, or more than plain files is refused by name."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import webdataset

from stages import places
from stages.errors import ConfigError, SourceMissing
from stages.places import digest, opened
from stages.readers import Source
from stages.readers import webdataset as reader
from stages.storage.workspace import Workspace
from tests.s3 import Emulator, emulator

VIDEO = b"not really a video, but bytes " * 40


def read(path: object, **fields: object) -> list[Source]:
    return list(reader.Config.model_validate({"path": str(path), **fields}).sources(Workspace(Path("unused"))))


def info(name: str, size: int = 0, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size = size
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar(members: dict[str, bytes], *, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """A tar with these files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for name, content in members.items():
            archive.addfile(info(name, len(content)), io.BytesIO(content))
    return data.getvalue()


SAMPLE = {
    "000.mp4": VIDEO,
    "000.json": json.dumps(
        {"videoid": "x", "n": 3, "ok": True, "tags": ["a", "b"], "clips": [[0, 1]], "m": {}, "e": None}
    ).encode(),
    "000.txt": b"a cat, jumping\n",
    "000.cls": b"7",
    "000.m4a": b"sound",
}


def contents(source: Source) -> bytes:
    with opened(source.place) as file:
        return file.read()


def test_every_video_is_a_source_at_its_place_in_the_tar(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({**SAMPLE, "001.webm": VIDEO[::-1], "001.txt": b"", "readme.md": b"x"}))
    first, second = read(tmp_path / "0.tar")
    assert (first.key, contents(first)) == ("0.tar/000.mp4", VIDEO)
    assert (second.key, contents(second)) == ("0.tar/001.webm", VIDEO[::-1])
    assert digest(second.place)[1] == len(VIDEO)
    assert first.labels == {
        "videoid": ("x",),
        "n": ("3",),
        "ok": ("true",),
        "tags": ("a", "b"),
        "caption": ("a cat, jumping",),
        "class": ("7",),
    }
    assert second.labels == {}


def test_labels_are_those_of_the_sample_and_only_the_wanted_ones(tmp_path: Path) -> None:
    members = {"v.1.mp4": VIDEO, "v.2.MP4": VIDEO, "v.json": b'{"a": 1, "b": 2}', "d/v.mp4": VIDEO, "d/v.json": b'{"a": 3}'}
    (tmp_path / "0.tar").write_bytes(tar(members))
    assert {source.key: source.labels for source in read(tmp_path / "0.tar", columns=["a"])} == {
        "0.tar/v.1.mp4": {"a": ("1",)},
        "0.tar/v.2.MP4": {"a": ("1",)},
        "0.tar/d/v.mp4": {"a": ("3",)},
    }


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "0.tar")) as writer:
        writer.write({"__key__": "0001", "mp4": VIDEO, "json": {"class": "jump"}, "txt": "a cat"})
    (source,) = read(tmp_path / "0.tar")
    assert (source.key, contents(source)) == ("0.tar/0001.mp4", VIDEO)
    assert source.labels == {"class": ("jump",), "caption": ("a cat",)}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_are_read_in_every_format(tmp_path: Path, form: int) -> None:
    name = f"{'ordner/' * 30}käse.mp4"
    (tmp_path / "0.tar").write_bytes(tar({name: VIDEO}, form=form))
    (source,) = read(tmp_path / "0.tar")
    assert (source.key, contents(source)) == (f"0.tar/{name}", VIDEO)


def test_tars_are_found_in_a_folder_and_by_glob(tmp_path: Path) -> None:
    for name in ("b/1.tar", "0.tar", "2.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tar({"x.mp4": VIDEO}))
    (tmp_path / "notes.txt").touch()
    assert [source.key for source in read(tmp_path)] == ["0.tar/x.mp4", "2.tar/x.mp4", "b/1.tar/x.mp4"]
    assert [source.key for source in read(tmp_path / "[01].tar")] == ["0.tar/x.mp4"]


def test_tars_are_read_from_an_object_store_with_the_version_they_have() -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/t/0.tar": tar(SAMPLE), "/bucket/t/1.tar": tar(SAMPLE)})
    first, second = read("memory://bucket/t")
    assert (first.key, second.key) == ("0.tar/000.mp4", "1.tar/000.mp4")
    assert contents(second) == VIDEO
    assert first.stamp
    (alone,) = read("memory://bucket/t/1.tar")
    assert (alone.key, contents(alone)) == ("1.tar/000.mp4", VIDEO)
    store.rm("/bucket", recursive=True)


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An S3 server, found through the environment."""
    with emulator(tmp_path / "s3.txt", bucket="tars") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        places._client.cache_clear()
        yield server
    places._client.cache_clear()


def test_tars_are_read_from_s3_by_ranges_and_found_by_glob(s3: Emulator) -> None:
    for name in ("0", "1"):
        s3.client.put_object(Bucket="tars", Key=f"t/{name}.tar", Body=tar(SAMPLE))
    (first,) = read("s3://tars/t/[0].tar")
    assert (first.key, first.place.url, contents(first)) == ("0.tar/000.mp4", "s3://tars/t/0.tar", VIDEO)
    (second,) = read("s3://tars/t/1.tar")
    assert second.labels == first.labels


def _raw(*members: tarfile.TarInfo) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for member in members:
            archive.addfile(member)
    return data.getvalue()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLE = tar({"a.mp4": VIDEO, "b.mp4": VIDEO})
ENTRY = 512 + -(-len(VIDEO) // 512) * 512
"""Bytes of one member of ``WHOLE`` with its header."""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: _raw(info("a.mp4", type=tarfile.SYMTYPE, linkname="/etc/passwd")), "member 'a.mp4': is no plain file"),
        (lambda: _raw(info("a.mp4", type=tarfile.LNKTYPE, linkname="b.mp4")), "member 'a.mp4': is no plain file"),
        (lambda: _raw(info("a.mp4", type=tarfile.CHRTYPE)), "member 'a.mp4': is no plain file"),
        (lambda: _raw(info("a.mp4", type=tarfile.FIFOTYPE)), "member 'a.mp4': is no plain file"),
        (lambda: _raw(info("a.mp4", type=tarfile.GNUTYPE_SPARSE)), "is no plain file"),
        (lambda: _raw(info("a.mp4", pax_headers={"GNU.sparse.size": "1"})), "is no plain file"),
        (lambda: _raw(info("/etc/a.mp4")), "member '/etc/a.mp4': names"),
        (lambda: _raw(info("../a.mp4")), "member '../a.mp4': names"),
        (lambda: _raw(info("x/../../a.mp4")), "which is not below"),
        (lambda: _raw(info("a.mp4"), info("./a.mp4")), "member './a.mp4': comes a second time"),
        (lambda: _raw(info("a.mp4", pax_headers={"size": "99999999"})), "ends after the tar does"),
        (lambda: WHOLE[: ENTRY + 700], "member 'b.mp4': ends after the tar does; the tar was cut"),
        (lambda: WHOLE[: ENTRY + 100], f"lacks the zeros that end a tar at byte {ENTRY}; it was cut"),
        (lambda: WHOLE[:ENTRY], f"lacks the zeros that end a tar at byte {ENTRY}"),
        (lambda: WHOLE[: 2 * ENTRY], f"lacks the zeros that end a tar at byte {2 * ENTRY}"),
        (lambda: _flipped(WHOLE, ENTRY + 5), f"holds neither a member nor its end after byte {ENTRY}"),
        (lambda: _flipped(WHOLE, 5), "is not a whole tar"),
        (lambda: WHOLE + WHOLE, "holds neither a member nor its end"),
        (lambda: b"", "is not a whole tar: empty file"),
        (lambda: b"text" * 300, "is not a whole tar"),
        (lambda: gzip.compress(WHOLE), "is compressed with gzip"),
        (lambda: b"\x28\xb5\x2f\xfd rest", "is compressed with zstd"),
        (lambda: tar({"a.mp4": VIDEO, "a.json": b"{"}), "member 'a.json': is not JSON"),
        (lambda: tar({"a.mp4": VIDEO, "a.json": b"[1]"}), "member 'a.json': is not a JSON object"),
        (lambda: tar({"a.mp4": VIDEO, "a.txt": b"\xff"}), "member 'a.txt': is not UTF-8"),
    ],
)
def test_a_tar_that_cannot_be_trusted_is_refused_by_name(tmp_path: Path, data: Callable[[], bytes], message: str) -> None:
    (tmp_path / "0.tar").write_bytes(data())
    with pytest.raises(ConfigError, match=rf"0\.tar.*{message}"):
        read(tmp_path / "0.tar")
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"], "nothing is ever extracted"


def test_a_header_cannot_make_the_reader_hold_much(tmp_path: Path) -> None:
    claim = info("x", 1 << 33, type=tarfile.XHDTYPE).tobuf(tarfile.GNU_FORMAT)
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(claim)
        file.truncate((1 << 33) + 10_240)  # sparse on disk, so the claim is true
    with pytest.raises(ConfigError, match="a header claims 8589934592 bytes"):
        read(tmp_path / "0.tar")


def test_directories_in_a_tar_hold_nothing_and_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(_raw(info("./", type=tarfile.DIRTYPE), info("d", type=tarfile.DIRTYPE), info("d/a.mp4")))
    assert [source.key for source in read(tmp_path / "0.tar")] == ["0.tar/d/a.mp4"]


def test_no_video_at_all_is_named(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(tar({"a.txt": b"a cat"}))
    with pytest.raises(SourceMissing, match="holds no tar with a video"):
        read(tmp_path)
    with pytest.raises(SourceMissing, match="nowhere"):
        read(tmp_path / "nowhere.tar")
