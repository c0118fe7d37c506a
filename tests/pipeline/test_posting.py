"""Artifacts are sent beside the work: a server that is away neither stops nor delays it, and that is said once."""

import logging
import uuid

import pytest

from pipeline.orchestration import posting
from pipeline.orchestration.posting import Posting
from tests.servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # Prefect's own


def test_without_a_flow_run_nothing_is_sent() -> None:
    sender = Posting()
    sender.put("lvmae-plan", "markdown", "text", "description")
    sender.close()
    assert sender._thread is None


def test_a_server_that_is_away_costs_the_caller_nothing_and_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(posting, "_api_url", lambda: f"http://127.0.0.1:{free_port()}/api")
    monkeypatch.setattr(posting, "get_task_and_flow_run_ids", lambda: (None, uuid.uuid4()))
    monkeypatch.setattr(posting, "PATIENCE_S", 1.0)
    sender = Posting()
    with caplog.at_level(logging.WARNING):
        for number in range(50):
            sender.put("lvmae-shard-progress", "progress", float(number), "cut clips")
            sender.put("lvmae-shard", "markdown", "text", "description")
        sender.close()
    assert sender._thread is not None
    assert not sender._thread.is_alive()
    said = [record.message for record in caplog.records if record.name == "pipeline.orchestration.posting"]
    assert len(said) == 2, "that it is away, and in the end what is not shown"
    assert "lvmae-shard, lvmae-shard-progress" in said[-1]
