"""Few-shot and retrieval against brute force."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from stages.evals import Classes, Features, few_shot, retrieval
from stages.evals.few_shot import nearest
from stages.evals.retrieval import average_precision

NAME = "5-way 1-shot accuracy"
SPLITS = [(np.arange(0, 40), np.arange(40, 70)), (np.arange(30, 70), np.arange(0, 30))]


def clips(gap: float = 0.8, num_classes: int = 6) -> tuple[Features, Classes]:
    source = np.random.default_rng(0)
    classes = source.integers(0, num_classes, 70)
    centres = source.normal(size=(num_classes, 3, 4)) * gap
    return (centres[classes] + source.normal(size=(70, 3, 4))).astype(np.float32), classes


def unit(features: Features, train: Classes) -> Features:
    """Rows of length 1 after standardising by the training clips."""
    rows = features.reshape(len(features), -1).astype(np.float64)
    rows = (rows - rows[train].mean(axis=0)) / rows[train].std(axis=0)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [7, 256])
def test_retrieval_is_that_of_a_double_loop(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(retrieval, "CHUNK_QUERIES", chunk)
    features, classes = clips()
    found = retrieval.Config().measure(features, classes, groups=np.arange(70), splits=SPLITS)
    assert list(found) == ["recall@1", "recall@5", "recall@10", "mAP"]
    row = 0
    for train, test in SPLITS:
        rows = unit(features, train)
        for query in test:
            cosines = [float(rows[query] @ rows[other]) for other in train]
            order = sorted(range(len(train)), key=lambda place: -cosines[place])
            same = [classes[train[place]] == classes[query] for place in order]
            for rank in (1, 5, 10):
                assert found[f"recall@{rank}"].values[row] == float(any(same[:rank]))
            wanted = average_precision_score(same, -np.arange(len(same))) if any(same) else 0.0
            assert found["mAP"].values[row] == pytest.approx(wanted)
            row += 1
    assert all(len(sample.values) == row == 60 for sample in found.values())


def test_a_class_that_nothing_teaches_is_never_found() -> None:
    assert average_precision(np.array([[False, False], [False, True]])).tolist() == [0, 0.5]


def test_retrieval_keeps_the_groups_of_those_who_ask() -> None:
    features, classes = clips()
    found = retrieval.Config(ranks=(1,)).measure(features, classes, groups=np.arange(70) // 7, splits=SPLITS)
    assert found["recall@1"].groups.tolist() == (np.r_[40:70, 0:30] // 7).tolist()


def test_an_episode_is_that_of_brute_force() -> None:
    """One way to have an episode without chance: all classes, all examples and all questions there are."""
    features, classes = clips(num_classes=3)
    everything = few_shot.Config(ways=3, shots=9, queries=99, episodes=2)
    taught = np.concatenate([np.flatnonzero(classes == one)[:9] for one in range(3)])
    tested = np.setdiff1d(np.arange(70), taught)
    found = everything.measure(features, classes, groups=np.arange(70), splits=[(taught, tested)])["3-way 9-shot accuracy"]
    rows = unit(features, taught)
    means = [rows[[clip for clip in taught if classes[clip] == one]].mean(axis=0) for one in range(3)]
    hits = 0
    for query in tested:
        distances = [float(((rows[query] - mean) ** 2).sum()) for mean in means]
        hits += distances.index(min(distances)) == classes[query]
    assert found.values.tolist() == pytest.approx([hits / len(tested)] * 2)


def test_the_nearest_mean_is_nearest() -> None:
    source = np.random.default_rng(0)
    rows, means = source.normal(size=(20, 5)).astype(np.float32), source.normal(size=(4, 5)).astype(np.float32)
    distances = np.linalg.norm(rows[:, None] - means[None], axis=2)
    assert (nearest(rows, means) == distances.argmin(axis=1)).all()


def test_episodes_have_the_ways_and_shots_that_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    features, classes = clips()
    sizes = []

    def watched(rows: Features, means: Features) -> Classes:
        sizes.append((len(rows), len(means)))
        return nearest(rows, means)

    monkeypatch.setattr(few_shot, "nearest", watched)
    probe = few_shot.Config(ways=4, shots=2, queries=1, episodes=10)
    found = probe.measure(features, classes, groups=np.arange(70), splits=SPLITS)
    assert sizes == [(4, 4)] * 10
    assert found["4-way 2-shot accuracy"].groups.tolist() == list(range(10))
    fewer = few_shot.Config(ways=9, shots=2, episodes=2).measure(features, classes, groups=np.arange(70), splits=SPLITS)
    assert list(fewer) == ["6-way 2-shot accuracy"]


def test_more_shots_help_and_order_beats_noise() -> None:
    features, classes = clips(gap=1.0)
    one, five = (
        few_shot.Config(shots=shots, episodes=100).measure(features, classes, groups=np.arange(70), splits=SPLITS)
        for shots in (1, 4)
    )
    assert five["5-way 4-shot accuracy"].values.mean() > one[NAME].values.mean() > 0.3
    noise = np.random.default_rng(1).normal(size=features.shape).astype(np.float32)
    chance = few_shot.Config(episodes=200).measure(noise, classes, groups=np.arange(70), splits=SPLITS)
    assert abs(chance[NAME].values.mean() - 0.2) < 0.05


def test_the_same_seed_draws_the_same_episodes() -> None:
    features, classes = clips()
    twice = [few_shot.Config(episodes=9).measure(features, classes, groups=np.arange(70), splits=SPLITS) for _ in range(2)]
    other = few_shot.Config(episodes=9, seed=1).measure(features, classes, groups=np.arange(70), splits=SPLITS)
    assert (twice[0][NAME].values == twice[1][NAME].values).all()
    assert (twice[0][NAME].values != other[NAME].values).any()


def test_nothing_is_measured_where_classes_have_too_few_clips() -> None:
    features, classes = clips()
    assert few_shot.Config(shots=60).measure(features, classes, groups=np.arange(70), splits=SPLITS) == {}
