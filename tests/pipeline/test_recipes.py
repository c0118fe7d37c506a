"""Every recipe of the folder counts what its paper does, and its parts fit together: made small, all of it learns."""

import functools
import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from models import cost, mae
from models.grid import Grid
from models.shapes import Shaped, Tensor
from models.targets import Target
from pipeline.recipe import Recipe, Request
from pipeline.recipe_files import recipe_names
from stages import estimate
from stages.estimate import Run
from tests.pipeline.test_command import invoke

COUNTS = {
    "everest": (1568, 156, 314),
    "lvmae": (12544, 1280, 1881),
    "mae_st": (1568, 156, 1412),
    "mgmae": (1568, 160, 1408),
    "videomae": (1568, 160, 1408),
    "videomae_v2": (1568, 160, 784),
}
"""Tokens of a clip, those that the encoder sees, and those that the decoder predicts, by the papers' rules."""

PIXELS_ONLY = sorted({*COUNTS} - {"lvmae"})
ALL_HIDDEN = ("mae_st", "mgmae", "videomae")
SMALL = ("demo", "smoke")
DOCUMENT = Path(__file__).parents[2] / "docs" / "recipes.md"


@functools.cache
def full(name: str) -> Recipe:
    """The recipe as it lies in the folder."""
    return Request(recipe=name).load()


@functools.cache
def small(name: str) -> Recipe:
    """The recipe as the tests of the pipeline run it."""
    overrides = ("tokenizer.model=linear",) if name in PIXELS_ONLY else ()
    return Request(recipe=name, overlays=SMALL, overrides=overrides).load()


def grid_of(recipe: Recipe) -> Grid:
    views = recipe.precompute.views
    return recipe.pretrain.model.patching.grid(views.num_frames, views.size_px)


def target_of(recipe: Recipe) -> Target:
    built: Target = recipe.pretrain.target.build(recipe.pretrain.model.patching, recipe.tokenizer.model.quantizer)
    return built


def products_of(recipe: Recipe, seed: int) -> dict[str, Shaped[Tensor, " N"]]:
    """What the recipe reads of every token, drawn."""
    generator, grid = torch.Generator().manual_seed(seed), grid_of(recipe)
    scores = {name: torch.rand(grid.num_tokens, generator=generator) for name in sorted(recipe.pretrain.needs - {"codes"})}
    size = recipe.tokenizer.model.quantizer.build().codebook_size
    return scores | {"codes": torch.randint(size, (grid.num_tokens,), generator=generator)}


def chosen(recipe: Recipe, products: Mapping[str, Tensor], seed: int) -> tuple[Tensor, Tensor]:
    """What the encoder sees of a clip, and what the decoder predicts."""
    stage, grid, generator = recipe.pretrain, grid_of(recipe), torch.Generator().manual_seed(seed)
    real = torch.ones(grid.num_tokens, dtype=torch.bool)
    visible = stage.encoder_masking.select(grid, products=products, real=real, generator=generator)
    predict = stage.decoder_masking.select_beside(grid, visible=visible, products=products, real=real, generator=generator)
    return visible, predict


def run_of(recipe: Recipe) -> Run:
    return estimate.run_of(recipe.pretrain, recipe.precompute.views, recipe.tokenizer.model.quantizer)


def test_the_command_lists_every_recipe_of_the_folder() -> None:
    assert json.loads(invoke("recipes", "--json").stdout)["recipes"] == sorted(COUNTS) == recipe_names()


@pytest.mark.parametrize("name", recipe_names())
def test_counts_at_full_size_are_those_of_the_paper(name: str) -> None:
    recipe = full(name)
    work = run_of(recipe).workload
    assert (work.grid.num_tokens, work.visible, work.predicted) == COUNTS[name]
    visible, predict = chosen(recipe, products_of(recipe, 0), 0)
    assert (len(visible), len(predict)) == COUNTS[name][1:]


@pytest.mark.parametrize("name", ALL_HIDDEN)
def test_all_hidden_tokens_are_predicted_and_no_others(name: str) -> None:
    recipe = full(name)
    visible, predict = chosen(recipe, products_of(recipe, 1), 1)
    assert torch.equal(torch.cat([visible, predict]).sort().values, torch.arange(grid_of(recipe).num_tokens))


def test_v2_leaves_the_overlap_of_its_two_masks_out_of_the_loss() -> None:
    recipe = full("videomae_v2")
    visible, predict = chosen(recipe, {}, 0)
    real = torch.ones(1, grid_of(recipe).num_tokens, dtype=torch.bool)
    counted = mae.hidden_weight(visible[None], predict[None], real)[0]
    assert torch.equal(counted == 0, torch.isin(predict, visible))
    assert 0 < (counted == 0).sum() < len(visible)


def test_everest_sees_and_predicts_what_changes_most_and_nothing_else() -> None:
    recipe = full("everest")
    products = products_of(recipe, 2)
    visible, predict = chosen(recipe, products, 2)
    largest = products["everest"].topk(470).indices
    assert torch.equal(torch.cat([visible, predict]).sort().values, largest.sort().values)


