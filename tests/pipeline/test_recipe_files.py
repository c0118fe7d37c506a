"""Files of recipes are read strictly and laid over one another mapping by mapping."""

from pathlib import Path

import pytest

from pipeline.recipe_files import merged, override, read, section_wise
from stages.errors import ConfigError


def test_mappings_merge_and_everything_else_is_replaced() -> None:
    base = {"a": {"b": 1, "c": [1, 2]}, "d": 3}
    assert merged(base, {"a": {"c": [9]}, "e": None}) == {"a": {"b": 1, "c": [9]}, "d": 3, "e": None}


def test_another_name_replaces_the_whole_mapping_and_the_same_name_does_not() -> None:
    base = {"name": "tube", "ratio": 0.9}
    assert merged(base, {"name": "random", "share": 0.1}) == {"name": "random", "share": 0.1}
    assert merged(base, {"name": "tube", "extra": 1}) == {"name": "tube", "ratio": 0.9, "extra": 1}


def test_a_recipe_can_be_renamed_without_losing_its_sections() -> None:
    assert section_wise({"name": "a", "x": {"y": 1}}, [{"name": "b"}]) == {"name": "b", "x": {"y": 1}}


@pytest.mark.parametrize("pair", ["pretrain.seed", "=3", "pretrain..seed=3", "a.b=[1"])
def test_a_misspelled_value_is_refused_with_an_example(pair: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        override(pair)


def test_an_empty_value_is_null() -> None:
    assert override("shard.dataset=") == {"shard": {"dataset": None}}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pretrain: {seed: 1, seed: 2}", "'seed' stands twice"),
        ("a: [{b: 1, b: 2}]", "'b' stands twice"),
        ("- 1", "holds list"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_plain_mapping_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path / "x.yaml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        read(tmp_path / "absent.yaml")
