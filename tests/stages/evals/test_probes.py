"""Every probe answers alike, learns what is there to learn, and chooses nothing on the clips it is tested on."""

from collections.abc import Iterator

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from models.extension import load, names
from stages.evals import Classes, Features, MeasureConfig, ProbeConfig, Scores, knn, linear_probe, standardised

PROTOCOLS: dict[str, ProbeConfig | MeasureConfig] = {name: load("stages.evals", name) for name in names("stages.evals")}
PROBES = [name for name, found in PROTOCOLS.items() if isinstance(found, ProbeConfig)]
MEASURES = [name for name, found in PROTOCOLS.items() if isinstance(found, MeasureConfig)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the scoring does: threads cost more than these problems."""
    with threadpool_limits(limits=1):
        yield


def blobs(num_clips: int, num_classes: int, *, width: int = 12, gap: float = 4.0, seed: int = 0) -> tuple[Features, Classes]:
    """Features ``[n 1 width]`` around one centre per class, and the classes."""
    centres = np.random.default_rng(99).normal(size=(num_classes, width)) * gap
    source = np.random.default_rng(seed)
    classes = np.arange(num_clips) % num_classes
    features = centres[classes] + source.normal(size=(num_clips, width))
    return features.astype(np.float32)[:, None], classes.astype(np.int64)


def scored(probe: ProbeConfig, features: Features, classes: Classes, test_features: Features, num_classes: int = 0) -> Scores:
    """A probe's scores where every clip is a group of its own."""
    count = num_classes or int(classes.max()) + 1
    return probe.scores(features, classes, num_classes=count, groups=each_alone(classes), test_features=test_features)


def each_alone(classes: Classes) -> Classes:
    return np.arange(len(classes))


@pytest.fixture(params=PROBES)
def probe(request: pytest.FixtureRequest) -> ProbeConfig:
    quick = (
        {"num_steps": 20, "width": 16, "learning_rates": [1e-2], "weight_decays": [0.01]}
        if request.param == "attentive_probe"
        else {}
    )
    found: ProbeConfig = load("stages.evals", {"name": request.param, **quick})
    return found


def test_the_folder_holds_probes_and_measures_and_nothing_else() -> None:
    assert PROBES == ["attentive_probe", "knn", "linear_probe"]
    assert MEASURES == ["few_shot", "retrieval"]
    assert len(PROTOCOLS) == len(PROBES) + len(MEASURES)


def test_a_protocol_is_named_after_its_file_and_has_a_title() -> None:
    assert all(found.name == name and found.title for name, found in PROTOCOLS.items())


def test_a_probe_tells_classes_apart_that_lie_apart(probe: ProbeConfig) -> None:
    features, classes = blobs(60, 3)
    test_features, test_classes = blobs(30, 3, seed=1)
    assert (scored(probe, features, classes, test_features).argmax(axis=1) == test_classes).all()


def test_scores_are_probabilities_and_zero_for_what_nothing_teaches(probe: ProbeConfig) -> None:
    features, classes = blobs(40, 4, gap=0.5)
    scores = scored(probe, features, np.array([0, 2, 3, 5])[classes], features[:9], num_classes=7)
    assert scores.shape == (9, 7)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert (scores[:, [1, 4, 6]] == 0).all()
    assert scores.min() >= 0


def test_a_probe_gives_the_same_answer_twice(probe: ProbeConfig) -> None:
    features, classes = blobs(40, 4, gap=0.5)
    test_features, _ = blobs(40, 4, gap=0.5, seed=1)
    answers = [scored(probe, features, classes, test_features) for _ in range(2)]
    assert (answers[0] == answers[1]).all()
    assert len(set(answers[0].argmax(axis=1).tolist())) > 1


def test_a_probe_answers_each_test_clip_without_looking_at_the_others(probe: ProbeConfig) -> None:
    features, classes = blobs(40, 4, gap=0.5)
    test_features, _ = blobs(4, 4, gap=0.5, seed=1)
    together = scored(probe, features, classes, test_features)
    alone = [scored(probe, features, classes, test_features[row : row + 1])[0] for row in range(4)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_probe_copes_with_few_clips_and_features_that_never_vary(probe: ProbeConfig) -> None:
    features = np.array([[[0, 1, 7]], [[1, 1, 7]], [[0, 1, 7]]], dtype=np.float32)
    scores = scored(probe, features, np.array([4, 9, 4]), features[:2], num_classes=10)
    assert set(scores.argmax(axis=1).tolist()) <= {4, 9}
    assert np.isfinite(scores).all()


def test_standardising_uses_the_training_clips_alone() -> None:
    train, test = standardised(np.array([[0, 5], [2, 5]], np.float32), np.array([[4, 6]], np.float32))
    assert train.tolist() == [[-1, 0], [1, 0]]
    assert test.tolist() == [[3, 0]]


def test_the_linear_probe_is_scikit_learns_on_standardised_features() -> None:
    features, classes = blobs(50, 5, gap=0.4)
    test_features, _ = blobs(100, 5, gap=0.4, seed=1)
    scaler = StandardScaler().fit(features[:, 0])
    reference = LogisticRegression(C=0.01, max_iter=500).fit(scaler.transform(features[:, 0]), classes)
    scores = scored(linear_probe.Config(inverse_penalties=(0.01,)), features, classes, test_features)
    asked = scaler.transform(test_features[:, 0])
    assert (scores.argmax(axis=1) == reference.predict(asked)).all()
    np.testing.assert_allclose(scores, reference.predict_proba(asked), atol=1e-4)


def test_nearest_neighbours_are_scikit_learns_on_standardised_features() -> None:
    features, classes = blobs(50, 5, gap=0.4)
    test_features, _ = blobs(100, 5, gap=0.4, seed=1)
    scaler = StandardScaler().fit(features[:, 0])
    reference = KNeighborsClassifier(7, weights="distance", metric="cosine").fit(scaler.transform(features[:, 0]), classes)
    scores = scored(knn.Config(num_neighbours=7), features, classes, test_features)
    assert (scores.argmax(axis=1) == reference.predict(scaler.transform(test_features[:, 0]))).all()


def test_turning_wide_features_into_their_own_span_changes_no_answer() -> None:
    features, classes = blobs(40, 4, width=300, gap=0.05)
    features, test_features = features[:, 0], blobs(200, 4, width=300, gap=0.05, seed=1)[0][:, 0]
    turned, test_turned = linear_probe.rotated(features, test_features)
    assert turned.shape == (40, 40)
    np.testing.assert_allclose(turned @ turned.T, features @ features.T, atol=1e-2)
    np.testing.assert_allclose(test_turned @ turned.T, test_features @ features.T, atol=1e-2)
    direct = LogisticRegression(C=0.01, max_iter=500).fit(features, classes).predict(test_features)
    inside = LogisticRegression(C=0.01, max_iter=500).fit(turned, classes).predict(test_turned)
    assert (direct == inside).mean() > 0.99


@pytest.mark.parametrize("seed", range(3))
def test_the_penalty_is_the_one_that_cross_validation_on_the_training_clips_likes_best(seed: int) -> None:
    features, classes = blobs(45, 3, width=20, gap=0.3, seed=seed)
    features = features[:, 0]
    candidates = (1e-3, 1e-1, 10.0)
    folds = list(StratifiedKFold(3).split(features, classes))
    accuracy = [
        cross_val_score(LogisticRegression(C=penalty, max_iter=500), features, classes, cv=folds).mean()
        for penalty in candidates
    ]
    probe = linear_probe.Config(inverse_penalties=candidates)
    assert probe.choose_penalty(features, classes, each_alone(classes)) == candidates[int(np.argmax(accuracy))]


def test_the_penalty_is_chosen_on_whole_groups() -> None:
    """Every group is one exact point: only a choice that tears groups apart can find a weak penalty good."""
    source = np.random.default_rng(0)
    points = source.normal(size=(12, 30)).astype(np.float32)
    point_classes = source.integers(0, 2, 12)
    features, classes, groups = (np.repeat(values, 5, axis=0) for values in (points, point_classes, np.arange(12)))
    probe = linear_probe.Config(inverse_penalties=(1e-9, 10.0), inner_folds=3)
    torn = probe.choose_penalty(features, classes, each_alone(classes))
    whole = [
        probe.choose_penalty(features, np.repeat(np.random.default_rng(seed).integers(0, 2, 12), 5), groups)
        for seed in range(8)
    ]
    assert torn == 10.0
    assert 1e-9 in whole


def test_the_strongest_penalty_is_taken_where_nothing_can_be_held_out() -> None:
    features, classes = blobs(4, 4)
    features = features[:, 0]
    probe = linear_probe.Config(inverse_penalties=(0.1, 0.001))
    assert probe.choose_penalty(features, classes, each_alone(classes)) == 0.001
    assert probe.choose_penalty(features, classes, np.zeros(4, dtype=np.int64)) == 0.001


def test_near_neighbours_outvote_far_ones() -> None:
    features = np.array([[[1, 0.01]], [[-1, 0.5]], [[-1, 1]], [[0.3, -1.51]]], dtype=np.float32)
    scores = scored(knn.Config(num_neighbours=4), features, np.array([0, 1, 1, 1]), features[:1] * 1.0001)
    assert scores.argmax(axis=1).tolist() == [0]