def test_mgmae_sees_a_tenth_of_every_slot_and_draws_nothing() -> None:
    recipe = full("mgmae")
    products = products_of(recipe, 3)
    visible, predict = chosen(recipe, products, 3)
    assert torch.bincount(visible // grid_of(recipe).slot_tokens).tolist() == [20] * 8
    again = chosen(recipe, products, 4)
    assert torch.equal(visible, again[0])
    assert torch.equal(predict, again[1])
    assert recipe.pretrain.masks_per_clip == 1, "further masks of a view would be the same"


def test_methods_that_repeat_a_clip_do_so_four_times() -> None:
    repeats = {name: full(name).pretrain.masks_per_clip for name in COUNTS}
    assert {name for name, number in repeats.items() if number == 4} == {"mae_st", "videomae_v2"}
    assert {*repeats.values()} == {1, 4}


@pytest.mark.parametrize("name", PIXELS_ONLY)
def test_recipes_of_pixels_train_no_tokenizer(name: str) -> None:
    recipe = full(name)
    assert recipe.pretrain.target.name == "pixels"
    assert not recipe.tokenizer.model.is_trained
    assert not small(name).tokenizer.model.is_trained


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_made_small_has_a_loss_that_reaches_every_parameter(name: str) -> None:
    recipe = small(name)
    grid, patching, target = grid_of(recipe), recipe.pretrain.model.patching, target_of(recipe)
    products = products_of(recipe, 5)
    visible, predict = (positions[None] for positions in chosen(recipe, products, 5))
    patches = torch.rand(1, grid.num_tokens, patching.patch_dim, generator=torch.Generator().manual_seed(5))
    module = mae.MaskedAutoencoder(recipe.pretrain.model, grid, target.dim)
    wanted = target(patches[:, predict[0]], {key: products[key][predict] for key in recipe.pretrain.target.needs})
    weight = mae.hidden_weight(visible, predict, torch.ones(1, grid.num_tokens, dtype=torch.bool))
    loss = mae.masked_mean(target.error(module(patches[:, visible[0]], visible, predict), wanted), weight)
    assert 0 < loss < torch.inf
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    assert [name for name, gradient in zip(names, gradients, strict=True) if not gradient.any()] == []


def test_the_plan_of_videomae_is_what_is_counted_by_hand() -> None:
    """Parameters from the shapes of ViT-B: 768 wide, patches of 2 x 16 x 16 x 3 numbers, decoder blocks 384 wide."""

    def block(width: int) -> int:
        return 12 * width**2 + 2 * width + width + 4 * width + width + 4 * width  # weights, q and v, out, MLP twice, two norms

    run = run_of(full("videomae"))
    parameters = cost.parameters(run.workload)
    assert parameters.encoder == (1536 + 1) * 768 + 12 * block(768) + 2 * 768
    assert parameters.decoder == 768 * 384 + 384 + 4 * block(384) + 2 * 384 + (384 + 1) * 1536
    flops = cost.flops(run.workload)
    assert flops.encoder_linear == 2 * 160 * (1536 * 768 + 12 * 12 * 768**2)
    assert flops.encoder_attention == 12 * 4 * 160**2 * 768
    assert flops.decoder_linear == 2 * (160 * 768 * 384 + 1568 * 4 * 12 * 384**2 + 1408 * 384 * 1536)
    assert flops.decoder_attention == 4 * 4 * 1568**2 * 384


@pytest.mark.parametrize("name", recipe_names())
def test_the_plan_of_a_recipe_finds_how_it_fits_a_gpu(name: str) -> None:
    run, place = run_of(full(name)), estimate.gpu(80, "bf16")
    largest = estimate.largest_clips_at_once(run, place)
    parts = estimate.fitting_parts(run, largest)
    assert parts is not None
    assert run.batch_clips // parts <= largest


def documented() -> dict[str, int]:
    """By each one-line example of the document: how many tokens it says that are predicted."""
    rows = re.findall(r"^\|[^|]*\| ([\d,]+) \| `(--set [^`]*)` \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    return {line: int(count.replace(",", "")) for count, line in rows}


def test_the_document_names_every_recipe_with_its_counts() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|(.*)$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    assert {*rows} >= {*COUNTS}
    for name, (_, visible, predicted) in COUNTS.items():
        assert f" {visible:,} |" in rows[name]
        assert f" {predicted:,} |" in rows[name]
    assert len(documented()) == 11


@pytest.mark.parametrize(("line", "predicted"), documented().items())
def test_the_one_line_examples_of_the_document_do_what_it_says(line: str, predicted: int) -> None:
    overrides = tuple(part for part in shlex.split(line) if part != "--set")
    assert run_of(Request(recipe="lvmae", overrides=overrides).load()).workload.predicted == predicted
