"""Intervals and tests agree with their closed forms and with published values."""

import itertools
import math

import numpy as np
import pytest

from stages.evals import linear_probe
from stages.protocol import Question, Split
from stages.scoring import Interval, compare, predicted_hits, score, sign_test, student_interval, wilson_interval

Z = 1.959963984540054


def question(num_train: int = 4, num_test: int = 4) -> Question:
    total = num_train + num_test
    split = Split(np.arange(num_train), np.arange(num_train, total))
    classes = np.arange(total) % 2
    return Question("class", np.arange(total), ("a", "b"), classes, np.arange(total), (split,))


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
    runs = [np.array([True, True, False, False]), np.array([True, True, True, True])]
    found = score(question(), probe="knn", features="untrained", runs=runs)
    assert (found.accuracy, found.runs, found.num_train, found.num_test) == (0.75, (0.5, 1.0), 4, 4)
    assert found.interval == wilson_interval(3, 4)
    assert found.seed_interval == student_interval((0.5, 1.0))
    assert score(question(), probe="knn", features="pretrained", runs=runs[:1]).seed_interval is None


def test_a_comparison_reports_the_least_favourable_seed() -> None:
    own = np.ones(12, dtype=bool)
    weak, strong = np.zeros(12, dtype=bool), own.copy()
    asked = question(num_test=12)
    against_weak = compare(asked, probe="knn", features="pretrained", baseline="untrained", runs=[own], against=[weak])
    assert against_weak.is_certain
    assert against_weak.p_value == pytest.approx(2 / 2**12)
    both = compare(asked, probe="knn", features="pretrained", baseline="untrained", runs=[own], against=[weak, strong])
    assert (both.difference, both.p_value, both.is_certain) == (0.5, 1.0, False)


def test_hits_are_in_the_order_of_the_tested_clips() -> None:
    rows = np.array([5, 1, 0, 2, 3, 4])
    classes = np.array([0, 1, 0, 1, 0, 1])
    splits = (Split(np.array([0, 1, 2, 3]), np.array([5, 4])), Split(np.array([2, 3, 4, 5]), np.array([0, 1])))
    asked = Question("class", rows, ("a", "b"), classes, np.arange(6), splits)
    features = np.zeros((6, 1), dtype=np.float32)
    features[rows, 0] = classes
    features[rows[4]] = 1.0  # clip 4 looks like the other class
    hits = predicted_hits(linear_probe.Config(inverse_penalties=(100.0,)), asked, features)
    assert hits.tolist() == [True, False, True, True]
