"""Intervals and tests agree with their closed forms and with published values."""

import itertools
import math

import numpy as np
import pytest

from stages.evals import Sample
from stages.metrics import Answers, answers
from stages.protocol import Question
from stages.scoring import (
    Interval,
    bootstrap_interval,
    buckets,
    compare,
    grouped_interval,
    mean_interval,
    measured,
    score,
    share_interval,
    sign_test,
    student_interval,
    wilson_interval,
)
from tests.stages.questions import asked, clip_of, several

Z = 1.959963984540054


def question(num_train: int = 4, num_test: int = 4) -> Question:
    total = num_train + num_test
    return asked(np.arange(total) % 2, [(range(num_train), range(num_train, total))])


def answered(question: Question, hits: list[bool] | np.ndarray) -> Answers:
    """Answers that are right where it is said."""
    true = question.classes[question.tested]
    said = np.where(hits, true, 1 - true)
    return answers(question, np.eye(2, dtype=np.float32)[said] * 0.8 + 0.1)


@pytest.mark.parametrize(("hits", "total"), [(0, 10), (10, 10), (3, 10), (81, 263), (1, 1)])
def test_wilsons_interval_ends_where_the_normal_test_just_rejects(hits: int, total: int) -> None:
    for end in wilson_interval(hits, total):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(hits / total - end) == pytest.approx(Z * math.sqrt(end * (1 - end) / total))


def test_wilsons_interval_has_its_published_values() -> None:
    """R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3."""
    for hits, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson_interval(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_students_interval_has_the_tables_width() -> None:
    low, high = student_interval((0.4, 0.5, 0.6))
    assert (high - low) / 2 == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)
    assert low + high == pytest.approx(1.0)
    assert student_interval((0.3, 0.3)) == pytest.approx((0.3, 0.3))
    assert student_interval((0.0, 1.0)) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("wins", "losses"), list(itertools.product((0, 1, 3, 9), (0, 1, 4))))
def test_the_sign_test_counts_all_outcomes_that_are_no_less_uneven(wins: int, losses: int) -> None:
    total = wins + losses
    no_less_uneven = [count for count in range(total + 1) if abs(2 * count - total) >= abs(wins - losses)]
    assert sign_test(wins, losses) == pytest.approx(sum(math.comb(total, count) for count in no_less_uneven) / 2**total)


def test_a_score_averages_its_runs_and_tells_both_uncertainties() -> None:
    asked_of = question()
    runs = [answered(asked_of, hits) for hits in ([True, True, False, False], [True, True, True, True])]
    found = score(asked_of, probe="knn", features="untrained", runs=runs, view_frames=128)
    assert (found.accuracy, found.runs, found.num_train, found.num_test) == (0.75, (0.5, 1.0), 4, 4)
    assert found.interval == wilson_interval(3, 4)
    assert found.seed_interval == student_interval((0.5, 1.0))
    assert found.top5_accuracy is None
    assert found.mean_average_precision is None
    assert found.mean_class_accuracy is not None
    assert found.mean_class_accuracy.value == 0.75
    assert found.calibration_error is not None
    assert found.calibration_error.value == pytest.approx((0.4 + 0.1) / 2, abs=1e-6)
    assert found.confusion == {"c0": {"c0": 1, "c1": 1}, "c1": {"c0": 1, "c1": 1}}
    alone = score(asked_of, probe="knn", features="pretrained", runs=runs[:1], view_frames=128)
    assert alone.seed_interval is None


def test_top_5_is_told_of_more_than_five_classes() -> None:
    asked_of = asked(np.arange(24) % 6, [(range(6), range(6, 24))])
    scores = np.tile(np.array([0.3, 0.25, 0.2, 0.15, 0.1, 0.0], dtype=np.float32), (18, 1))
    found = score(asked_of, probe="knn", features="pretrained", runs=[answers(asked_of, scores)], view_frames=128)
    assert found.top5_accuracy is not None
    assert found.top5_accuracy.value == pytest.approx(5 / 6)
    assert found.top5_accuracy.interval == wilson_interval(15, 18)


def test_a_multi_label_has_a_mean_average_precision_with_an_interval() -> None:
    source = np.random.default_rng(0)
    truth = source.random((40, 3)) < 0.4
    asked_of = several(truth, [(range(10), range(10, 40))])
    scores = (0.5 * truth[10:] + 0.5 * source.random((30, 3))).astype(np.float32)
    found = score(asked_of, probe="knn", features="pretrained", runs=[answers(asked_of, scores)], view_frames=128)
    assert found.mean_class_accuracy is None
    assert found.mean_average_precision is not None
    value, interval = found.mean_average_precision.value, found.mean_average_precision.interval
    assert 0.8 < interval.low <= value <= interval.high <= 1


