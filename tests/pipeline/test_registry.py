"""The registry holds each encoder once, and one champion; a store that is away decides nothing."""

import dataclasses
from pathlib import Path

import pytest

from pipeline import environment
from pipeline.tracking.outbox import Outbox
from pipeline.tracking.sending import Sender
from stages.storage.artifact import Artifact, Manifest
from tests.pipeline.mlflow_records import all_runs, client, empty_database, root
from tests.pipeline.outbox_work import open_run
from tests.servers import mlflow_server

__all__ = ["empty_database", "root"]
environment.prepare()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy


def encoder(root: Path, letter: str, stage: str = "pretrain") -> Artifact:
    """An artifact, as far as the registry looks at one."""
    plain = {"stage": stage, "fingerprint": letter * 16, "digest": letter * 64, "seal": ""}
    empty: dict[str, object] = {"config": {}, "inputs": {}, "counts": {}, "files": {}, "records": {}, "versions": {}}
    folder = root / stage / (letter * 16)
    return Artifact(folder, Manifest.model_validate({"schema_version": 2, **plain, **empty}), folder / "manifest.json")


def holds_each_encoder_once_and_one_champion(root: Path) -> None:
    from pipeline.tracking.registry import Registry

    registry = Registry(root)
    assert registry.champion("lvmae") is None
    assert registry.versions("lvmae") == []
    first = registry.register("lvmae", encoder(root, "a"))
    second = registry.register("lvmae", encoder(root, "b"), evaluation=encoder(root, "e", "evaluate"))
    assert (first.number, second.number, second.evaluation) == (1, 2, "e" * 16)
    assert registry.register("lvmae", encoder(root, "a")) == first
    assert registry.champion("lvmae") is None
    registry.promote(first)
    assert registry.champion("lvmae") == dataclasses.replace(first, is_champion=True)
    registry.promote(second)
    assert [version.is_champion for version in registry.versions("lvmae")] == [False, True]
    assert registry.champion("another") is None
    registry.note(second, {"lvmae.promotion": "better"})


def test_an_encoder_is_registered_once_and_one_is_the_champion(root: Path) -> None:
    holds_each_encoder_once_and_one_champion(root)
    noted = client(root).get_model_version_by_alias("lvmae-lvmae", "champion")
    assert noted.tags["lvmae.promotion"] == "better"
    assert noted.tags["lvmae.digest"] == "b" * 64


def test_a_version_names_the_run_that_made_it(root: Path) -> None:
    from pipeline.tracking.registry import Registry

    outbox = Outbox(root)
    own = open_run(outbox, "pretrain")
    outbox.add(own, "tags", {"tags": {"lvmae.digest": "a" * 64}})
    Sender(root).send_all()
    (run,) = all_runs(root)
    assert Registry(root).register("lvmae", encoder(root, "a")).run == run.info.run_id
    assert Registry(root).register("lvmae", encoder(root, "b")).run is None


def test_a_server_takes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server(tmp_path / "mlflow") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
        holds_each_encoder_once_and_one_champion(tmp_path)


def test_a_store_that_is_away_is_refused_with_what_to_do(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.tracking.registry import Registry, RegistryUnreachable

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    registry = Registry(root)
    with pytest.raises(RegistryUnreachable, match="repeat it"):
        registry.register("lvmae", encoder(root, "a"))
    with pytest.raises(RegistryUnreachable):
        registry.champion("lvmae")
