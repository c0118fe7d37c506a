"""Files appear whole or not at all."""

import threading
from pathlib import Path

import pytest

from stages.storage.publish import canonical_json, publish_bytes, publish_new, publishing, sha256_bytes, sha256_file, sweep


def test_a_published_file_has_its_bytes_and_leaves_no_temporary(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "a" / "b" / "file", b"bytes")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"bytes"
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]
    assert sha256_file(tmp_path / "a" / "b" / "file") == sha256_bytes(b"bytes")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    publish_bytes(tmp_path / "file", b"old")

    def fail_halfway() -> None:
        with publishing(tmp_path / "file") as file:
            file.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_of_racing_writers_exactly_one_makes_the_file(tmp_path: Path) -> None:
    barrier, made = threading.Barrier(8), []

    def race(number: int) -> None:
        barrier.wait()
        if publish_new(tmp_path / "file", str(number).encode()):
            made.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert (tmp_path / "file").read_bytes() == str(made[0]).encode()
    assert len(list(tmp_path.iterdir())) == 1


def test_sweeping_removes_unfinished_files_only(tmp_path: Path) -> None:
    for name in ("kept", "deep/kept", "deep/.file.123.tmp", "deep/object.abc.partial"):
        publish_bytes(tmp_path / name, b"x")
    assert sweep(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["kept", "kept"]


def test_equal_values_have_equal_bytes_and_nan_has_none() -> None:
    assert canonical_json({"b": 1, "a": [1.5, None]}) == canonical_json({"a": [1.5, None], "b": 1})
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))
