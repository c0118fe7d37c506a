"""The outbox keeps every event that was written whole, in order and once, whatever becomes of who writes it."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.tracking.outbox import Event, Letters, Outbox, Progress, number_of, png_of
from tests.pipeline.outbox_work import open_run

WORK = [sys.executable, "-m", "tests.pipeline.outbox_work"]


def events(letters: Letters, progress: Progress | None = None) -> list[Event]:
    return [event for event, _ in letters.events(progress or Progress())]


def only(root: Path) -> Letters:
    (letters,) = Letters.below(root)
    return letters


def measured(outbox: Outbox, *steps: int) -> None:
    for step in steps:
        outbox.add("parent", "measurements", {"step": step, "values": {"loss": 1.0}})


def test_a_run_that_records_nothing_writes_nothing(tmp_path: Path) -> None:
    Outbox(tmp_path).close()
    assert list(tmp_path.iterdir()) == []


def test_what_was_written_is_read_in_order_with_all_that_it_says(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    open_run(outbox, owner="me")
    outbox.add("parent", "picture", {"name": "held-out", "step": 3, "png": b"\x00\xff"})
    outbox.add("parent", "end", {"status": "FINISHED"}, time_ms=7)
    found = events(only(tmp_path))
    assert [event.number for event in found] == [0, 1, 2]
    assert [event.kind for event in found] == ["open", "picture", "end"]
    assert found[0].body["tags"] == {"owner": "me"}
    assert png_of(found[1].body) == b"\x00\xff"
    assert found[2].time_ms == 7


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_is_the_same_after_the_outbox(value: float) -> None:
    from pipeline.tracking.tracker import _measured

    read = json.loads(json.dumps(_measured(1, {"loss": value}), allow_nan=False))
    assert repr(number_of(read["values"]["loss"])) == repr(value)


@pytest.mark.parametrize("cut_bytes", [1, 20, 60])
def test_a_torn_last_line_is_passed_over(tmp_path: Path, cut_bytes: int) -> None:
    outbox = Outbox(tmp_path)
    measured(outbox, 1, 2, 3)
    outbox.close()
    path = only(tmp_path).path
    path.write_bytes(path.read_bytes()[:-cut_bytes])
    assert [event.body["step"] for event in events(only(tmp_path))] == [1, 2]


def test_a_last_line_without_its_end_is_read_once_it_has_one(tmp_path: Path) -> None:
    measured(Outbox(tmp_path), 1, 2)
    path = only(tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert len(events(only(tmp_path))) == 1
    path.write_bytes(whole)
    assert len(events(only(tmp_path))) == 2


def test_what_follows_a_line_that_a_full_disk_tore_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, write = Outbox(tmp_path), os.write
    measured(outbox, 1)
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.tracking.outbox.os.write", lambda descriptor, line: write(descriptor, line[:30]))
        measured(outbox, 2)
    measured(outbox, 3, 4)
    assert [event.body["step"] for event in events(only(tmp_path))] == [1, 3, 4]


def test_a_root_that_cannot_be_written_costs_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "outbox").write_text("in the way of the folder")
    measured(Outbox(tmp_path), 1, 2, 3)
    assert len(caplog.records) == 1


def test_an_event_that_stands_there_twice_is_read_once(tmp_path: Path) -> None:
    measured(Outbox(tmp_path), 1, 2, 3)
    path = only(tmp_path).path
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second + first + second + third + third)
    assert [event.body["step"] for event in events(only(tmp_path))] == [1, 2, 3]


def test_reading_goes_on_where_it_was_left(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    measured(outbox, *range(10))
    (_, offset_bytes), *_ = [entry for entry in only(tmp_path).events(Progress()) if entry[0].number == 6]
    only(tmp_path).keep(Progress(offset_bytes=offset_bytes, number=6))
    measured(outbox, 10)
    assert [event.body["step"] for event in events(only(tmp_path), only(tmp_path).progress())] == [7, 8, 9, 10]
    assert only(tmp_path).num_waiting() == 4


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    threads = [threading.Thread(target=measured, args=(outbox, *range(100 * n, 100 * n + 100))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = events(only(tmp_path))
    assert [event.number for event in found] == list(range(400))
    assert {event.body["step"] for event in found} == set(range(400))


def test_whether_more_is_to_come_is_known_from_the_lock(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    measured(outbox, 1)
    assert only(tmp_path).is_written_to
    outbox.close()
    assert not only(tmp_path).is_written_to


def test_what_a_killed_process_wrote_is_all_there_and_it_is_known_to_be_gone(tmp_path: Path) -> None:
    for _ in range(3):
        with subprocess.Popen([*WORK, "write", str(tmp_path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"writing\n"
            letters = Letters.below(tmp_path)[-1]
            while len(events(letters)) < 200:
                assert letters.is_written_to
            writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
        found = events(letters)
        assert [event.number for event in found] == list(range(len(found)))
        assert [event.body["step"] for event in found[1:]] == list(range(1, len(found)))
        assert not letters.is_written_to


def test_one_sender_at_a_time(tmp_path: Path) -> None:
    measured(Outbox(tmp_path), 1)
    with only(tmp_path).sole_sender() as first, only(tmp_path).sole_sender() as second:
        assert (first, second) == (True, False)
    with only(tmp_path).sole_sender() as third:
        assert third


def test_an_outbox_that_another_sent_meanwhile_is_left_alone(tmp_path: Path) -> None:
    measured(Outbox(tmp_path), 1)
    letters = only(tmp_path)
    letters.remove()
    with letters.sole_sender() as is_ours:
        assert not is_ours
    assert list((tmp_path / "outbox").iterdir()) == []
