"""Who teaches and who is tested follows from the labels alone, and nothing that belongs together is torn apart."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from stages.errors import ConfigError
from stages.protocol import Asking, Question, question, scored_clips
from stages.storage.index import Clip, Index
from tests.stages.clip_files import member, snapshot


def clip(number: int, labels: Mapping[str, str], source: str | None = None) -> Clip:
    return Clip(
        clip_id=f"{number:032x}",
        source_id=source or f"{number:064x}",
        key=f"{number}.mp4",
        start_frame=0,
        num_frames=128,
        fps=25.0,
        width_px=64,
        height_px=64,
        ordinal=0,
        slot=number,
        offset_bytes=0,
        size_bytes=1,
        crc32c=0,
        labels={column: (value,) for column, value in labels.items()},
    )


def clips(num_clips: int, num_groups: int = 4) -> list[Clip]:
    parts = ("train", "train", "test")
    return [
        clip(number, {"class": f"{number % 2 + 9}", "split": parts[number % 3], "group": f"g{number % num_groups}"})
        for number in range(num_clips)
    ]


def ask(
    asked: Sequence[Clip],
    *,
    label: str = "class",
    folds: int | None = None,
    group_label: str | None = "group",
    is_multi_label: bool = False,
    parts: tuple[str, ...] = (),
) -> Question:
    asking = Asking(label, is_multi_label, parts)
    return question(asked, asking, split_label="split", folds=folds, group_label=group_label)


def test_the_split_column_says_who_teaches_and_who_is_tested() -> None:
    found = ask(clips(9))
    assert found.splits[0].test.tolist() == [2, 5, 8]
    assert found.splits[0].train.tolist() == [0, 1, 3, 4, 6, 7]
    assert found.num_shared_groups > 0


def test_classes_are_numbered_by_value() -> None:
    found = ask([clip(number, {"class": name, "split": "train" if number < 4 else "test"}) for number, name in enumerate(
        ["10", "9", "b", "a", "10"])])  # fmt: skip
    assert found.class_names == ("9", "10", "a", "b")
    assert found.classes.tolist() == [1, 0, 3, 2, 1]


def test_folds_test_every_clip_once_and_never_tear_a_group() -> None:
    found = ask(clips(24, num_groups=6), folds=3)
    assert sorted(found.tested.tolist()) == list(range(24))
    assert found.num_shared_groups == 0
    assert len(found.splits) == 3


def test_without_a_group_column_the_clips_of_one_source_stay_together() -> None:
    asked = [clip(number, {"class": str(number % 2)}, source=f"{number // 4}") for number in range(16)]
    found = ask(asked, folds=4, group_label=None)
    assert len(np.unique(found.groups)) == 4
    assert found.num_shared_groups == 0


def test_without_a_test_split_the_validation_split_is_held_out() -> None:
    asked = [clip(number, {"class": str(number // 2 % 2), "split": "train" if number < 8 else "val"}) for number in range(12)]
    assert ask(asked).splits[0].test.tolist() == [8, 9, 10, 11]


def test_clips_without_the_label_are_left_out() -> None:
    asked = clips(9)
    asked[1] = clip(1, {"split": "train", "group": "g1"})
    found = ask(asked)
    assert found.rows.tolist() == [0, 2, 3, 4, 5, 6, 7, 8]
    assert found.splits[0].test.tolist() == [1, 4, 7]


def indexed(folder: Path, asked: Sequence[Clip]) -> Index:
    return Index(snapshot(folder, [[member(b"x", key=one.key, labels=one.labels) for one in asked]]))


def test_where_keeps_the_clips_that_match_in_everything(tmp_path: Path) -> None:
    kept = scored_clips(indexed(tmp_path, clips(9)), {"split": "test", "class": "9"}, ["class"])
    assert [one.key for one in kept] == ["2.mp4", "8.mp4"]


def test_clips_with_none_of_the_labels_are_not_scored(tmp_path: Path) -> None:
    asked = [clip(0, {"verb": "cut"}), clip(1, {"noun": "bread"}), clip(2, {"split": "test"})]
    kept = scored_clips(indexed(tmp_path, asked), {}, ["verb", "noun"])
    assert [one.key for one in kept] == ["0.mp4", "1.mp4"]


def test_a_label_with_several_values_cannot_be_asked() -> None:
    several = dataclasses.replace(clip(0, {}), labels={"class": ("a", "b"), "split": ("train",)})
    with pytest.raises(ConfigError, match=r"has 2 values in 'class': a, b; name a column with one value per clip"):
        ask([several, *clips(9)])


def with_values(number: int, values: tuple[str, ...], part: str) -> Clip:
    return dataclasses.replace(clip(number, {"split": part}), labels={"verbs": values, "split": (part,)} if values else {})


def test_a_multi_label_has_all_its_values_and_its_own_chance() -> None:
    carried = [("cut", "take"), ("take",), ("wash",), ("take",), ("cut", "wash")]
    asked = [with_values(number, found, "train" if number < 3 else "test") for number, found in enumerate(carried)]
    found = ask([*asked, with_values(9, (), "test")], label="verbs", is_multi_label=True)
    assert found.class_names == ("cut", "take", "wash")
    assert found.truth.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert found.uniform_chance == 0.5  # three of six cells of the tested clips are true
    assert found.majority_chance == 0.5  # "take" is on one of the two


def test_a_joint_label_is_asked_of_the_clips_that_carry_every_part() -> None:
    parts = [("cut", "bread"), ("take", "knife"), ("cut", ""), ("take", "bread"), ("cut", "bread")]
    asked = [
        clip(number, {"verb": verb, "split": "train" if number < 3 else "test", **({"noun": noun} if noun else {})})
        for number, (verb, noun) in enumerate(parts)
    ]
    found = ask(asked, label="action", parts=("verb", "noun"))
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert found.class_names == ("cut + bread", "take + bread", "take + knife")
    assert found.classes.tolist() == [0, 2, 1, 0]


def test_chance_is_that_of_a_blind_and_of_a_constant_guess() -> None:
    labels = ["a", "a", "b", "b", "b", "a"]
    found = ask(
        [clip(number, {"class": name, "split": "train" if number < 3 else "test"}) for number, name in enumerate(labels)]
    )
    assert found.uniform_chance == 0.5
    assert found.majority_chance == pytest.approx(1 / 3)  # "a" is commonest among those that teach


@pytest.mark.parametrize(
    ("asked", "options", "words"),
    [
        (
            clips(9),
            {"label": "verb"},
            r"'verb' is on none of 9 scored clips; known label columns: \['class', 'group', 'split'\]",
        ),
        (clips(9), {"folds": 5}, "folds=5 needs as many groups; the scored clips have 4"),
        (clips(9), {"folds": 2, "group_label": "take"}, "group_label 'take' is not on clip"),
        (clips(2), {}, "of 2 clips 2 are 'train' and 0 'val'"),
        ([clip(0, {"class": "a", "split": "train"}), clip(1, {"class": "b", "split": "test"})], {}, "show a single class"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_its_reason(asked: list[Clip], options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ask(asked, **options)  # type: ignore[arg-type]


def test_a_filter_that_leaves_nothing_is_refused_with_what_there_is(tmp_path: Path) -> None:
    words = r"where={'split': 'val'} keeps 0 of 9 clips .* known label columns: \['class', 'group', 'split'\]"
    with pytest.raises(ConfigError, match=words):
        scored_clips(indexed(tmp_path, clips(9)), {"split": "val"}, ["class"])
