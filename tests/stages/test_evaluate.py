"""An evaluation is one artifact: made once, resumed after a kill, the same bytes whichever way it came about."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stages import evaluate
from stages.errors import ConfigError
from stages.progress import Silent
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome
from stages.storage.features import FeatureUnit, read_kind
from stages.storage.tables import read_table
from stages.storage.workspace import Workspace

Inputs = Mapping[str, Artifact]


def config(**changes: object) -> evaluate.Config:
    fields = {"extra_labels": ["row"], "seeds": [0, 1], "temporal_bins": 2, "pixel_cells": 2}
    fields |= {
        "num_pictures": 1,
        "num_examples": 1,
        "num_picture_frames": 3,
        "measures": [{"name": "few_shot", "episodes": 20}, "retrieval"],
        "probes": [{"name": "linear_probe", "inverse_penalties": [0.01]}, "knn"],
    }
    return evaluate.Config.model_validate(fields | changes)


FIGURES = ("accuracy-00", "accuracy-01", "clip-00", "confusion-00", "confusion-01", "curve-pretrain", "curve-tokenizer")
FIGURES = (*FIGURES, "example-00", "example-01")


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
        *(f"features/part-{ordinal:06d}-00.safetensors" for ordinal in range(3)),
        *sorted([*(f"figures/{name}.png" for name in FIGURES), "figures/clip-00.webm"]),
        "metrics.json",
        "predictions.parquet",
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
        # All tested clips are in one row: there are no episodes of it.
        measures = ("few_shot", "retrieval") if one["label"] == "class" else ("retrieval",)
        assert [(found["measure"], found["features"]) for found in one["measures"]] == [
            (measure, kind) for measure in measures for kind in kinds
        ]
        assert all(found["calibration_error"]["value"] >= 0 for found in one["scores"])
        assert [bucket["num_clips"] for bucket in one["scores"][0]["by_duration"]] == [5]


def test_predictions_hold_what_the_numbers_are_made_of(outcome: Outcome) -> None:
    labels = json.loads(outcome.artifact.verified("metrics.json").read_bytes())["labels"]
    rows = read_table(outcome.artifact.verified("predictions.parquet"))
    assert len(rows) == 2 * 2 * 5 * 5
    for one in labels:
        for found in (found for found in one["scores"] if found["features"] in ("pretrained", "pixels")):
            own = [row for row in rows if all(row[name] == found[name] for name in ("label", "probe", "features"))]
            hits = [row["predicted"] == row["true"] for row in own]
            assert sum(hits) / len(hits) == found["accuracy"]
            assert all(one["class_names"][int(np.argmax(row["scores"]))] == row["predicted"][0] for row in own)
            assert {row["num_frames"] for row in own} == {20, 32}
            assert {row["duration_s"] for row in own} == {np.float32(0.8), np.float32(1.28)}


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
    assert "Fine-tuning" not in page


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
        one, other = (
            read_kind(found.artifact.folder, [FeatureUnit(ordinal, 0) for ordinal in range(3)], kind)
            for found in (outcome, alone)
        )
        assert one.keys() == other.keys()
        assert len(one) == 15
        assert all(abs(one[clip] - other[clip]).max() < 1e-5 for clip in one)
        assert len({row.tobytes() for row in one.values()}) == 15


def quick(**changes: object) -> evaluate.Config:
    """An evaluation of as little as possible."""
    few = {"extra_labels": [], "seeds": [0], "probes": ["knn"], "measures": [], "num_pictures": 0, "num_examples": 0}
    return config(**(few | changes))


def test_features_are_cells_of_time_and_space(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    made = evaluate.run(quick(temporal_bins=4, spatial_cells=2), toy_inputs, toy_workspace).artifact
    found = read_kind(made.folder, [FeatureUnit(0, 0)], "pretrained")
    assert {cells.shape for cells in found.values()} == {(4 * 2 * 2, 16)}


def test_an_encoder_of_others_stands_beside_ours(toy_inputs: Inputs, toy_workspace: Workspace, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"image_size": 32, "num_frames": 4, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    described = transformers.VideoMAEConfig(**shape, intermediate_size=32, use_mean_pooling=False)
    transformers.VideoMAEModel(described).save_pretrained(tmp_path)
    weights = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    theirs = {"name": "theirs", "form": "videomae", "path": str(tmp_path), "sha256": weights}
    found = evaluate.run(quick(others=[theirs]), toy_inputs, toy_workspace)
    label = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"][0]
    assert [one["features"] for one in label["scores"]] == ["pretrained", "untrained", "theirs", "pixels", "frames"]
    assert {one["baseline"] for one in label["comparisons"]} == {"untrained", "theirs", "pixels", "frames"}
    cells = read_kind(found.artifact.folder, [FeatureUnit(0, 0)], "theirs")
    assert {one.shape for one in cells.values()} == {(2, 24)}
    assert "theirs" in found.artifact.verified("report.html").read_text()


def test_an_attentive_probe_resumes_to_the_same_bytes(toy_inputs: Inputs, toy_workspace: Workspace, tmp_path: Path) -> None:
    small = {"name": "attentive_probe", "num_steps": 3, "width": 8, "num_heads": 2}
    asked = quick(probes=["knn", small])
    whole = evaluate.run(asked, toy_inputs, toy_workspace)
    shutil.copytree(toy_workspace.root, tmp_path / "root")
    elsewhere = Workspace(tmp_path / "root")
    shutil.rmtree(elsewhere.root / "evaluate")
    moved = {
        stage: dataclasses.replace(made, folder=elsewhere.root / toy_workspace.relative(made.folder))
        for stage, made in toy_inputs.items()
    }
    with pytest.raises(Killed):
        evaluate.run(asked, moved, dataclasses.replace(elsewhere, monitor=KillsAfter(9)))
    kept = [path for path in elsewhere.root.rglob("*.safetensors") if path.parent.name == "scores"]
    assert len(kept) == 6, "what was read is kept"
    resumed = evaluate.run(asked, moved, elsewhere)
    assert listing(resumed.artifact.folder) == listing(whole.artifact.folder)


def test_folds_score_the_clips_that_are_asked_for(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    found = evaluate.run(quick(folds=2, where={"split": "train"}), toy_inputs, toy_workspace)
    scores = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"][0]["scores"]
    assert [score["num_test"] for score in scores] == [10] * 4
    assert found.counts["pictures"] == 0


def test_a_label_that_no_clip_has_fails_before_any_work(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    before = listing(toy_workspace.root)
    with pytest.raises(ConfigError, match=r"'verb' is on none .* known label columns: \['class', 'group', 'row', 'split'\]"):
        evaluate.run(config(label="verb"), toy_inputs, toy_workspace)
    assert listing(toy_workspace.root) == before


def test_an_extra_label_that_no_clip_has_is_left_out(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    found = evaluate.run(quick(extra_labels=["verb", "row"]), toy_inputs, toy_workspace)
    labels = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"]
    assert [one["label"] for one in labels] == ["class", "row"]


def test_a_joint_label_is_right_only_if_its_parts_are(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    asked = quick(label="both", extra_labels=["class", "row"], joint={"both": ["class", "row"]}, num_examples=1)
    found = evaluate.run(asked, toy_inputs, toy_workspace)
    rows = read_table(found.artifact.verified("predictions.parquet"))
    right = {(row["label"], row["features"], row["clip_id"]): row["predicted"] == row["true"] for row in rows}
    joint = [key for key in right if key[0] == "both"]
    assert len(joint) == 4 * 5
    for _, features, clip_id in joint:
        both = right["class", features, clip_id] and right["row", features, clip_id]
        assert right["both", features, clip_id] == both
    labels = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"]
    assert [one["label"] for one in labels] == ["both", "class", "row"]
    assert labels[0]["measures"] == []


def test_several_values_per_clip_are_told_one_by_one(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    found = evaluate.run(quick(label="row", multi_labels=["row"]), toy_inputs, toy_workspace)
    (label,) = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"]
    assert all(0 <= one["mean_average_precision"]["value"] <= 1 for one in label["scores"])
    assert all(one["mean_class_accuracy"] is None for one in label["scores"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extra_labels": ["class"]}, "name something twice: class, class"),
        ({"probes": ["knn", "knn"]}, "name something twice: knn, knn"),
        ({"probes": ["attentive"]}, "unknown name 'attentive' in stages.evals; known: attentive_probe, few_shot, knn, "),
        ({"probes": ["retrieval"]}, "instance of ProbeConfig"),
        ({"measures": ["knn"]}, "instance of MeasureConfig"),
        ({"joint": {"both": ["class", "row"]}}, "joint names both, which label and extra_labels do not ask"),
        ({"multi_labels": ["verb"]}, "multi_labels names verb, which .* asked: class, row"),
        (
            {"extra_labels": ["row", "both"], "joint": {"both": ["class", "row"]}, "multi_labels": ["row"]},
            "joint.both names row, which",
        ),
        ({"probes": []}, "at least 1 item"),
        ({"layers": 3}, "Extra inputs"),
        ({"others": [{"name": "theirs", "form": "vjepa2", "path": "x"}]}, "theirs must have the sha256 of the weights"),
        (
            {"others": [{"name": "pixels", "form": "vjepa2", "path": "x", "sha256": "0" * 64}]},
            "others and our own features name something twice",
        ),
    ],
)
def test_a_wrong_config_is_refused_with_its_reason(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        config(**changes)


def test_a_fine_tuned_encoder_stands_beside_the_frozen_ones_and_resumes(
    toy_inputs: Inputs, toy_workspace: Workspace, tmp_path: Path
) -> None:
    steps = {"num_epochs": None, "num_steps": 4, "batch_clips": 4, "checkpoint_every_steps": 2, "log_every_steps": 2}
    asked = quick(extra_labels=["row"], fine_tuning={"optimization": steps, "seeds": [0, 5]})
    whole = evaluate.run(asked, toy_inputs, toy_workspace)
    for one in json.loads(whole.artifact.verified("metrics.json").read_bytes())["labels"]:
        found = {score["features"]: score for score in one["scores"] if score["probe"] == "fine_tuning"}
        assert {name: len(score["runs"]) for name, score in found.items()} == {"pretrained": 2, "untrained": 2}
        assert [score["features"] for score in one["scores"] if score["probe"] == "knn"][:2] == ["pretrained", "untrained"]
    units = [f"fine_tuning/{label}-{run}" for label in ("class", "row") for run in RUNS]
    kept = {name for name in whole.artifact.manifest.files if name.startswith("fine_tuning/")}
    assert kept == {f"{unit}.{ending}" for unit in units for ending in ("safetensors", "json")}
    page = whole.artifact.verified("report.html").read_text()
    assert "fine-tuning" in page
    assert "Fine-tuning is the exception" in page
    shutil.copytree(toy_workspace.root, tmp_path / "root")
    elsewhere = Workspace(tmp_path / "root")
    shutil.rmtree(elsewhere.root / "evaluate")
    moved = {
        stage: dataclasses.replace(made, folder=elsewhere.root / toy_workspace.relative(made.folder))
        for stage, made in toy_inputs.items()
    }
    with pytest.raises(Killed):
        evaluate.run(asked, moved, dataclasses.replace(elsewhere, monitor=KillsAfter(KILLED_IN_A_TRAINING)))
    assert list(elsewhere.root.glob("evaluate/*/checkpoints/fine_tuning/*/checkpoints/step-*")), "killed in a training"
    resumed = evaluate.run(asked, moved, elsewhere)
    assert listing(resumed.artifact.folder) == listing(whole.artifact.folder)


RUNS = ("pretrained-00-0", "pretrained-5-00-5", "untrained-0-00-0", "untrained-5-00-5")
KILLED_IN_A_TRAINING = 3 + 2 * 4 + 3 * 4 + 3
"""After features, probes of four kinds for two labels, three trainings and some steps of the next."""


def test_what_one_network_learns_together_is_the_parts_of_a_joint_label(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    steps = {"num_epochs": None, "num_steps": 1, "batch_clips": 2}
    fields = {"label": "both", "extra_labels": ["class", "row"], "joint": {"both": ["class", "row"]}}
    found = evaluate.run(quick(**fields, fine_tuning={"optimization": steps, "seeds": [0]}), toy_inputs, toy_workspace)
    labels = json.loads(found.artifact.verified("metrics.json").read_bytes())["labels"]
    assert [[score["features"] for score in one["scores"] if score["probe"] == "fine_tuning"] for one in labels] == [
        ["pretrained", "untrained"]
    ] * 3
    kept = [name for name in found.artifact.manifest.files if name.startswith("fine_tuning/")]
    assert len(kept) == 2 * 2, "one training per encoder for both labels"
