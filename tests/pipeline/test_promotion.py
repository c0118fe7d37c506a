"""The better encoder becomes the champion, on the clips that both tested, and the decision says how sure it is."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from models.config import Config
from pipeline.promotion import FOLDER, Promoter, decide
from pipeline.recipe import Recipe
from pipeline.runner import Report
from pipeline.tracking.registry import Registry, Version
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.publish import publish_bytes
from stages.storage.workspace import Workspace
from tests.evaluations import committed, rows
from tests.servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's own use of SQLAlchemy

BETTER, EQUAL, WORSE = [True] * 9 + [False], [True] * 5 + [False] * 5, [True] * 2 + [False] * 8


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real MLflow store, whose registry is made once."""
    folder = tmp_path_factory.mktemp("mlflow")
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture
def own(recipe: Recipe, request: pytest.FixtureRequest) -> Recipe:
    """The recipe under a name that no other test has."""
    return recipe.model_copy(update={"name": request.node.name})


@pytest.fixture
def root(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return Workspace(tmp_path / "root")


def evaluated(root: Workspace, number: int, hits: Sequence[bool], *, first: int = 0) -> Artifact:
    """The evaluation of an encoder of its own."""
    name = f"{number:016x}"
    publish_bytes(root.artifact_folder("pretrain", name) / "encoder.safetensors", name.encode())
    encoder = artifact.commit(root, stage="pretrain", name=name, config=Config(), inputs={}, counts={})
    return committed(root, name, rows(hits, first=first), inputs={"pretrain": encoder})


def finish(promoter: Promoter, made: Artifact, *, units: int = 1) -> None:
    promoter.stage_finished(Report("evaluate", Outcome(made, units, 0, counts={}), 1.0))


def champion(root: Workspace, recipe: Recipe) -> Version | None:
    return Registry(root.root).champion(recipe.name)


def test_the_first_encoder_is_the_champion_and_only_one_that_is_not_worse_takes_over(root: Workspace, own: Recipe) -> None:
    pages: list[str] = []
    promoter = Promoter(root, own, pages.append)
    finish(promoter, evaluated(root, 1, EQUAL))
    finish(promoter, evaluated(root, 2, WORSE))
    found = champion(root, own)
    assert found is not None
    assert (found.fingerprint, found.evaluation) == (f"{1:016x}",) * 2
    finish(promoter, evaluated(root, 3, EQUAL))
    finish(promoter, evaluated(root, 4, BETTER))
    found = champion(root, own)
    assert found is not None
    assert found.fingerprint == f"{4:016x}"
    assert ["The alias moves" in page for page in pages] == [True, False, True, True]
    assert "+40.0 points" in pages[-1]
    assert [version.number for version in Registry(root.root).versions(own.name)] == [1, 2, 3, 4]
    assert len(list((root.root / FOLDER).glob("*.html"))) == 3


def test_the_decision_is_about_the_clips_that_both_tested(root: Workspace) -> None:
    old = evaluated(root, 1, EQUAL)
    new = evaluated(root, 2, WORSE + [True] * 90)
    found = decide(new, old)
    assert found.pair is not None
    assert (found.moves, found.pair.num_clips) == (False, 10), "its own accuracy is 92 %, on other clips"
    assert "its accuracy of 20.0" in found.why
    assert "A and B are not told apart" in found.why


def test_encoders_without_a_clip_in_common_leave_the_alias_where_it_is(root: Workspace) -> None:
    found = decide(evaluated(root, 1, BETTER, first=100), evaluated(root, 2, WORSE))
    assert not found.moves
    assert "no clip in common" in found.why


def test_what_was_evaluated_before_is_not_decided_again(root: Workspace, own: Recipe) -> None:
    pages: list[str] = []
    promoter = Promoter(root, own, pages.append)
    made = evaluated(root, 1, EQUAL)
    finish(promoter, made, units=0)
    assert champion(root, own) is None
    finish(promoter, made)
    finish(promoter, made)
    assert len(pages) == 1, "it is the champion already"


def test_a_champion_whose_evaluation_is_gone_stays(root: Workspace, own: Recipe) -> None:
    promoter = Promoter(root, own)
    made = evaluated(root, 1, WORSE)
    finish(promoter, made)
    shutil.rmtree(made.folder)
    decision = promoter.promote(evaluated(root, 2, BETTER))
    assert decision is not None
    assert not decision.moves
    assert "is gone" in decision.why


def test_a_registry_that_is_away_stops_no_run_and_the_next_one_makes_up_for_it(
    root: Workspace, own: Recipe, monkeypatch: pytest.MonkeyPatch, store: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    made = evaluated(root, 1, EQUAL)
    finish(Promoter(root, own), made)
    assert "the next run of the recipe makes up for it" in caplog.text
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    finish(Promoter(root, own), made, units=0)
    assert champion(root, own) is not None
    assert list((root.root / FOLDER).iterdir()) == []
