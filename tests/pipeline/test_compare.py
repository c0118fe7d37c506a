"""``lvmae compare``: finds what a person means, changes nothing, and says in one message what is wrong with a request."""

import json
from pathlib import Path

import pytest

from pipeline.recipe import RECORD, Recipe
from stages.storage.workspace import Workspace
from tests.evaluations import committed, rows
from tests.pipeline.test_command import invoke
from tests.pipelines import listing

FIRST, SECOND = "0123456789abcdef", "0199456789abcdef"


@pytest.fixture
def root(tmp_path: Path, recipe: Recipe) -> Workspace:
    """Two evaluations, of recipes that differ in one value."""
    place = tmp_path / "root"
    other = recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"temporal_bins": 3})})
    for name, hits, used in ((FIRST, [True] * 8, recipe), (SECOND, [False] * 7 + [True], other)):
        committed(Workspace(place, records={RECORD: used.resolved()}), name, rows(hits))
    return Workspace(place)


def test_a_prefix_or_a_folder_names_an_evaluation_and_nothing_below_the_root_changes(root: Workspace, tmp_path: Path) -> None:
    before = listing(root.root)
    folder = root.artifact_folder("evaluate", SECOND)
    page = tmp_path / "page.html"
    result = invoke("compare", "0123", str(folder), "--root", str(root.root), "--out", str(page), "--json")
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert [one["fingerprint"] for one in record["evaluations"]] == [FIRST, SECOND]
    (pair,) = record["pairs"]
    assert (pair["wins"], pair["losses"], pair["difference"]) == (7, 0, 0.875)
    assert pair["p_value"] == pytest.approx(2 / 128)
    (setting,) = record["settings"]
    assert setting["name"] == "evaluate.temporal_bins"
    assert setting["values"][1] == "3"
    assert page.read_bytes().startswith(b"<!doctype html>")
    assert listing(root.root) == before


def test_for_a_person_there_is_a_table_with_intervals_tests_and_what_differs(root: Workspace, tmp_path: Path) -> None:
    result = invoke("compare", FIRST, SECOND, "--root", str(root.root), "--out", str(tmp_path / "page.html"))
    assert result.exit_code == 0, result.stderr
    assert "class, knn" in result.stdout
    assert "+87.5 points" in result.stdout
    assert "A is better than B by 87.5 points" in result.stdout
    assert "evaluate.temporal_bins" in result.stdout
    assert str(tmp_path / "page.html") in result.stdout


def test_where_clips_have_several_classes_the_scores_say_what_the_first_answer_is(tmp_path: Path) -> None:
    place = Workspace(tmp_path / "root")
    first, second = rows([True] * 4), rows([True] * 4)
    for row in (*first, *second):
        row["predicted"] = []  # no class is probable
    for row in second:
        row["scores"] = row["scores"][::-1]
    committed(place, FIRST, first)
    committed(place, SECOND, second)
    result = invoke("compare", FIRST, SECOND, "--root", str(place.root), "--out", str(tmp_path / "page.html"), "--json")
    assert result.exit_code == 0, result.stderr
    (pair,) = json.loads(result.stdout)["pairs"]
    assert pair["accuracies"] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("01", SECOND), "'01' is the beginning of 2 evaluations: 0123456789abcdef, 0199456789abcdef; give more of it"),
        (("77", SECOND), "'77' is neither the folder of an evaluation nor the beginning of one below"),
        ((SECOND, "0199"), "name two or more different evaluations"),
        ((SECOND,), "name two or more different evaluations"),
    ],
)
def test_a_name_that_means_none_or_several_is_refused(root: Workspace, names: tuple[str, ...], message: str) -> None:
    result = invoke("compare", *names, "--root", str(root.root))
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", "")
    assert result.stdout == ""


def test_damaged_predictions_are_refused(root: Workspace) -> None:
    victim = root.artifact_folder("evaluate", FIRST) / "predictions.parquet"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    result = invoke("compare", FIRST, SECOND, "--root", str(root.root))
    assert result.exit_code == 2
    assert "sha256 differs" in result.stderr


def test_a_record_that_is_not_what_was_written_is_refused(root: Workspace) -> None:
    (root.artifact_folder("evaluate", FIRST) / RECORD).write_text("name: other\n")
    result = invoke("compare", FIRST, SECOND, "--root", str(root.root))
    assert result.exit_code == 2
    assert "not what was written" in result.stderr
