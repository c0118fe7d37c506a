"""Numbers agree with hand calculation and with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

from stages.metrics import (
    answers,
    calibration_error,
    confusion,
    durations_s,
    frames_seen,
    joint_answers,
    mean_average_precision,
    mean_class_accuracy,
    ranked,
)
from tests.stages.questions import asked, clip_of, several


def drawn(num_clips: int, num_classes: int, seed: int = 0) -> np.ndarray:
    scores = np.random.default_rng(seed).random((num_clips, num_classes)).astype(np.float32)
    return scores / scores.sum(axis=1, keepdims=True)


def test_the_lowest_class_is_named_among_equals() -> None:
    order, best = ranked(np.array([[0.2, 0.4, 0.4], [0.5, 0.0, 0.5]], dtype=np.float32))
    assert order.tolist() == [[1, 2, 0], [0, 2, 1]]
    assert best[:, 0].tolist() == pytest.approx([0.4, 0.5])


def test_answers_are_those_of_scikit_learn() -> None:
    classes = np.arange(40) % 8
    question = asked(classes, [(range(8), range(8, 40))])
    scores = drawn(32, 8)
    found = answers(question, scores)
    true = classes[8:]
    assert (found.hits == (scores.argmax(axis=1) == true)).all()
    assert found.hits_at_5.mean() == pytest.approx(top_k_accuracy_score(true, scores, k=5))
    assert mean_class_accuracy(found.hits, true) == pytest.approx(balanced_accuracy_score(true, scores.argmax(axis=1)))
    counts = confusion_matrix(true, scores.argmax(axis=1))
    told = confusion(question, found)
    assert [[told[f"c{y}"].get(f"c{x}", 0) for x in range(8)] for y in range(8)] == counts.tolist()


def test_answers_follow_the_order_of_the_tested_clips() -> None:
    question = asked([0, 1, 1, 0], [((0, 1), (3, 2)), ((2, 3), (0, 1))])
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.4, 0.6]], dtype=np.float32)
    found = answers(question, scores)
    assert found.hits.tolist() == [True, True, False, True]
    assert found.predicted == (("c0",), ("c1",), ("c1",), ("c1",))


def test_the_calibration_error_is_that_of_hand_made_bins() -> None:
    source = np.random.default_rng(0)
    confidence = source.uniform(0.2, 0.99, 200).astype(np.float32)
    hits = source.random(200) < confidence**2
    error = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            error += inside.mean() * abs(hits[inside].mean() - confidence[inside].mean())
    assert calibration_error(confidence, hits) == pytest.approx(error, abs=1e-5)
    assert calibration_error(np.full(10, 0.8, np.float32), np.arange(10) < 8) == pytest.approx(0, abs=1e-6)


def test_mean_average_precision_is_scikit_learns_over_the_classes_that_are_shown() -> None:
    source = np.random.default_rng(0)
    truth, scores = source.random((50, 6)) < 0.3, source.random((50, 6)).astype(np.float32)
    truth[:, 4] = False
    shown = [0, 1, 2, 3, 5]
    wanted = average_precision_score(truth[:, shown], scores[:, shown], average="macro")
    assert mean_average_precision(scores, truth) == pytest.approx(wanted, abs=1e-6)
    one = average_precision_score(truth[:, 1], scores[:, 1])
    assert mean_average_precision(scores[:, 1:2], truth[:, 1:2]) == pytest.approx(one, abs=1e-6)
    assert mean_average_precision(scores, np.zeros_like(truth)) == 0


def test_a_multi_label_is_said_to_show_what_is_more_likely_than_not() -> None:
    truth = np.array([[True, True, False], [False, False, True], [False, True, False]])
    question = several(truth, [((0, 1, 2), (0, 1, 2))])
    found = answers(question, np.array([[0.6, 0.7, 0.1], [0.1, 0.4, 0.3], [0.5, 0.2, 0.9]], dtype=np.float32))
    assert found.predicted == (("c0", "c1"), (), ("c0", "c2"))
    assert found.hits.tolist() == [True, False, False]
    assert confusion(question, found) == {}


def test_an_action_is_as_probable_as_verb_times_noun_and_right_only_if_both_are() -> None:
    """EPIC-KITCHENS-100's rule by hand: the whole product table, its five largest entries."""
    num_clips = 30
    verbs, nouns = np.arange(num_clips) % 3, np.arange(num_clips) // 3 % 7
    split = [(range(10), range(10, num_clips))]
    verb, noun = asked(verbs, split, label="verb"), asked(nouns, split, label="noun")
    names = [f"c{one} + c{other}" for one in range(3) for other in range(7)]
    action = asked(verbs * 7 + nouns, split, label="action", names=names)
    likely_verbs, likely_nouns = drawn(20, 3, seed=1), drawn(20, 7, seed=2)
    found = joint_answers(action, [(verb, likely_verbs), (noun, likely_nouns)])
    for row in range(20):
        table = np.outer(likely_verbs[row], likely_nouns[row])
        order = np.argsort(-table.ravel())[:5]
        wanted = verbs[10 + row] * 7 + nouns[10 + row]
        assert found.right[row].tolist() == (order == wanted).tolist()
        assert found.confidence[row] == pytest.approx(table.max())
        assert found.predicted[row] == (names[order[0]],)
    both = (likely_verbs.argmax(axis=1) == verbs[10:]) & (likely_nouns.argmax(axis=1) == nouns[10:])
    assert (found.hits == both).all()
    assert 0 < found.hits.mean() < 1


def test_the_parts_of_a_joint_answer_may_be_asked_of_more_clips() -> None:
    verb = asked([0, 1, 0, 1], [((0, 1), (2, 3))], label="verb", rows=[0, 1, 2, 3])
    noun = asked([0, 1, 1], [((0, 1), (2,))], label="noun", rows=[0, 1, 3])
    action = asked([0, 1, 1], [((0, 1), (2,))], label="action", rows=[0, 1, 3], names=["c0 + c0", "c1 + c1"])
    scores = np.array([[1, 0], [0, 1]], dtype=np.float32)
    found = joint_answers(action, [(verb, scores), (noun, scores[1:])])
    assert found.hits.tolist() == [True]
    assert found.predicted == (("c1 + c1",),)


def test_lengths_are_those_of_the_tested_clips() -> None:
    clips = [clip_of(number, num_frames=50 * (number + 1), fps=25.0) for number in range(4)]
    question = asked([0, 1, 0, 1], [((0, 1), (3, 2))], clips=clips)
    assert durations_s(question).tolist() == [8.0, 6.0]
    assert frames_seen(question, 180).tolist() == [180, 150]
