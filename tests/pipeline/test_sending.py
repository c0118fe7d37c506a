"""What is in an outbox reaches the store once, in order and whole, wherever the sending was cut off."""

import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.tracking.outbox import DATABASE, Letters, Outbox, StoreUnreachable
from pipeline.tracking.sending import Sender
from tests.pipeline.mlflow_records import all_runs, client, contents, empty_database, root
from tests.pipeline.outbox_work import open_run

__all__ = ["empty_database", "root"]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy


class Cut(BaseException):
    """The process ends here."""


def write_a_run(root: Path, *, closed: bool = True) -> None:
    """A parent and a child with one of every kind of event; the child's measurements take more than one call."""
    outbox = Outbox(root)
    parent = open_run(outbox, owner="me")
    child = open_run(outbox, "child", parent, **{"lvmae.work": "abc", "lvmae.fingerprint": "f" * 16})
    outbox.add(child, "parameters", {"values": {"a.b": "1", "long": "x" * 900}})
    made = {"fingerprint": "0" * 16, "digest": "d" * 64, "uri": "file:///clips"}
    outbox.add(child, "inputs", {"made": {"shard": made}})
    for step in range(1, 1000):
        outbox.add(child, "measurements", {"step": step, "values": {"loss": 1.0 / step}})
    outbox.add(child, "measurements", {"step": 1000, "values": {"loss": "nan", "rate": "inf"}})
    outbox.add(child, "picture", {"name": "held-out", "step": 10, "png": b"png"})
    outbox.add(child, "text", {"name": "manifest.json", "text": "{}"})
    outbox.add(child, "measurements", {"step": 0, "values": {"duration_s": 2.0}})
    if closed:
        outbox.add(child, "end", {"status": "FINISHED"})
        outbox.add(parent, "tags", {"tags": {"made": "child"}})
        outbox.add(parent, "end", {"status": "FINISHED"})
    outbox.close()


class Undisturbed(NamedTuple):
    """A run that was sent once, without any disturbance."""

    found: list[dict[str, Any]]
    """What the store holds then."""
    outbox: Path
    """A copy of the outbox from before that."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Undisturbed:
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    fill(root, empty_database)
    write_a_run(root)
    shutil.copytree(root / "outbox", root.parent / "outbox")
    Sender(root).send_all()
    assert list((root / "outbox").iterdir()) == []
    return Undisturbed(contents(root), root.parent / "outbox")


def fill(root: Path, empty_database: Path, outbox: Path | None = None) -> None:
    """Make a root with an empty store and perhaps an outbox."""
    root.mkdir(exist_ok=True)
    shutil.copy(empty_database, root / DATABASE)
    if outbox:
        shutil.copytree(outbox, root / "outbox")


def test_all_of_a_run_arrives(undisturbed: Undisturbed) -> None:
    parent, child = sorted(undisturbed.found, key=lambda run: str(run["name"]), reverse=True)
    assert (parent["name"], parent["status"], parent["tags"]["made"]) == ("parent", "FINISHED", "child")
    assert (child["status"], child["tags"]["mlflow.parentRunId"]) == ("FINISHED", "parent")
    assert child["parameters"] == {"a.b": "1", "long": "x" * 500}
    assert child["inputs"] == [("shard", "d" * 36)]
    assert [step for step, _, _ in child["measurements"]["loss"]] == list(range(1, 1001))
    assert child["measurements"]["loss"][-1][1] == "nan"
    assert child["measurements"]["duration_s"][0][1] == "2.0"
    assert child["files"] == {"pictures/held-out-00000010.png": b"png", "manifest.json": b"{}"}


def test_cut_off_before_and_after_every_call_it_comes_to_the_same(
    undisturbed: Undisturbed, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is cut off at its 1st, 2nd, 3rd ... step, each time by another one, until one reaches the end."""
    from pipeline.tracking.mlflow_store import MlflowStore

    shutil.copytree(undisturbed.outbox, root / "outbox")
    cut_at = 0
    with monkeypatch.context() as patched:
        steps = [(MlflowStore, name) for name in ("begin", "measurements", "inputs", "text", "end", "link")]
        for owner, name in [*steps, (Letters, "keep"), (Letters, "remove")]:
            patched.setattr(owner, name, cutting(getattr(owner, name)))
        while Letters.below(root):
            cut_at += 1
            _Count.left = cut_at
            try:
                Sender(root).send_all()
            except Cut:
                assert Letters.below(root), "an outbox that was not sent whole is gone"
    assert cut_at > 8
    assert contents(root) == undisturbed.found


class _Count:
    left = 0


def cutting(method: Any) -> Any:
    def stepped(*arguments: Any, **named: Any) -> Any:
        step()
        result = method(*arguments, **named)
        step()
        return result

    def step() -> None:
        _Count.left -= 1
        if _Count.left == 0:
            raise Cut

    return stepped


