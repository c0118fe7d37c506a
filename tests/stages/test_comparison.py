"""Evaluations side by side: numbers that can be worked out by hand, and warnings where they do not compare."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from stages.comparison import Evaluation, Pair, compare, difference_interval, holm
from stages.comparison_page import chart, render, verdict
from stages.scoring import Interval
from tests import evaluations
from tests.evaluations import rows


def evaluation(name: str, predictions: Sequence[Mapping[str, Any]], **changes: Any) -> Evaluation:
    class_names = changes.pop("class_names", evaluations.CLASSES)
    fields = {
        "title": "lvmae", "fingerprint": name * 16, "folder": f"/{name}",
        "labels": evaluations.labels(predictions, class_names), "rows": predictions, "settings": {}, "inputs": {"shard": "1"},
    }  # fmt: skip
    return Evaluation(name=name, **{**fields, **changes})


def only_pair(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Pair:
    (pair,) = compare([evaluation("A", first), evaluation("B", second)]).pairs
    return pair


def test_accuracies_difference_and_sign_test_are_those_worked_out_by_hand() -> None:
    pair = only_pair(rows([True] * 8 + [False] * 2), rows([True, True, *[False] * 7, False]))
    assert (pair.num_clips, pair.num_groups) == (10, 10)
    assert pair.accuracies == pytest.approx((0.8, 0.2))
    assert pair.difference == pytest.approx(0.6)
    assert (pair.wins, pair.losses) == (6, 0)
    assert pair.p_value == pytest.approx(2 * 0.5**6)
    assert pair.adjusted_p_value == pair.p_value, "a single test needs no correction"
    assert pair.is_certain


def test_pairs_are_joined_by_clip_and_split_and_only_the_common_ones_count() -> None:
    first = rows([True] * 4) + rows([True] * 2, split=1, first=4)
    second = rows([False] * 3, first=2) + rows([False] * 2, split=1, first=5)
    pair = only_pair(first, second)
    assert pair.num_clips == 3, "clips 2 and 3 of split 0 and clip 5 of split 1"
    (warning,) = compare([evaluation("A", first), evaluation("B", second)]).warnings
    assert "6 and 5, of which 3 are in the same split" in warning


def test_the_features_that_an_evaluation_is_about_are_compared_and_not_its_baselines() -> None:
    first = rows([True] * 4) + rows([False] * 4, features="untrained-0")
    second = rows([False] * 4, features="videomae") + rows([True] * 4, features="untrained-0")
    assert only_pair(first, second).difference == 1


def test_every_label_and_probe_that_both_have_is_a_pair_and_their_tests_are_corrected_together() -> None:
    alone, other = [True] * 6, [False] * 6
    first = rows(alone) + rows(alone, probe="linear_probe") + rows(alone, probe="only here")
    second = rows(other) + rows(other, probe="linear_probe")
    found = compare([evaluation("A", first), evaluation("B", second), evaluation("C", second)])
    assert [(pair.first, pair.second, pair.probe) for pair in found.pairs] == [
        (first, second, probe) for first, second in ("AB", "AC", "BC") for probe in ("knn", "linear_probe")
    ]
    assert found.pairs[0].p_value == pytest.approx(2 / 64)
    assert found.pairs[0].adjusted_p_value == pytest.approx(6 * 2 / 64), "the smallest of six"
    assert not found.pairs[0].is_certain
    assert found.pairs[-1].adjusted_p_value == 1


def test_holms_correction_is_that_of_the_textbook() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_groups_are_drawn_whole_so_that_copies_of_a_clip_tell_nothing_new() -> None:
    source = np.random.default_rng(3)
    differences = source.integers(-1, 2, 60).astype(np.float64)
    groups = [str(number) for number in range(60)]
    alone = difference_interval(differences, groups)
    copied = difference_interval(differences.repeat(5), [name for name in groups for _ in range(5)])
    apart = difference_interval(differences.repeat(5), [str(number) for number in range(300)])
    assert copied == pytest.approx(alone)
    assert apart.high - apart.low < 0.6 * (alone.high - alone.low)


def test_of_two_groups_the_interval_is_all_that_they_can_give() -> None:
    assert difference_interval(np.array([1.0, 0.0]), ["a", "b"]) == Interval(0, 1)
    low, high = difference_interval(np.array([1.0, 0.0]), ["a", "a"])
    assert low < -0.2, "a single group says next to nothing"
    assert high > 0.95


def test_for_many_independent_clips_the_interval_is_the_normal_one() -> None:
    differences = np.tile([1.0, 0.0, 0.0, -1.0, 0.0], 200)
    found = difference_interval(differences, [str(number) for number in range(1000)])
    reach = 1.96 * differences.std() / np.sqrt(1000)
    assert found == pytest.approx((-reach, reach), abs=0.15 * reach)


def test_durations_fall_into_the_buckets_whose_upper_end_belongs_to_them() -> None:
    durations_s = [0.5, 4.0, 4.1, 8.0, 31.0, 33.0]
    first = rows([True] * 6, durations_s=durations_s)
    second = rows([False, True, False, False, True, True], durations_s=durations_s)
    buckets = only_pair(first, second).buckets
    assert [(one.title, one.num_clips, one.difference) for one in buckets] == [
        ("0–4 s", 2, 0.5),
        ("4–8 s", 2, 1.0),
        ("16–32 s", 1, 0.0),
        ("> 32 s", 1, 0.0),
    ]


def test_clips_that_changed_are_named_each_way() -> None:
    pair = only_pair(rows([True, False, True, True]), rows([False, True, True, True]))
    assert [(one.key, one.true, one.first, one.second) for one in pair.won] == [("<clip> 0.mp4", ("left",), "left", "right")]
    assert [one.key for one in pair.lost] == ["<clip> 1.mp4"]


def test_a_few_of_many_changed_clips_are_of_all_classes() -> None:
    pair = only_pair(rows([True] * 40), rows([False] * 40))
    assert pair.wins == 40
    assert len(pair.won) == 8
    assert [one.true for one in pair.won[:2]] == [("left",), ("right",)]


def test_where_a_clip_may_have_several_classes_the_most_probable_one_counts() -> None:
    first, second = rows([True] * 2), rows([True] * 2)
    for row in (*first, *second):
        row["true"], row["predicted"] = ["right"], ["left", "right"]
    first[0]["scores"], first[1]["scores"] = [0.6, 0.9], [0.9, 0.6]
    second[0]["scores"], second[1]["scores"] = [0.1, 0.2], [0.6, 0.7]
    second[1]["true"] = first[1]["true"] = ["left", "right"]
    pair = only_pair(first, second)
    assert pair.accuracies == (1.0, 1.0)
    second[0]["scores"] = [0.7, 0.2]
    assert only_pair(first, second).accuracies == (1.0, 0.5)


def test_of_several_seeds_the_first_is_compared() -> None:
    first = [row for seed, hit in ((10, False), (2, True)) for row in rows([hit] * 4, features=f"pretrained-{seed}")]
    told = evaluations.labels(rows([True] * 4))
    found = compare([evaluation("A", first, labels=told), evaluation("B", rows([False] * 4))])
    assert found.pairs[0].accuracies == (1.0, 0.0)


def test_other_classes_and_labels_are_warned_of() -> None:
    first = evaluation("A", rows([True] * 2) + rows([True], label="verb"))
    second = evaluation("B", rows([True] * 2), class_names=("left", "right", "up"))
    third = evaluation("C", rows([True], label="noun"))
    warnings = compare([first, second, third]).warnings
    assert "A and B were not asked for the same labels; left out here: verb." in warnings
    assert "A and B tell different classes of “class”: 2 and 3; one task may be easier." in warnings
    assert any(warning.startswith("A and C have no label in common") for warning in warnings)
    relabelled = rows([True] * 2)
    relabelled[0]["true"] = ["right"]
    (warning,) = compare([first, evaluation("D", relabelled + rows([True], label="verb"))]).warnings
    assert warning == "1 of the common clips of “class” have other classes in A than in D."


def test_only_settings_that_differ_are_named_and_all_inputs() -> None:
    first = evaluation("A", rows([True]), settings={"seed": "0", "width": "16"})
    second = evaluation("B", rows([True]), settings={"seed": "1", "width": "16", "extra": "x"}, inputs={"shard": "2"})
    found = compare([first, second])
    assert [(one.name, list(one.values)) for one in found.settings] == [("seed", ["0", "1"]), ("extra", [None, "x"])]
    assert [(one.name, list(one.values)) for one in found.inputs] == [("shard", ["1", "2"])]


def test_the_verdict_claims_no_more_than_the_test() -> None:
    certain = only_pair(rows([False] * 8), rows([True] * 8))
    assert verdict(certain) == "B is better than A by 100.0 points, and not by chance (adjusted p = 0.008)."
    assert "not told apart" in verdict(only_pair(rows([False]), rows([True])))


def test_the_page_is_the_same_every_time_and_escapes_what_it_is_given() -> None:
    found = compare([evaluation("A", rows([True, False])), evaluation("B", rows([False, False]), title="<b>bold</b>")])
    page = render(found).decode()
    assert page == render(found).decode()
    assert "&lt;clip&gt; 0.mp4" in page
    assert "<b>bold</b>" not in page
    assert "http" not in page.replace('http-equiv="', ""), "nothing is loaded from anywhere"


def test_a_page_without_a_pair_says_so() -> None:
    found = compare([evaluation("A", rows([True])), evaluation("B", rows([True], label="verb"))])
    assert "there is no pair to compare" in render(found).decode()


def test_in_the_chart_a_difference_to_the_right_is_a_positive_one() -> None:
    drawn = chart([only_pair(rows([True] * 3 + [False]), rows([False] * 4)), only_pair(rows([False] * 4), rows([True] * 4))])
    assert drawn.marks[0].low <= drawn.marks[0].x <= drawn.marks[0].high
    assert drawn.marks[1].x < drawn.zero < drawn.marks[0].x
    assert drawn.ticks[len(drawn.ticks) // 2] == (drawn.zero, "0")
