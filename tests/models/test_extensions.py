"""What every masking and every target must do, by file, and how a recipe names them."""

import pytest
import torch
from pydantic import ValidationError

from models.config import Config
from models.extension import extension, load, names
from models.grid import Grid, Patching
from models.masking import MaskingConfig
from models.masking.tube import Config as Tube
from models.quantizers import fsq
from models.targets import Target, TargetConfig

REQUIRED = {"random": {"share": 0.2}}  # fields without a default
GRIDS = [Grid(2, 3, 4), Grid(5, 4, 4), Grid(8, 14, 14)]
PRODUCTS = {"priority", "codes"}
PACKAGES = [f"models.{folder}" for folder in ("masking", "positions", "quantizers", "selection", "targets", "tokenizers")]


class Recipe(Config):
    masking: extension("models.masking", MaskingConfig) = Tube()
    target: extension("models.targets", TargetConfig) = "code_vectors"


@pytest.fixture(params=names("models.masking"))
def masking(request):
    return load("models.masking", {"name": request.param} | REQUIRED.get(request.param, {}))


@pytest.fixture(params=names("models.targets"))
def target(request):
    return load("models.targets", request.param)


def select(masking, grid, *, real, seed=0):
    values = torch.rand(grid.num_tokens, generator=torch.Generator().manual_seed(9))
    products = dict.fromkeys(masking.needs, values)
    return masking.select(grid, products=products, real=real, generator=torch.Generator().manual_seed(seed))


def test_the_folders_offer_what_the_files_say():
    assert {"none", "priority", "random", "tube"} <= set(names("models.masking"))
    assert {"code_vectors", "pixels"} <= set(names("models.targets"))
    assert {"fsq", "lfq"} <= set(names("models.quantizers"))
    assert {"gumbel", "perturbed", "straight_through"} <= set(names("models.selection"))
    assert {"adaptive", "linear"} <= set(names("models.tokenizers"))


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_is_named_like_its_extension(package):
    for name in names(package):
        assert load(package, {"name": name} | REQUIRED.get(name, {})).name == name


@pytest.mark.parametrize("grid", GRIDS)
def test_every_masking_gives_its_count_of_different_positions_in_order(masking, grid):
    chosen = select(masking, grid, real=torch.ones(grid.num_tokens, dtype=torch.bool))
    assert chosen.dtype == torch.int64
    assert chosen.shape == (masking.count(grid),)
    assert (chosen.diff() > 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < grid.num_tokens


@pytest.mark.parametrize("grid", GRIDS)
def test_every_masking_repeats_itself_for_the_same_generator(masking, grid):
    real = torch.ones(grid.num_tokens, dtype=torch.bool)
    before = torch.random.get_rng_state()
    assert torch.equal(select(masking, grid, real=real, seed=3), select(masking, grid, real=real, seed=3))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("slots", [0, 1, 2])
def test_every_masking_takes_padding_only_when_nothing_else_is_left(masking, grid, slots):
    real = torch.arange(grid.num_tokens) < slots * grid.slot_tokens
    chosen = select(masking, grid, real=real)
    assert chosen.shape == (masking.count(grid),)
    assert (chosen.diff() > 0).all()
    assert real[chosen].sum() == min(masking.count(grid), int(real.sum()))


def test_every_masking_reads_known_products_only(masking):
    assert set(masking.needs) <= PRODUCTS


def test_every_target_gives_finite_vectors_of_its_dimension(target):
    patching = Patching(tubelet_frames=2, patch_px=4)
    module = target.build(patching, fsq.Config(levels=(8, 5, 5)))
    assert isinstance(module, Target)
    assert set(target.needs) <= PRODUCTS
    products = dict.fromkeys(target.needs, torch.randint(0, 200, (2, 3)))
    vectors = module(torch.rand(2, 3, patching.patch_dim), products)
    assert vectors.shape == (2, 3, module.dim)
    assert vectors.dtype == torch.float32
    assert vectors.isfinite().all()
    assert not list(module.parameters())


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
