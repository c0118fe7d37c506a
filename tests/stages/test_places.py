"""Bytes are read from files, objects and members of tars alike, and what goes wrong is told apart."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from stages import places
from stages.errors import ConfigError, MediaError, Reason, SourceMissing
from stages.places import Place, check, digest, listing, local_copy, opened, place_of, spelled, stamp
from tests.s3 import Emulator, emulator

BUCKET = "videos"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with emulator(tmp_path_factory.mktemp("s3") / "log.txt", bucket=BUCKET) as s3:
        yield s3


@pytest.fixture
def s3(server: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """The server, found through the environment; its bucket is empty afterwards."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    places._client.cache_clear()
    yield server
    for each in server.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        server.client.delete_object(Bucket=BUCKET, Key=each["Key"])


def put(s3: Emulator, key: str, data: bytes) -> Place:
    s3.client.put_object(Bucket=BUCKET, Key=key, Body=data)
    return Place(f"s3://{BUCKET}/{key}")


def refusal(place: Place) -> Reason:
    with pytest.raises(MediaError) as raised:
        check(place)
    assert os.path.dirname(place.url) not in raised.value.detail, "a stored detail must not depend on where the source lies"
    return raised.value.reason


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_place_is_an_absolute_path_or_the_url_of_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert place_of("a/b.mp4") == place_of(Path("a/b.mp4")) == Place(f"{tmp_path}/a/b.mp4")
    assert place_of(f"file://{tmp_path}/a.mp4") == Place(f"{tmp_path}/a.mp4")
    assert place_of("~/a.mp4").url == "/home/me/a.mp4"
    assert place_of("/odd/a::b:c.mp4").url == "/odd/a::b:c.mp4"
    assert place_of("s3://bucket/a b.mp4").url == "s3://bucket/a b.mp4"
    assert [places.is_remote(url) for url in ("/a", "a/b", "~/a", "file:///a", "s3://b/a")] == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a.mp4", "https:// is not read; copy it"),
        ("zip://a.mp4::s3://bucket/a.zip", "places within places"),
        ("simplecache::s3://bucket/a.mp4", "places within places"),
        ("s3://bucket/a::file:///etc/passwd", "places within places"),
        ("tar://a.mp4", "tar:// is not read"),
        ("s3://", "names no bucket"),
    ],
)
def test_other_urls_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place_of(url)


def test_a_store_whose_package_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> None:
        raise ImportError("no s3fs")

    monkeypatch.setattr(fsspec, "filesystem", absent)
    places._client.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'lvmae\[s3\]'"):
        check(place_of("s3://bucket/a.mp4"))


def test_local_files_are_read_and_stamped(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "a.mp4").write_bytes(data)
    place = place_of(tmp_path / "a.mp4")
    check(place)
    assert digest(place) == (sha256(data), 100_000)
    before = stamp(place)
    assert stamp(place) == before != ""
    (tmp_path / "b.mp4").write_bytes(data)
    (tmp_path / "b.mp4").replace(tmp_path / "a.mp4")
    assert stamp(place) != before
    (tmp_path / "a.mp4").unlink()
    assert stamp(place) == ""


def test_only_a_regular_file_with_something_in_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"data")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    names = ("empty", "pipe", "link", "loop", "folder", "absent", "file/below", "n" * 300)
    assert [refusal(place_of(tmp_path / name)) for name in names] == [
        Reason.EMPTY,
        Reason.NOT_A_FILE,
        Reason.NOT_A_FILE,
        Reason.NOT_A_FILE,
        Reason.NOT_A_FILE,
        Reason.MISSING,
        Reason.UNREADABLE,
        Reason.UNREADABLE,
    ]
    assert refusal(Place("/dev/zero")) == Reason.NOT_A_FILE
    for name in ("pipe", "link"):
        with pytest.raises(MediaError, match="not a regular file"):
            digest(place_of(tmp_path / name))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"data")
    (tmp_path / "a.mp4").chmod(0)
    with pytest.raises(MediaError, match="unreadable"):
        digest(place_of(tmp_path / "a.mp4"))


def test_a_file_that_grows_is_read_up_to_where_it_ended_and_one_that_shrinks_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a" * 200_000)
    with opened(place_of(path)) as file, path.open("ab") as other:
        other.write(b"b" * 1000)
        other.flush()
        assert len(file.read()) == 200_000
    with opened(place_of(path)) as file:
        file.read(10)
        os.truncate(path, 150_000)
        with pytest.raises(MediaError, match="changed"):
            file.read()


