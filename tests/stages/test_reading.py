"""Probes learn on what teaches and are asked what is tested, every view of it, and nothing is asked twice."""

from pathlib import Path

import numpy as np
import pytest

from stages.errors import ArtifactDamaged
from stages.evals import Classes, Features, ProbeConfig, Scores, linear_probe, retrieval
from stages.features import ClipFeatures
from stages.protocol import Question
from stages.reading import Readings, averaged, one_versus_rest, read, read_all
from tests.stages.questions import asked, several


class Echo(ProbeConfig):
    """Says what a clip's first feature is, and remembers what it was taught."""

    name: str = "echo"

    @property
    def title(self) -> str:
        return "echo"

    def scores(
        self, features: Features, classes: Classes, *, num_classes: int, groups: Classes, test_features: Features
    ) -> Scores:
        assert features.max() < 1, "further views teach nothing"
        share = test_features[:, 0, 0] % 1
        return np.stack([share, 1 - share], axis=1)


def seen(rows: np.ndarray, further: np.ndarray | None = None, owners: list[int] | None = None) -> ClipFeatures:
    """Features of one cell and width."""
    others = np.zeros(0) if further is None else further
    shaped = [np.asarray(values, dtype=np.float32).reshape(-1, 1, 1) for values in (rows, others)]
    return ClipFeatures(shaped[0], shaped[1], np.array(owners or [], dtype=np.int64))


def test_readings_are_in_the_order_of_the_tested_clips() -> None:
    question = asked([0, 1, 0, 1, 0, 1], [((0, 1, 2, 3), (5, 4)), ((2, 3, 4, 5), (0, 1))], rows=[5, 1, 0, 2, 3, 4])
    features = np.zeros(6)
    features[question.rows] = question.classes
    features[question.rows[4]] = 1  # looks like the other class
    scores = read(linear_probe.Config(inverse_penalties=(100.0,)), question, seen(features))
    assert (scores.argmax(axis=1) == question.classes[question.tested]).tolist() == [True, False, True, True]


def test_probabilities_of_a_clips_views_are_averaged() -> None:
    """By hand: clip 3 has three views, clip 2 has one, and those of other clips are not looked at."""
    question = asked([0, 1, 0, 1], [((0, 1), (3, 2))])
    features = seen(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.7, 1.9, 1.6]), [3, 3, 0])
    scores = read(Echo(), question, features)
    np.testing.assert_allclose(scores[:, 0], [(0.4 + 0.7 + 0.9) / 3, 0.3], atol=1e-6)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)


def test_views_are_averaged_whatever_their_order() -> None:
    scores = np.array([[0.2], [0.4], [0.6], [1.0]], dtype=np.float32)
    found = averaged(scores, np.array([7, 2, 7, 9]), np.array([9, 2, 7]))
    np.testing.assert_allclose(found[:, 0], [1.0, 0.4, 0.4], atol=1e-7)


def test_several_classes_are_each_told_from_the_rest() -> None:
    source = np.random.default_rng(0)
    truth = source.random((30, 4)) < 0.5
    truth[:, 2], truth[:, 3] = False, True
    features = source.normal(size=(40, 1, 6)).astype(np.float32)
    probe, groups = linear_probe.Config(inverse_penalties=(0.1,)), np.arange(30)
    scores = one_versus_rest(probe, features[:30], truth, groups=groups, test_features=features[30:])
    for number in (0, 1):
        classes = truth[:, number].astype(np.int64)
        wanted = probe.scores(features[:30], classes, num_classes=2, groups=groups, test_features=features[30:])
        np.testing.assert_allclose(scores[:, number], wanted[:, 1])
    assert (scores[:, 2] == 0).all()
    assert (scores[:, 3] == 1).all()


def everything(folder: Path, probe: ProbeConfig, questions: list[Question], calls: list[str]) -> Readings:
    source = np.random.default_rng(0)
    features = {name: seen(source.random(6)) for name in ("pretrained", "pixels")}
    readings, samples = read_all(
        questions,
        probes=[probe],
        measures=[retrieval.Config()],
        runs=list(features),
        load=lambda name: features[name],
        folder=folder,
        finished=lambda: calls.append("probe"),
    )
    assert set(samples) == {("class", "retrieval", name) for name in features}
    return readings


def test_what_was_read_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    questions = [
        asked([0, 1, 0, 1, 0, 1], [((0, 1, 2, 3), (4, 5))]),
        several(np.eye(2, dtype=bool)[[0, 1, 0, 1, 0, 1]], [((0, 1, 2, 3), (4, 5))]),
    ]
    calls: list[str] = []
    first = everything(tmp_path, linear_probe.Config(inverse_penalties=(0.1,)), questions, calls)
    assert len(calls) == 4

    class Dead(Echo):
        name: str = "linear_probe"

        def scores(self, *args: object, **kwargs: object) -> Scores:  # type: ignore[override]
            pytest.fail("it is known already")

    again = everything(tmp_path, Dead(), questions, calls)
    assert first.keys() == again.keys()
    assert all((first[key] == again[key]).all() for key in first)


def test_what_was_kept_and_is_damaged_is_refused(tmp_path: Path) -> None:
    questions = [asked([0, 1, 0, 1, 0, 1], [((0, 1, 2, 3), (4, 5))])]
    everything(tmp_path, linear_probe.Config(inverse_penalties=(0.1,)), questions, [])
    kept = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = bytearray(kept.read_bytes())
    data[-1] ^= 1
    kept.write_bytes(data)
    with pytest.raises(ArtifactDamaged, match="its sha256 is not that of its content"):
        everything(tmp_path, linear_probe.Config(inverse_penalties=(0.1,)), questions, [])
