"""Log lines say where they come from, are one line each, and hold no password."""

import io
import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import logs
from pipeline.journal import Journal
from pipeline.pace import Pace
from pipeline.plan import Action, Step
from pipeline.recipe import Recipe
from tests.pipelines import ONE_THREAD, command

HOSTILE = "clip\n2026-01-01 ERROR forged \x1b[31mred\u2028next s3://me:hunter2@host/bucket"


@pytest.fixture
def log() -> Iterator[tuple[logging.Logger, io.StringIO]]:
    """A logger of its own, and what it writes as JSON."""
    written, logger = io.StringIO(), logging.getLogger("tests.log")
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonLines())
    handler.addFilter(logs.Sparing())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    yield logger, written
    logger.removeHandler(handler)


def test_an_event_is_one_line_of_json_that_names_its_place(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    logs.stand(run="lvmae", stage="shard", unit="000012")
    logger.warning("source %s", HOSTILE)
    (line,) = written.getvalue().splitlines()
    event = json.loads(line)
    assert line.isascii()
    assert {event["level"], event["logger"], event["run"], event["stage"], event["unit"]} == {
        "WARNING",
        "tests.log",
        "lvmae",
        "shard",
        "000012",
    }
    assert event["time"].endswith("+00:00")
    assert event["message"].startswith("source clip\n2026")
    assert "hunter2" not in line


def test_a_traceback_stays_within_its_line(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    try:
        raise ValueError("https://me:hunter2@host said no")
    except ValueError:
        logger.exception("failed")
    (line,) = written.getvalue().splitlines()
    assert "ValueError: https://***@host said no" in json.loads(line)["error"]


def test_a_line_for_a_person_spells_line_ends_and_controls_out() -> None:
    logs.stand(stage="shard", unit="")
    told = logs.Told().format(logging.LogRecord("stages.shard", logging.INFO, "", 0, "source %s", (HOSTILE,), None))
    assert told.startswith("shard: source clip\\n2026")
    assert told.isprintable()
    assert "hunter2" not in told


def test_what_comes_again_and_again_is_written_some_times_and_errors_always(log: tuple[logging.Logger, io.StringIO]) -> None:
    logger, written = log
    for number in range(3 * logs.BURST):
        logger.warning("slow disk %d", number)
        logger.error("lost %d", number)
    lines = written.getvalue().splitlines()
    assert sum("slow disk" in line for line in lines) == logs.BURST
    assert sum("lost" in line for line in lines) == 3 * logs.BURST


def test_progress_is_said_in_words_and_remaining_time_is_foretold_from_this_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    pace = Pace("precompute", 50, 10, started_s=100.0)
    pace.done += 10
    now_s[0] = 120.0
    assert pace.words() == "precompute: 20 of 50 (40 %), about 1 min 0 s left"


def test_the_journal_writes_one_line_on_progress_in_a_while(monkeypatch: pytest.MonkeyPatch, recipe: Recipe) -> None:
    now_s, lines = [0.0], io.StringIO()
    monkeypatch.setattr("time.monotonic", lambda: now_s[0])
    handler, logger = logging.StreamHandler(lines), logging.getLogger(logs.JOURNAL)
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.addHandler(handler)
    try:
        journal = Journal()
        journal.stage_started(Step("shard", Action.LOOK, "looks for new files"), recipe, {})
        journal.begin("cut clips", total=100)
        for _ in range(100):
            now_s[0] += 1.0
            journal.advance()
    finally:
        logger.removeHandler(handler)
    assert lines.getvalue().count("cut clips: ") == 1 + 3, "the beginning, and one line in thirty seconds"


def test_with_json_everything_on_stderr_is_json(tmp_path: Path) -> None:
    argv = command("shard", "lvmae", "--overlay", "demo", "--source", str(tmp_path / "nowhere"), root=tmp_path / "root")
    environment = {**ONE_THREAD, logs.FORM: "json"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False, env=environment)
    events = [json.loads(line) for line in done.stderr.splitlines()]
    assert done.returncode == 2
    assert [event["stage"] for event in events if event["logger"] == logs.JOURNAL] == ["shard", "shard"], "starts, and stops"
    assert events[-1]["level"] == "ERROR"
    assert "nowhere" in events[-1]["message"]
