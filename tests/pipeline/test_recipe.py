"""A recipe resolves to one validated configuration, or says at which path it does not fit."""

import math
from pathlib import Path

import pytest

from pipeline.recipe import Recipe, Request
from pipeline.recipe_files import overlay_names, recipe_names
from stages.errors import ConfigError


def refused(*overrides: str, **fields: object) -> str:
    with pytest.raises(ConfigError) as caught:
        Request.model_validate({"recipe": "lvmae", "overrides": overrides, **fields}).load()
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_that_comes_with_the_project_is_complete_in_itself(name: str) -> None:
    assert Request(recipe=name).load().name == name


def test_the_overlays_that_come_with_the_project_fit_in_the_order_in_which_they_shrink() -> None:
    assert set(overlay_names()) == {"demo", "smoke"}
    loaded = [Request(recipe="lvmae", overlays=overlays).load() for overlays in ((), ("demo",), ("demo", "smoke"))]
    widths = [recipe.pretrain.model.encoder.width for recipe in loaded]
    assert widths == sorted(set(widths), reverse=True)


def test_the_demo_keeps_128_frames_and_every_mechanism() -> None:
    paper, demo = (Request(recipe="lvmae", overlays=overlays).load() for overlays in ((), ("demo",)))
    assert demo.precompute.views.num_frames == paper.precompute.views.num_frames == 128
    assert demo.pretrain.encoder_masking == paper.pretrain.encoder_masking
    assert demo.pretrain.decoder_masking == paper.pretrain.decoder_masking
    assert demo.pretrain.target == paper.pretrain.target
    for part in ("quantizer", "selection", "keep_first_slot", "window_frames", "patching"):
        assert getattr(demo.tokenizer.model, part) == getattr(paper.tokenizer.model, part)
    for config in (demo.tokenizer, paper.tokenizer):
        assert config.adversarial.r1_weight == 10.0
        assert config.adversarial.start_step < (config.optimization.num_steps or math.inf), "the opponent plays"
    assert demo.tokenizer.optimization.ema_decay is not None


def test_the_resolved_recipe_loads_to_the_same_recipe(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(recipe.resolved())
    assert Request(recipe=str(tmp_path / "recipe.yaml")).load() == recipe


def test_later_overlays_and_set_values_win(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("pretrain: {seed: 1}\ntokenizer: {seed: 1}")
    (tmp_path / "two.yaml").write_text("pretrain: {seed: 2}")
    overlays = (str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml"))
    loaded = Request(recipe="lvmae", overlays=overlays, overrides=("tokenizer.seed=3",)).load()
    assert (loaded.pretrain.seed, loaded.tokenizer.seed) == (2, 3)


def test_values_are_typed_as_in_yaml() -> None:
    overrides = ("pretrain.exclude={split: test}", "tokenizer.optimization.learning_rate=1e-3", "pretrain.model.encoder=ViT-L")
    loaded = Request(recipe="lvmae", overrides=overrides).load()
    assert loaded.pretrain.exclude == {"split": "test"}
    assert loaded.tokenizer.optimization.learning_rate == 1e-3
    assert loaded.pretrain.model.encoder.depth == 24


def test_another_masking_takes_none_of_the_parameters_of_the_one_it_replaces() -> None:
    loaded = Request(recipe="lvmae", overrides=("pretrain.encoder_masking={name: random, share: 0.1}",)).load()
    assert loaded.pretrain.encoder_masking.name == "random"


def test_source_replaces_the_source_of_the_recipe() -> None:
    source = Request(recipe="lvmae", overlays=("demo",), source="/videos").load().shard.source
    assert (source.name, str(source.path)) == ("folder", "/videos")


def test_an_unknown_key_is_refused_with_its_path_and_the_known_ones() -> None:
    message = refused("pretrain.optimization.batch_clip=3")
    assert "pretrain.optimization.batch_clip: unknown key" in message
    assert "did you mean 'batch_clips'" in message
    assert "learning_rate" in message


def test_an_unknown_key_of_an_extension_is_refused_with_the_keys_of_that_extension() -> None:
    message = refused("pretrain.encoder_masking.ratoi=0.5")
    assert "pretrain.encoder_masking.ratoi: unknown key; did you mean 'ratio'? known here: name, ratio" in message


def test_an_unknown_section_is_refused() -> None:
    assert "pretrane: unknown key; did you mean 'pretrain'?" in refused("pretrane.seed=3")


def test_every_fault_is_named_at_once_and_none_in_the_words_of_the_library() -> None:
    message = refused("pretrain.seed=abc", "pretrain.target=pixel")
    assert "pretrain.seed" in message
    assert "known: code_vectors, levels, pixels, projected" in message
    assert "pydantic" not in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("pretrain.target=3", "pretrain.target: 3 is neither a name in models.targets nor a mapping with one"),
        ("pretrain=3", "pretrain: Input should be a mapping, not 3"),
        ("evaluate.seeds=1", "evaluate.seeds: Input should be a list, not 1"),
        ("tokenizer.model.top_k=x", "tokenizer.model.top_k: Input should be a valid integer"),
        ("pretrain.encoder_masking={name: tube, ratio: 1.5}", "pretrain.encoder_masking.ratio: Input should be less than 1"),
        ("pretrain.decoder_masking={name: priority, top: 0.9, random: 0.4}", "must add up to a share above 0 and at most 1"),
        ("name=", "name: Input should be a valid string, not None"),
    ],
)
def test_a_value_that_does_not_fit_is_named_in_the_words_of_the_recipe(override: str, message: str) -> None:
    assert message in refused(override)


def test_an_unknown_key_deep_in_a_list_is_the_only_complaint() -> None:
    message = refused("evaluate.probes=[{name: knn, kk: 1}]")
    assert "evaluate.probes.0.kk: unknown key; known here: name" in message
    assert "at least" not in message


def test_a_missing_key_says_what_it_means(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("name: x\ndescription: y\nprecompute: {views: {}}\nevaluate: {}\n")
    assert "pretrain: missing, and it has no default: Clips and targets to a pretrained encoder." in refused(
        recipe=str(tmp_path / "broken.yaml")
    )


def test_an_unknown_recipe_or_overlay_lists_the_known_ones() -> None:
    assert "unknown recipe 'lvma'; known: everest, lvmae, mae_st" in refused(recipe="lvma")
    assert "unknown overlay 'dem'; known: demo" in refused(overlays=("dem",))


def test_a_token_whose_patches_are_not_the_tokenizers_is_refused() -> None:
    message = refused("pretrain.model.patching.tubelet_frames=4")
    assert "tokenizer.model.patching" in message
    assert "give both the same values" in message


def test_a_request_is_spelled_so_that_a_shell_gives_it_back() -> None:
    request = Request(recipe="lvmae", overlays=("demo",), source="/my videos", overrides=("pretrain.exclude={split: test}",))
    assert request.spelled() == "lvmae --overlay demo --source '/my videos' --set 'pretrain.exclude={split: test}'"