def test_a_member_of_a_tar_is_a_file_of_its_own(tmp_path: Path) -> None:
    data = {"a.mp4": b"first" * 1000, "b.mp4": b"second" * 1000}
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name, content in data.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with tarfile.open(tmp_path / "set.tar") as tar:
        found = {each.name: Place(str(tmp_path / "set.tar"), each.offset_data, each.size) for each in tar}
    for name, place in found.items():
        check(place)
        assert digest(place) == (sha256(data[name]), len(data[name]))
        with local_copy(place, tmp_path, max_bytes=6000, name=name) as path:
            assert path.read_bytes() == data[name]
            assert path.suffix == ".mp4"
        assert not path.exists()
        with opened(place) as file:
            assert file.seek(-4, os.SEEK_END) == len(data[name]) - 4
            assert file.read(99) == data[name][-4:]
    place = found["b.mp4"]
    assert refusal(place._replace(size_bytes=0)) == Reason.EMPTY
    os.truncate(place.url, place.offset_bytes + 100)
    assert refusal(place) == Reason.TRUNCATED


def test_a_whole_local_file_is_not_copied_and_a_copy_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"data")
    place = place_of(tmp_path / "a.mp4")
    with local_copy(place, tmp_path, max_bytes=1) as path:
        assert path == tmp_path / "a.mp4"
    with (
        pytest.raises(MediaError, match="limit: 3 bytes to copy"),
        local_copy(place._replace(size_bytes=3), tmp_path, max_bytes=2),
    ):
        pass
    assert sorted(os.listdir(tmp_path)) == ["a.mp4"]


def test_what_fails_while_a_copy_is_used_is_not_taken_for_a_fault_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"data")
    place = place_of(tmp_path / "a.mp4")._replace(size_bytes=3)
    with pytest.raises(PermissionError), local_copy(place, tmp_path, max_bytes=9):
        raise PermissionError
    with pytest.raises(FileNotFoundError), opened(place):
        raise FileNotFoundError


