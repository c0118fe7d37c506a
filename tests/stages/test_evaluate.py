"""An evaluation is one artifact: made once, resumed after a kill, the same bytes whichever way it came about."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from stages import evaluate
from stages.errors import ConfigError
from stages.progress import Silent
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.features import read_kind
from stages.storage.workspace import Workspace

Inputs = Mapping[str, Artifact]


def config(**changes: object) -> evaluate.Config:
    fields = {"extra_labels": ["row"], "seeds": [0, 1], "temporal_bins": 2, "pixel_cells": 2}
    fields |= {
        "num_pictures": 1,
        "num_picture_frames": 3,
        "probes": [{"name": "linear_probe", "inverse_penalties": [0.01]}, "knn"],
    }
    return evaluate.Config.model_validate(fields | changes)


def listing(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Killed(Exception):
    """Stands for the end of the process."""


class KillsAfter(Silent):
    """A monitor under which a run dies when it has finished some units."""

    def __init__(self, units: int) -> None:
        self.left = units

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            raise Killed


@pytest.fixture(scope="module")
def outcome(toy_inputs: Inputs, toy_workspace: Workspace) -> Outcome:
    return evaluate.run(config(), toy_inputs, toy_workspace)


def test_it_publishes_a_page_numbers_pictures_and_features(outcome: Outcome) -> None:
    assert sorted(outcome.artifact.manifest.files) == [
        *(f"features/part-{ordinal:06d}.safetensors" for ordinal in range(3)),
        *(f"figures/{name}.png" for name in ("accuracy-00", "accuracy-01", "clip-00", "curve-pretrain", "curve-tokenizer")),
        "metrics.json",
        "report.html",
    ]
    assert not artifact.damages(outcome.artifact)
    assert (outcome.units_done, outcome.units_reused) == (3, 0)
    assert outcome.counts == {"clips": 15, "labels": 2, "pictures": 1, "units": 3}


def test_every_label_is_scored_by_every_probe_on_all_features(outcome: Outcome) -> None:
    labels = json.loads(outcome.artifact.verified("metrics.json").read_bytes())["labels"]
    assert [(one["label"], one["num_clips"], one["uniform_chance"]) for one in labels] == [
        ("class", 15, 0.5),
        ("row", 15, 1 / 3),
    ]
    kinds = ["pretrained", "untrained", "pixels", "frames"]
    for one in labels:
        assert [(found["probe"], found["features"]) for found in one["scores"]] == [
            (probe, kind) for probe in ("linear_probe", "knn") for kind in kinds
        ]
        assert [len(found["runs"]) for found in one["scores"]] == [1, 2, 1, 1] * 2
        assert all(found["interval"][0] <= found["accuracy"] <= found["interval"][1] for found in one["scores"])
        assert len(one["comparisons"]) == 6


def test_it_reports_the_accuracies_of_the_first_label(outcome: Outcome) -> None:
    labels = json.loads(outcome.artifact.verified("metrics.json").read_bytes())["labels"]
    assert outcome.metrics["chance"] == 0.5
    assert outcome.metrics["linear_probe_pretrained"] == labels[0]["scores"][0]["accuracy"]


def test_pixels_over_time_tell_the_direction_and_single_frames_do_not(outcome: Outcome) -> None:
    assert outcome.metrics["knn_pixels"] == 1.0
    assert outcome.metrics["knn_frames"] < 1.0


def test_the_page_names_its_origins_and_what_became_no_clip(outcome: Outcome, toy_inputs: Inputs) -> None:
    page = outcome.artifact.verified("report.html").read_text()
    assert all(made.digest in page for made in toy_inputs.values())
    assert "&lt;b&gt;bad&lt;/b&gt;.mp4" in page
    assert "<b>bad" not in page
    assert "those with split = test" in page
    assert str(outcome.artifact.folder) not in page


def test_running_it_again_writes_nothing_and_says_the_same(
    outcome: Outcome, toy_inputs: Inputs, toy_workspace: Workspace
) -> None:
    before = listing(toy_workspace.root)
    again = evaluate.run(config(), toy_inputs, toy_workspace)
    assert listing(toy_workspace.root) == before
    assert (again.units_done, again.units_reused, again.metrics) == (0, 3, outcome.metrics)


@pytest.mark.parametrize("units", [2, 5])  # while features are made, and while probes are fitted
def test_a_killed_run_continues_and_ends_with_the_same_bytes(
    outcome: Outcome, toy_inputs: Inputs, toy_workspace: Workspace, tmp_path: Path, units: int
) -> None:
    elsewhere = Workspace(tmp_path)
    for made in toy_inputs.values():
        shutil.copytree(made.folder, tmp_path / toy_workspace.relative(made.folder))
    moved = {
        stage: dataclasses.replace(made, folder=tmp_path / toy_workspace.relative(made.folder))
        for stage, made in toy_inputs.items()
    }
    with pytest.raises(Killed):
        evaluate.run(config(), moved, dataclasses.replace(elsewhere, monitor=KillsAfter(units)))
    resumed = evaluate.run(config(), moved, elsewhere)
    assert (resumed.units_done, resumed.units_reused) == ((1, 2) if units == 2 else (0, 3))
    assert listing(resumed.artifact.folder) == listing(outcome.artifact.folder)


def test_short_clips_have_features_of_their_recorded_frames(
    outcome: Outcome, toy_inputs: Inputs, toy_workspace: Workspace
) -> None:
    """A clip's features do not depend on which other clips share its batch, whatever their lengths."""
    alone = evaluate.run(config(batch_clips=1), toy_inputs, toy_workspace)
    for kind in ("pretrained", "untrained-1", "pixels", "frames"):
        one, other = (read_kind(found.artifact.folder, [0, 1, 2], kind) for found in (outcome, alone))
        assert one.keys() == other.keys()
        assert len(one) == 15
        assert all(abs(one[clip_id] - other[clip_id]).max() < 1e-5 for clip_id in one)
        assert len({row.tobytes() for row in one.values()}) == 15


def test_folds_score_the_clips_that_are_asked_for(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    changes = {"folds": 2, "where": {"split": "train"}, "extra_labels": [], "seeds": [0], "probes": ["knn"], "num_pictures": 0}
    found = evaluate.run(config(**changes), toy_inputs, toy_workspace)
    scores = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"][0]["scores"]
    assert [score["num_test"] for score in scores] == [10] * 4
    assert found.counts["pictures"] == 0


def test_a_label_that_no_clip_has_fails_before_any_work(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    before = listing(toy_workspace.root)
    with pytest.raises(ConfigError, match=r"'verb' is on none .* known label columns: \['class', 'group', 'row', 'split'\]"):
        evaluate.run(config(label="verb"), toy_inputs, toy_workspace)
    assert listing(toy_workspace.root) == before


def test_an_extra_label_that_no_clip_has_is_left_out(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    changes = {"extra_labels": ["verb", "row"], "seeds": [0], "probes": ["knn"], "num_pictures": 0}
    found = evaluate.run(config(**changes), toy_inputs, toy_workspace)
    labels = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"]
    assert [one["label"] for one in labels] == ["class", "row"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra_labels": ["class"]}, "name something twice: class, class"),
        ({"probes": ["knn", "knn"]}, "name something twice: knn, knn"),
        ({"probes": ["attentive"]}, "unknown name 'attentive' in stages.evals; known: knn, linear_probe"),
        ({"probes": []}, "at least 1 item"),
        ({"layers": 3}, "Extra inputs"),
    ],
)
def test_a_wrong_config_is_refused_with_its_reason(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**changes)