def test_a_sender_that_is_killed_leaves_nothing_twice(undisturbed: Undisturbed, root: Path) -> None:
    shutil.copytree(undisturbed.outbox, root / "outbox")
    work = [sys.executable, "-m", "tests.pipeline.outbox_work", "send", str(root), "5"]
    assert subprocess.run(work, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert Letters.below(root)
    Sender(root).send_all()
    assert contents(root) == undisturbed.found


def test_two_senders_at_once_send_everything_once(undisturbed: Undisturbed, root: Path) -> None:
    shutil.copytree(undisturbed.outbox, root / "outbox")
    with ThreadPoolExecutor(2) as pool:
        sent = [each.result() for each in [pool.submit(Sender(root).send_all) for _ in range(2)]]
    assert sorted(map(len, sent)) == [0, 1]
    assert Letters.below(root) == []
    assert contents(root) == undisturbed.found


def test_a_run_whose_process_was_killed_is_closed_and_linked_with_the_one_that_continues_it(root: Path) -> None:
    write_a_run(root, closed=False)
    Sender(root).send_all()
    assert [run.info.status for run in all_runs(root)] == ["KILLED", "KILLED"]
    write_a_run(root)
    Sender(root).send_all()
    killed, finished = [run for run in all_runs(root) if run.info.run_name == "child"]
    assert (killed.info.status, finished.info.status) == ("KILLED", "FINISHED")
    assert killed.data.tags["lvmae.successor"] == finished.info.run_id
    assert finished.data.tags["lvmae.predecessor"] == killed.info.run_id


def test_the_link_is_made_as_well_when_the_successor_began_first(root: Path) -> None:
    first = Outbox(root)
    open_run(first, "child", **{"lvmae.work": "abc"})
    Sender(root).send_all()
    assert [run.info.status for run in all_runs(root)] == ["RUNNING"], "its process lives"
    second = Outbox(root)
    open_run(second, "child", **{"lvmae.work": "abc"})
    Sender(root).send_all()
    first.close()
    Sender(root).send_all()
    killed, running = all_runs(root)
    assert (killed.info.status, running.info.status) == ("KILLED", "RUNNING")
    assert killed.data.tags["lvmae.successor"] == running.info.run_id


def test_a_run_names_the_runs_that_made_what_it_reads(root: Path) -> None:
    producer = Outbox(root)
    own = open_run(producer, "shard", **{"lvmae.fingerprint": "0" * 16})
    producer.add(own, "end", {"status": "FINISHED"})
    producer.close()
    write_a_run(root)
    Sender(root).send_all()
    made = {run.info.run_name: run for run in all_runs(root)}
    assert made["child"].data.tags["lvmae.producer.shard"] == made["shard"].info.run_id


def test_what_the_store_will_never_take_is_put_aside_and_the_rest_goes_on(root: Path) -> None:
    outbox = Outbox(root)
    own = open_run(outbox)
    for name in ("good", "bad\nname", "better"):
        outbox.add(own, "measurements", {"step": 1, "values": {name: 1.0}})
    outbox.add("nobody", "measurements", {"step": 1, "values": {"loss": 1.0}})
    outbox.add(own, "end", {"status": "FINISHED"})
    outbox.close()
    (sent,) = Sender(root).send_all()
    assert sent.refused == 2
    (run,) = all_runs(root)
    assert set(run.data.metrics) == {"good", "better"}
    assert run.info.status == "FINISHED"
    (aside,) = (root / "outbox").iterdir()
    assert "bad\\nname" in aside.read_text()


def test_a_store_that_lost_everything_is_given_everything_again(root: Path, tmp_path: Path, empty_database: Path) -> None:
    outbox = Outbox(root)
    own = open_run(outbox)
    outbox.add(own, "measurements", {"step": 1, "values": {"loss": 1.0}})
    Sender(root).send_all()
    (before,) = all_runs(root)
    other = tmp_path / "other"
    fill(other, empty_database, root / "outbox")
    (letters,) = Letters.below(other)
    asked = Sender(other)
    letters.keep(letters.progress().model_copy(update={"store": asked._stores.digest()}))
    asked.send_all()
    (after,) = all_runs(other)
    assert after.data.metrics == before.data.metrics == {"loss": 1.0}


def test_another_store_is_given_all_of_a_run_that_is_not_over(
    root: Path, tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(root)
    own = open_run(outbox)
    outbox.add(own, "measurements", {"step": 1, "values": {"loss": 1.0}})
    Sender(root).send_all()
    fill(tmp_path / "other", empty_database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other' / DATABASE}")
    outbox.add(own, "measurements", {"step": 2, "values": {"loss": 0.5}})
    Sender(root).send_all()
    (run,) = all_runs(tmp_path / "other")
    history = client(tmp_path / "other").get_metric_history(run.info.run_id, "loss")
    assert [each.step for each in history] == [1, 2]


def test_an_outbox_waits_for_a_store_that_is_away_with_the_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_a_run(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    (letters,) = Letters.below(root)
    waiting = letters.num_waiting()
    with pytest.raises(StoreUnreachable):
        Sender(root).send_all()
    assert letters.num_waiting() == waiting
    assert "127.0.0.1" in letters.progress().problem


def test_an_outbox_holds_no_password_of_the_store(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_a_run(root)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somebody:canary@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(StoreUnreachable):
        Sender(root).send_all()
    assert not [path for path in (root / "outbox").iterdir() if b"canary" in path.read_bytes()]
