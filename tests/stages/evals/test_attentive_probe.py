"""The attentive probe finds what a mean over cells hides, and trains many heads as it would train each alone."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional

from stages.evals import Classes, Features
from stages.evals.attentive_probe import AttentiveHead, Config, side_by_side


def quick(**changes: object) -> Config:
    return Config.model_validate(
        {"width": 16, "num_heads": 2, "num_steps": 40, "learning_rates": [1e-2], "weight_decays": [0.01], **changes}
    )


def marked(num_clips: int, seed: int) -> tuple[Features, Classes]:
    """One of six cells holds a mark of the class, and it is another cell every time; all else is noise."""
    source = np.random.default_rng(seed)
    classes = np.arange(num_clips) % 2
    features = 0.3 * source.normal(size=(num_clips, 6, 8))
    features[np.arange(num_clips), source.integers(0, 6, num_clips), classes] += 4
    return features.astype(np.float32), classes


def answered(probe: Config, features: Features, classes: Classes, test_features: Features) -> np.ndarray:
    groups = np.arange(len(classes))
    return probe.scores(features, classes, num_classes=2, groups=groups, test_features=test_features)


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_it_finds_a_mark_wherever_it_is(num_blocks: int) -> None:
    features, classes = marked(80, seed=0)
    test_features, test_classes = marked(60, seed=1)
    scores = answered(quick(num_blocks=num_blocks), features, classes, test_features)
    assert (scores.argmax(axis=1) == test_classes).mean() > 0.9


def test_it_can_tell_cells_apart_by_their_place() -> None:
    """Which of two cells is the bright one: standardised cells look alike but for their place."""
    source = np.random.default_rng(0)
    classes = np.arange(60) % 2
    features = 0.1 * source.normal(size=(60, 2, 4))
    features[np.arange(60), classes] += 1
    features = features.astype(np.float32)
    scores = answered(quick(), features[:40], classes[:40], features[40:])
    assert (scores.argmax(axis=1) == classes[40:]).all()


def test_heads_side_by_side_answer_as_each_alone() -> None:
    torch.manual_seed(0)
    heads = [AttentiveHead(3, 5, 4, quick(num_blocks=2)) for _ in range(3)]
    features = torch.randn(7, 3, 5)
    together = side_by_side(heads, features)
    torch.testing.assert_close(together, torch.stack([head(features) for head in heads]))


def test_the_form_of_attention_is_the_usual_one() -> None:
    torch.manual_seed(0)
    head = AttentiveHead(3, 5, 4, quick())
    queries, cells = torch.randn(2, 1, 16), torch.randn(2, 3, 16)
    query = head.pool.to_query(queries).view(2, 1, 2, 8).transpose(1, 2)
    key, value = (part.view(2, 3, 2, 8).transpose(1, 2) for part in head.pool.to_key_value(cells).chunk(2, dim=-1))
    mixed = functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(head.pool._attended(queries, cells), head.pool.out(mixed))


def test_a_head_learns_the_same_beside_others_as_alone() -> None:
    """AdamW, its schedule and the shares of clips are those of the head's own point of the grid."""
    features, classes = marked(24, seed=0)
    train, targets = torch.from_numpy(features), torch.from_numpy(classes)
    shares = np.ones(24, dtype=np.float32) / 24
    wide = quick(num_steps=5, learning_rates=[1e-3, 1e-2], weight_decays=[0.0, 0.5])
    found = {}
    for name, config in (("beside", wide), ("alone", quick(num_steps=5, learning_rates=[1e-2], weight_decays=[0.5]))):
        heads = [config._built(6, 8, 2) for _ in config.grid]
        config._train(heads, train, targets, torch.from_numpy(np.stack([shares for _ in config.grid])))
        found[name] = heads[-1]
    for name, value in found["beside"].named_parameters():
        torch.testing.assert_close(value, found["alone"].get_parameter(name), atol=1e-5, rtol=1e-4)


def test_chunks_change_nothing_but_rounding() -> None:
    features, classes = marked(30, seed=0)
    whole, parts = (answered(quick(num_steps=5, chunk_clips=size), features, classes, features) for size in (512, 7))
    np.testing.assert_allclose(whole, parts, atol=1e-4)


def test_the_grid_is_decided_on_held_out_clips() -> None:
    """A rate that learns nothing loses against one that learns, in either order."""
    features, classes = marked(60, seed=0)
    test_features, test_classes = marked(40, seed=1)
    for rates in ([1e-9, 1e-2], [1e-2, 1e-9]):
        scores = answered(quick(learning_rates=rates, num_steps=30), features, classes, test_features)
        assert (scores.argmax(axis=1) == test_classes).mean() > 0.9


def test_it_leaves_the_global_generator_alone() -> None:
    features, classes = marked(12, seed=0)
    before = torch.random.get_rng_state()
    answered(quick(num_steps=1), features, classes, features)
    assert (torch.random.get_rng_state() == before).all()


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValidationError, match="width 16 does not divide into num_heads 3"):
        quick(num_heads=3)