def test_a_folder_is_listed_in_order_with_everything_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    for name in ("b.mp4", "a/z.mp4", "a/y/x.mp4", ".hidden.mp4", ".git/a.mp4", "folder.mp4/in.mp4"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    os.mkfifo(tmp_path / "set" / "pipe.mp4")
    (tmp_path / "set" / "link.mp4").symlink_to("b.mp4")
    (tmp_path / "set" / "away.mp4").symlink_to(tmp_path / "target")
    found = list(listing(str(tmp_path / "set")))
    names = ["a/y/x.mp4", "a/z.mp4", "away.mp4", "b.mp4", "folder.mp4/in.mp4", "link.mp4", "pipe.mp4"]
    assert found == [(name, Place(f"{tmp_path}/set/{name}"), "") for name in names]
    with pytest.raises(SourceMissing, match="nowhere: no such folder"):
        list(listing(str(tmp_path / "nowhere")))
    with pytest.raises(SourceMissing, match="no such folder"):
        list(listing(str(tmp_path / "set" / "b.mp4")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_listed_is_an_error_and_not_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(PermissionError, match="closed"):
        list(listing(str(tmp_path)))


def test_every_name_has_a_spelling_of_its_own_and_is_found_by_its_place(tmp_path: Path) -> None:
    names = [b"a\nb", b"'q\" $(x)", b"\xff.mp4", b"\\xff.mp4", b"\\n", "ü".encode(), b"-i", b"a:b", b"n" * 255, b"\xe9\\x5cff"]
    for number, name in enumerate(names):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"%d" % number)
    found = {place.url: name for name, place, _ in listing(str(tmp_path))}
    assert len(set(found.values())) == len(names)
    for name in found.values():
        name.encode()
    assert {digest(Place(url)) for url in found} == {(sha256(b"%d" % number), 1) for number in range(len(names))}
    assert [spelled(os.fsdecode(name)) for name in names[:6]] == ["a\nb", "'q\" $(x)", r"\xff.mp4", r"\x5cxff.mp4", r"\n", "ü"]


def test_objects_are_listed_read_and_stamped_as_files_are(s3: Emulator, tmp_path: Path) -> None:
    data = os.urandom(9 << 20)
    keys = ["set/a.mp4", "set/b/c d%41#?x=1&ü.mp4", "set/z::s3://other/w.mp4", "set//double.mp4", "set/" + "n" * 255]
    left_out = ["set/.hidden.mp4", "set/.git/a.mp4", "set/marker/", "set2/a.mp4"]
    for key in (*keys, *left_out):
        put(s3, key, data[: 1000 + len(key)])
    found = list(listing(f"s3://{BUCKET}/set/"))
    assert sorted(name for name, _, _ in found) == sorted(key.removeprefix("set/") for key in keys)
    for name, place, version in found:
        check(place)
        length = 1000 + len(f"set/{name}")
        assert digest(place) == (sha256(data[:length]), length)
        assert stamp(place) == version != ""
    large = put(s3, "set/a.mp4", data)
    assert stamp(large) not in [version for _, _, version in found]
    assert digest(large) == (sha256(data), 9 << 20)
    with local_copy(large, tmp_path, max_bytes=9 << 20) as path:
        assert path.read_bytes() == data
        assert path.suffix == ".mp4"
    member = large._replace(offset_bytes=1000, size_bytes=5 << 20)
    assert digest(member) == (sha256(data[1000 : 1000 + (5 << 20)]), 5 << 20)
    with pytest.raises(MediaError, match="limit"), local_copy(large, tmp_path, max_bytes=(9 << 20) - 1):
        pass
    assert os.listdir(tmp_path) == []


def test_a_long_listing_comes_page_by_page(s3: Emulator) -> None:
    for number in range(7):
        put(s3, f"set/{number}.mp4", b"data")
    pages = []

    class Client:
        """The store's client, with small pages."""

        def __init__(self, client: object) -> None:
            self.client = client

        def __getattr__(self, name: str) -> object:
            return getattr(self.client, name)

        def call_s3(self, *arguments: str, **options: object) -> object:
            pages.append(options)
            return self.client.call_s3(*arguments, MaxKeys=3, **options)

    _, client, root = places._resolve(f"s3://{BUCKET}/set")
    found = places._pages(Client(client), root, "")
    assert next(found)[0] == "0.mp4"
    assert len(pages) == 1
    assert [name[0] for name, _ in found] == list("123456")
    assert len(pages) == 3


def test_names_come_in_the_same_order_from_everywhere(s3: Emulator, tmp_path: Path) -> None:
    names = ["a.mp4", "a/b.mp4", "a/c/d.mp4", "a-b/c.mp4", "a0.mp4", "Z/a.mp4", "ü/a.mp4", "z.mp4"]
    memory = fsspec.filesystem("memory")
    for name in names:
        put(s3, f"set/{name}", b"data")
        memory.pipe_file(f"/set/{name}", b"data")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    orders = [[name for name, _, _ in listing(url)] for url in (str(tmp_path), f"s3://{BUCKET}/set", "memory://set")]
    memory.rm("/set", recursive=True)
    assert orders == [sorted(names)] * 3


def test_objects_that_are_not_there_are_told_from_empty_ones_and_prefixes(s3: Emulator) -> None:
    assert refusal(put(s3, "set/empty.mp4", b"")) == Reason.EMPTY
    assert refusal(place_of(f"s3://{BUCKET}/set/absent.mp4")) == Reason.MISSING
    assert refusal(place_of(f"s3://{BUCKET}/set")) == Reason.NOT_A_FILE
    assert refusal(place_of("s3://absent/a.mp4")) == Reason.MISSING
    assert stamp(place_of("s3://absent/a.mp4")) == stamp(place_of(f"s3://{BUCKET}/set")) == ""
    assert list(listing(f"s3://{BUCKET}/absent")) == []
    with pytest.raises(SourceMissing, match="no such bucket"):
        list(listing("s3://absent/set"))


def test_an_object_that_changes_or_goes_while_it_is_read_is_never_mixed(s3: Emulator) -> None:
    data = bytes(20 << 20)
    place = put(s3, "a.mp4", data)
    with opened(place) as file:
        file.read(10)
        put(s3, "a.mp4", data[:-1])
        with pytest.raises(MediaError, match="changed"):
            file.read()
    with opened(place) as file:
        file.read(10)
        s3.client.delete_object(Bucket=BUCKET, Key="a.mp4")
        with pytest.raises(MediaError, match="missing"):
            file.read()


def test_a_store_that_does_not_answer_is_no_fault_of_the_source(s3: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    places._client.cache_clear()
    place = place_of(f"s3://{BUCKET}/a.mp4")
    for ask in (check, stamp, digest, lambda place: list(listing(place.url))):
        with pytest.raises(OSError, match="run again"):
            ask(place)


def test_missing_credentials_are_named_with_where_they_come_from(s3: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    places._client.cache_clear()
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        list(listing(f"s3://{BUCKET}/set"))


def test_any_other_store_is_listed_folder_by_folder() -> None:
    memory = fsspec.filesystem("memory")
    for name in ("b.mp4", "a/c.mp4", ".hidden/a.mp4", "a/.b.mp4"):
        memory.pipe_file(f"/set/{name}", name.encode())
    try:
        found = list(listing("memory://set"))
        assert [name for name, _, _ in found] == ["a/c.mp4", "b.mp4"]
        for name, place, version in found:
            assert digest(place) == (sha256(name.encode()), len(name))
            assert stamp(place) == version
        with pytest.raises(SourceMissing, match="no such bucket or folder"):
            list(listing("memory://elsewhere"))
    finally:
        memory.rm("/set", recursive=True)
