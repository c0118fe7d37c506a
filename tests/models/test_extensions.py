"""How a recipe names an extension: the folder is the registry, and a new one costs its file and a line of YAML."""

import importlib
import sys

import pytest
import torch
from pydantic import ValidationError

from models.config import Config
from models.extension import extension, load, names
from models.grid import Grid
from models.masking import MaskingConfig
from models.masking.tube import Config as Tube
from models.targets import TargetConfig
from pipeline.recipe import Request

REQUIRED = {  # fields without a default
    "everest": {"part": "visible"},
    "hidden_only": {"rule": "tube"},
    "projected": {"dim": 8},
    "random": {"share": 0.2},
}
PACKAGES = [
    f"models.{folder}" for folder in ("masking", "pooling", "positions", "quantizers", "selection", "targets", "tokenizers")
]

CHECKERBOARD = '''"""Every second patch, like the black fields of a board."""

from typing import Literal

import torch

from models.masking import MaskingConfig, first_real


class Config(MaskingConfig):
    """Takes half the tokens."""

    name: Literal["checkerboard"] = "checkerboard"
    """The name in a recipe."""

    shift: int = 0
    """Columns by which the board is moved."""

    def count(self, grid):
        return grid.num_tokens // 2

    def select(self, grid, *, products, real, generator):
        place = torch.arange(grid.num_tokens)
        white = (place // grid.w + place % grid.w + self.shift) % 2
        return first_real(white.argsort(stable=True), real, self.count(grid))
'''


class Recipe(Config):
    masking: extension("models.masking", MaskingConfig) = Tube()
    target: extension("models.targets", TargetConfig) = "code_vectors"


@pytest.fixture(params=names("models.masking"))
def masking(request):
    return load("models.masking", {"name": request.param} | REQUIRED.get(request.param, {}))


@pytest.fixture(params=names("models.targets"))
def target(request):
    return load("models.targets", {"name": request.param} | REQUIRED.get(request.param, {}))


@pytest.fixture
def checkerboard(tmp_path, monkeypatch):
    """A rule that is one file, in a folder that the package of rules has been given."""
    package = importlib.import_module("models.masking")
    (tmp_path / "checkerboard.py").write_text(CHECKERBOARD)
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield "models.masking.checkerboard"
    sys.modules.pop("models.masking.checkerboard", None)
    vars(package).pop("checkerboard", None)


def test_a_new_rule_costs_one_file_and_one_line_of_a_recipe(checkerboard, tmp_path):
    (tmp_path / "mine.yaml").write_text("pretrain: {encoder_masking: {name: checkerboard, shift: 1}}\n")
    assert checkerboard not in sys.modules
    rule = Request(recipe="lvmae", overlays=(str(tmp_path / "mine.yaml"),)).load().pretrain.encoder_masking
    assert type(rule).__module__ == checkerboard
    assert rule.shift == 1
    grid = Grid(2, 2, 2)
    chosen = rule.select(grid, products={}, real=torch.ones(8, dtype=torch.bool), generator=torch.Generator())
    assert chosen.tolist() == [1, 2, 5, 6]
    assert rule.count(grid) == 4


@pytest.mark.usefixtures("checkerboard")
def test_a_new_rule_joins_those_that_an_error_lists():
    assert "checkerboard" in names("models.masking")
    with pytest.raises(ValidationError, match="known: checkerboard, everest"):
        Recipe(masking={"name": "chequerboard"})


def test_a_rule_whose_file_is_gone_is_unknown():
    with pytest.raises(ValidationError, match="unknown name 'checkerboard'"):
        Recipe(masking="checkerboard")


def test_a_rule_may_hold_another():
    rule = Recipe(masking={"name": "hidden_only", "rule": {"name": "tube", "ratio": 0.8}}).masking.rule
    assert rule == Tube(ratio=0.8)
    with pytest.raises(ValidationError, match="unknown name 'tubes'"):
        Recipe(masking={"name": "hidden_only", "rule": "tubes"})


def test_the_folders_offer_what_the_files_say():
    rules = {"everest", "hidden_only", "none", "per_slot", "priority", "random", "running_cell", "tube", "uniform_frames"}
    assert rules <= set(names("models.masking"))
    assert {"code_vectors", "levels", "pixels", "projected"} <= set(names("models.targets"))
    assert {"fsq", "lfq"} <= set(names("models.quantizers"))
    assert {"gumbel", "perturbed", "straight_through"} <= set(names("models.selection"))
    assert {"adaptive", "linear"} <= set(names("models.tokenizers"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_is_named_like_its_extension(package):
    for name in names(package):
        assert load(package, {"name": name} | REQUIRED.get(name, {})).name == name


def test_every_extension_survives_json(masking, target):
    recipe = Recipe(masking=masking, target=target)
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_bare_name_is_enough_where_there_are_defaults():
    assert Recipe(masking="tube").masking == Tube(ratio=0.9)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValidationError, match=r"unknown name 'tubes' in models.masking; known: .*random.*tube"):
        Recipe(masking={"name": "tubes"})


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="rato"):
        Recipe(masking={"name": "tube", "rato": 0.9})


def test_a_target_is_no_masking():
    with pytest.raises(ValidationError, match="MaskingConfig"):
        Recipe(masking=load("models.targets", "pixels"))
