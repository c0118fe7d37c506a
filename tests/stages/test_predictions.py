"""One row per label, reader, features and tested clip, the same bytes every time."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stages.judgement import answer_all
from stages.metrics import answers, joint_answers
from stages.predictions import SCHEMA, write_predictions
from stages.storage.tables import read_arrow, read_table
from tests.stages.questions import asked, clip_of, several

SPLITS = [((0, 1), (3, 2)), ((2, 3), (0, 1))]
CLIPS = [clip_of(number, num_frames=50 + 100 * number) for number in range(4)]
QUESTION = asked([0, 1, 1, 0], SPLITS, groups=[7, 7, 8, 9], clips=CLIPS)
SCORES = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=np.float32)


def test_rows_are_in_the_order_of_splits_and_tested_clips(tmp_path: Path) -> None:
    path = tmp_path / "predictions.parquet"
    found = answers(QUESTION, SCORES)
    readings = {("class", "knn", "pretrained"): found, ("class", "knn", "untrained-0"): found}
    write_predictions(path, [QUESTION], readings, view_frames=128)
    rows = read_table(path)
    assert [row["features"] for row in rows] == ["pretrained"] * 4 + ["untrained-0"] * 4
    assert [row["split"] for row in rows[:4]] == [0, 0, 1, 1]
    assert [row["key"] for row in rows[:4]] == ["3.mp4", "2.mp4", "0.mp4", "1.mp4"]
    assert rows[1] == {
        "label": "class", "probe": "knn", "features": "pretrained", "split": 0, "clip_id": f"{2:032x}", "key": "2.mp4",
        "group": "8", "duration_s": 10.0, "num_frames": 128, "true": ["c1"], "predicted": ["c1"],
        "scores": pytest.approx([0.2, 0.8]),
    }  # fmt: skip
    assert rows[2]["num_frames"] == 50
    assert read_arrow(path).schema.equals(SCHEMA)
    assert pq.ParquetFile(path).num_row_groups == 2


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        readings = answer_all([QUESTION], {("class", "knn", "pretrained"): SCORES})
        write_predictions(tmp_path / name, [QUESTION], readings, view_frames=128)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_labels_with_several_classes_have_lists_and_joint_ones_no_scores(tmp_path: Path) -> None:
    truth = np.array([[True, True], [False, True], [True, False], [True, True]])
    many = several(truth, SPLITS)
    joint = asked([0, 1, 1, 0], SPLITS, label="action", names=["c0 + c0", "c1 + c1"], clips=CLIPS)
    readings = {
        ("verbs", "knn", "pixels"): answers(many, SCORES),
        ("action", "knn", "pixels"): joint_answers(joint, [(QUESTION, SCORES), (QUESTION, SCORES)]),
    }
    write_predictions(tmp_path / "p.parquet", [joint, many], readings, view_frames=128)
    rows = read_table(tmp_path / "p.parquet")
    assert [row["label"] for row in rows] == ["action"] * 4 + ["verbs"] * 4
    assert [row["scores"] for row in rows[:4]] == [None] * 4
    assert rows[0]["predicted"] == ["c0 + c0"]
    assert [row["true"] for row in rows[4:]] == [["c0", "c1"], ["c0"], ["c0", "c1"], ["c1"]]
    assert [row["predicted"] for row in rows[4:]] == [["c0"], ["c1"], ["c1"], ["c1"]]


def test_a_joint_label_is_answered_by_every_reader_that_read_all_its_parts() -> None:
    verb, noun = asked([0, 1, 1, 0], SPLITS, label="verb"), asked([0, 1, 1, 0], SPLITS, label="noun")
    action = asked([0, 1, 1, 0], SPLITS, label="action", names=["c0 + c0", "c1 + c1"])
    action = type(action)(**{**vars(action), "asking": action.asking._replace(parts=("verb", "noun"))})
    readings = {("verb", "knn", "a"): SCORES, ("noun", "knn", "a"): SCORES, ("verb", "fine_tuning", "a"): SCORES}
    found = answer_all([action, verb, noun], readings)
    assert {key for key in found if key[0] == "action"} == {("action", "knn", "a")}
