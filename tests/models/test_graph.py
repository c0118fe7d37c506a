"""A training step is one graph, compiled once, that waits for no value: checked with torch's own tools, on no GPU.

On a fake tensor, which has a shape and no numbers, whatever a GPU would have to be waited for cannot be done at all: ``item``,
``nonzero``, an ``if`` on a tensor. A step that runs there never synchronises. Each check is held against a model that chooses
its tokens by a boolean mask, as many published ones do, and that must fail it.
"""

import copy

import jaxtyping
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeCopyMode,
    FakeTensorMode,
)

from models.mae import Config, MaskedAutoencoder, hidden_weight, masked_mean
from models.quantizers.fsq import Config as Fsq
from models.targets.code_vectors import CodeVectors
from models.targets.pixels import StandardisedPixels

MODEL = Config.model_validate(
    {
        "encoder": {"width": 16, "depth": 1, "num_heads": 2},
        "decoder": {"width": 8, "depth": 1, "num_heads": 2},
        "patching": {"tubelet_frames": 2, "patch_px": 4},
    }
)
GRID = MODEL.patching.grid(8, 12)
NUM_VISIBLE, NUM_PREDICTED = 4, 7


@pytest.fixture(autouse=True)
def no_shape_checks():
    """The checks of the test run are Python that no graph can hold."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def target(request):
    return getattr(request, "param", StandardisedPixels(MODEL.patching))


both_targets = pytest.mark.parametrize(
    "target", [StandardisedPixels(MODEL.patching), CodeVectors(Fsq())], indirect=True, ids=["pixels", "code_vectors"]
)


@pytest.fixture
def model(target):
    torch.manual_seed(0)
    return MaskedAutoencoder(MODEL, GRID, target.dim)


def batch(number):
    """Two clips as a loader sends them; every number gives other pixels, other positions, and another amount of padding."""
    generator = torch.Generator().manual_seed(number)
    order = torch.stack([torch.randperm(GRID.num_tokens, generator=generator) for _ in range(2)])
    shape = 2, NUM_VISIBLE + NUM_PREDICTED, MODEL.patching.patch_dim
    patches = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return {
        "visible_patches": patches[:, :NUM_VISIBLE],
        "predict_patches": patches[:, NUM_VISIBLE:],
        "visible": order[:, :NUM_VISIBLE],
        "predict": order[:, NUM_VISIBLE - 1 : -1][:, :NUM_PREDICTED],
        "real": torch.arange(GRID.num_tokens).repeat(2, 1) < GRID.num_tokens - 9 * (number % 2),
        "codes": torch.randint(100, (2, NUM_PREDICTED), generator=generator),
    }


def loss_of(model, target, given):
    wanted = target(given["predict_patches"].float() / 255, {"codes": given["codes"]})
    predicted = model(given["visible_patches"].float() / 255, given["visible"], given["predict"])
    weight = hidden_weight(given["visible"], given["predict"], given["real"])
    return masked_mean(target.error(predicted, wanted), weight)


def loss_by_boolean_mask(model, target, given):
    """The same loss, of hidden tokens that a mask picks out: how many they are, only the values say."""
    wanted = target(given["predict_patches"].float() / 255, {"codes": given["codes"]})
    predicted = model(given["visible_patches"].float() / 255, given["visible"], given["predict"])
    counts = hidden_weight(given["visible"], given["predict"], given["real"]) > 0
    return target.error(predicted[counts], wanted[counts]).mean()


def loss_that_branches(model, target, given):
    """The same loss, after a look at it."""
    loss = loss_of(model, target, given)
    return loss if loss > 0 else loss.detach()


def compiled(loss):
    """Forward and backward as one graph each, which run as they are: code would take a minute to make and be no other graph."""
    return torch.compile(loss, backend="aot_eager", fullgraph=True, dynamic=False)


def update(parameters, optimizer):
    nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@both_targets
def test_steps_on_different_batches_are_one_graph_compiled_once(model, target):
    whole, optimizer = compiled(loss_of), torch.optim.AdamW(model.parameters(), fused=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number in range(4):
            whole(model, target, batch(number)).backward()
            update(list(model.parameters()), optimizer)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_the_graph_computes_the_same_loss_and_gradients(model, target):
    whole, other = compiled(loss_of), copy.deepcopy(model)
    given = batch(0)
    found, expected = whole(model, target, given), loss_of(other, target, given)
    found.backward()
    expected.backward()
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_explained_it_has_no_break_and_one_by_boolean_mask_has(model, target):
    explained = torch._dynamo.explain(loss_of)(model, target, batch(0))
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    torch._dynamo.reset()
    explained = torch._dynamo.explain(loss_by_boolean_mask)(model, target, batch(0))
    assert explained.graph_break_count > 0


def test_a_step_that_looks_at_its_loss_is_no_single_graph(model, target):
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(loss_that_branches)(model, target, batch(0))


def test_another_number_of_tokens_would_be_compiled_anew(model, target):
    whole, given = compiled(loss_of), batch(0)
    whole(model, target, given)
    fewer = {**given, **{name: given[name][:, :-1] for name in ("predict", "predict_patches", "codes")}}
    with torch._dynamo.config.patch(error_on_recompile=True), pytest.raises(torch._dynamo.exc.RecompileError):
        whole(model, target, fewer)


def steps_without_values(model, target, loss, *, precision=torch.float32):
    """Two whole training steps on tensors that have no values."""
    mode = FakeTensorMode()
    with FakeCopyMode(mode):
        model, target, given = copy.deepcopy((model, target, batch(0)))
    with mode:
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                value = loss(model, target, given)
            value.backward()
            update(list(model.parameters()), optimizer)
        return value.detach()


@both_targets
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_whole_step_waits_for_no_value(model, target, precision):
    assert steps_without_values(model, target, loss_of, precision=precision).shape == ()


@pytest.mark.parametrize(
    ("loss", "needs"),
    [(loss_by_boolean_mask, DynamicOutputShapeException), (loss_that_branches, DataDependentOutputException)],
)
def test_a_step_that_waits_for_a_value_is_noticed(model, target, loss, needs):
    with pytest.raises(needs):
        steps_without_values(model, target, loss)