def test_clips_are_sorted_into_buckets_by_length() -> None:
    frames = [100, 101, 400, 1000]
    clips = [clip_of(number, num_frames=count) for number, count in enumerate([*frames, *frames])]
    asked_of = asked([0, 1] * 4, [((4, 5, 6, 7), (0, 1, 2, 3))], clips=clips)
    run = answered(asked_of, [True, False, True, True])
    found = score(asked_of, probe="knn", features="pretrained", runs=[run], view_frames=128)
    told = [(one.name, one.accuracy, one.num_clips, one.interval) for one in found.by_duration]
    assert told == [
        ("0–4 s", 1.0, 1, wilson_interval(1, 1)),
        ("4–8 s", 0.0, 1, wilson_interval(0, 1)),
        ("8–16 s", 1.0, 1, wilson_interval(1, 1)),
        ("> 32 s", 1.0, 1, wilson_interval(1, 1)),
    ]
    assert [(one.name, one.num_clips) for one in found.by_frames] == [("64–128 frames", 4)]


def test_a_length_at_a_limit_belongs_to_the_bucket_below() -> None:
    ones = np.ones(3)
    found = buckets(ones, np.arange(3), np.array([16, 17, 129]), (0, 16, 32, 64, 128), " frames")
    assert [one.name for one in found] == ["0–16 frames", "16–32 frames", "> 128 frames"]


def test_a_comparison_reports_the_least_favourable_seed() -> None:
    asked_of = question(num_test=12)
    own, weak, strong = (answered(asked_of, np.full(12, value)) for value in (True, False, True))
    against_weak = compare(asked_of, probe="knn", features="pretrained", baseline="untrained", runs=[own], against=[weak])
    assert against_weak.is_certain
    assert against_weak.p_value == pytest.approx(2 / 2**12)
    both = compare(asked_of, probe="knn", features="pretrained", baseline="untrained", runs=[own], against=[weak, strong])
    assert (both.difference, both.p_value, both.is_certain) == (0.5, 1.0, False)


def test_independent_clips_have_wilsons_interval_and_other_means_students() -> None:
    assert share_interval(np.array([1.0, 0.0, 1.0]), np.array([5, 3, 9])) == wilson_interval(2, 3)
    assert mean_interval(np.array([0.4, 0.5, 0.6]), np.arange(3)) == student_interval((0.4, 0.5, 0.6))


def test_clips_of_one_group_count_as_little_as_they_tell() -> None:
    """Copies of a clip teach nothing new: the interval is that of the groups, and far wider than that of all clips."""
    source = np.random.default_rng(0)
    of_groups = source.random(40)
    copied, groups = np.repeat(of_groups, 25), np.repeat(np.arange(40), 25)
    low, high = grouped_interval(copied, groups)
    reach = Z * of_groups.std() / math.sqrt(40)
    assert (high - low) / 2 == pytest.approx(reach, rel=0.1)
    assert (low + high) / 2 == pytest.approx(of_groups.mean(), abs=0.01)
    assert share_interval(copied, groups) == grouped_interval(copied, groups)


def test_groups_that_do_not_differ_are_not_certain() -> None:
    groups = np.repeat(np.arange(8), 5)
    assert grouped_interval(np.ones(40), groups) == wilson_interval(8, 8)
    assert grouped_interval(np.ones(3), np.zeros(3, dtype=np.int64)) == wilson_interval(1, 1)


def test_any_number_is_resampled_by_whole_groups() -> None:
    groups = np.array([0, 0, 1, 1, 2, 2])
    seen: list[list[int]] = []

    def statistic(rows: np.ndarray) -> float:
        seen.append(sorted(rows.tolist()))
        return float(np.mean(groups[rows]) / 2)

    low, high = bootstrap_interval(groups, statistic)
    assert 0 <= low < 0.5 < high <= 1
    assert all(rows.count(0) == rows.count(1) and rows.count(4) == rows.count(5) for rows in seen)
    assert bootstrap_interval(np.zeros(3, dtype=np.int64), statistic) == Interval(0.0, 1.0)
    assert bootstrap_interval(groups, lambda rows: 1.0) == wilson_interval(3, 3)


def test_few_groups_do_not_tell_more_than_as_many_independent_clips() -> None:
    """In every group one clip of two is right: a bootstrap over groups alone would be certain of one half."""
    hits, groups = np.array([1.0, 0.0] * 4 + [1.0, 1.0]), np.arange(10) // 2
    found, alone = share_interval(hits, groups), wilson_interval(6, 10)
    assert found.low <= alone.low
    assert found.high >= alone.high


def test_measures_are_averaged_over_the_seeds() -> None:
    runs = [{"mAP": Sample(np.array(values), np.arange(3))} for values in ([0.1, 0.2, 0.3], [0.3, 0.4, 0.5])]
    found = measured("class", "retrieval", "untrained", runs)
    assert found.values["mAP"].value == pytest.approx(0.3)
    assert found.values["mAP"].interval == pytest.approx(student_interval((0.2, 0.3, 0.4)))
