"""The fixed classifier against independent code, what it compares, and weights that do not fit."""

import math

import pytest
import torch
from torch.nn import functional

from models.perceptual import PerceptualDistance, Size
from models.vit import PIXEL_MEAN, PIXEL_STD

TINY = Size(depths=(2, 1, 1), width=4, num_classes=6)

# Logits of the frames and weights of ``wave`` by ResNetForImageClassification of transformers 5.24.0 (embedding_size=4,
# hidden_sizes=[16, 32, 64], depths=[2, 1, 1]), its weights renamed to torchvision's.
REFERENCE = [
    [-112.432693, -63.549389, 106.049713, 75.022812, -98.253769, -85.700783],
    [-128.178162, -44.903950, 123.741272, 58.223900, -117.698502, -70.931313],
]


def wave(shape, number):
    return torch.sin(1.3 * torch.arange(math.prod(shape)) + number).reshape(shape)


def wave_state():
    state = {}
    for number, (name, like) in enumerate(PerceptualDistance(size=TINY).network.state_dict().items()):
        values = wave(like.shape, number)
        state[name] = 1 + values / 2 if name.endswith("running_var") else values
    return state


def random_state():
    """Weights with which logits differ from frame to frame by about one."""
    generator, state = torch.Generator().manual_seed(0), {}
    for name, like in PerceptualDistance(size=TINY).network.state_dict().items():
        values = torch.randn(like.shape, generator=generator)
        state[name] = values / like[0].numel() ** 0.5 if like.ndim > 1 else 1 + values / 10
    return state


def tiny_distance(**options):
    distance = PerceptualDistance(**{"side_px": None, "size": TINY, **options})
    distance.load(random_state())
    return distance


def clip_pair(frames=4):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, 3, frames, 24, 16, generator=generator), torch.rand(2, 3, frames, 24, 16, generator=generator)


def test_logits_are_those_of_an_independent_implementation():
    distance = PerceptualDistance(size=TINY)
    distance.load(wave_state())
    assert torch.allclose(distance.network(wave((2, 3, 24, 40), 0)), torch.tensor(REFERENCE), rtol=1e-4)


def test_the_default_size_is_the_published_resnet_50():
    state = PerceptualDistance().network.state_dict()
    assert sum(value.numel() for name, value in state.items() if "running" not in name) == 25_557_032
    assert state["layer1.0.downsample.0.weight"].shape == (256, 64, 1, 1)
    assert state["layer4.2.conv2.weight"].shape == (512, 512, 3, 3)
    assert state["layer3.5.bn3.running_var"].shape == (1024,)
    assert state["fc.weight"].shape == (1000, 2048)


def test_the_distance_is_the_mean_square_over_frames_and_classes():
    distance, (rebuilt, clip) = tiny_distance(), clip_pair()
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    squares = [
        (distance.network((rebuilt[:, :, t] - mean) / std) - distance.network((clip[:, :, t] - mean) / std)).square()
        for t in range(4)
    ]
    assert distance(rebuilt, clip).item() == pytest.approx(torch.stack(squares).mean().item(), rel=1e-4)


def test_a_perfect_reconstruction_costs_nothing():
    assert tiny_distance()(clip_pair()[0], clip_pair()[0]).item() == 0


def test_a_gradient_reaches_the_rebuilt_pixels_and_nothing_else():
    distance, (rebuilt, clip) = tiny_distance(side_px=40), clip_pair()
    rebuilt.requires_grad_()
    clip.requires_grad_()
    distance(rebuilt, clip).backward()
    assert (rebuilt.grad.abs().sum(dim=(0, 1, 3, 4)) > 0).all()
    assert clip.grad is None
    assert not any(value.requires_grad for value in distance.parameters())


def test_nothing_changes_in_training_mode():
    distance, pair = tiny_distance(), clip_pair()
    before = distance(*pair)
    state = {name: value.clone() for name, value in distance.state_dict().items()}
    assert distance.train() is distance
    assert torch.equal(distance(*pair), before)
    assert not any(module.training for module in distance.modules())
    assert all(torch.equal(value, state[name]) for name, value in distance.state_dict().items())


def test_amid_low_precision_logits_are_compared_in_full_precision():
    distance, pair = tiny_distance(side_px=40), clip_pair()
    exact = distance(*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = distance(*pair)
    assert measured.dtype == torch.float32
    assert measured.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize(("count", "chosen"), [(1, [2]), (2, [1, 3]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_compared_frames_are_evenly_spaced(count, chosen):
    rebuilt, clip = clip_pair(frames=5)
    few, every = tiny_distance(num_frames=count), tiny_distance()
    assert few(rebuilt, clip).item() == pytest.approx(every(rebuilt[:, :, chosen], clip[:, :, chosen]).item(), rel=1e-5)


def test_more_compared_frames_than_there_are_is_refused():
    with pytest.raises(ValueError, match="num_frames 5 is more than the 4 frames"):
        tiny_distance(num_frames=5)(*clip_pair())


def test_frames_are_resized_linearly_to_a_square():
    rebuilt, clip = clip_pair(frames=1)
    large = [
        functional.interpolate(frames[:, :, 0], size=(40, 40), mode="bilinear", align_corners=False)[:, :, None]
        for frames in (rebuilt, clip)
    ]
    assert tiny_distance(side_px=40)(rebuilt, clip).item() == pytest.approx(tiny_distance()(*large).item(), rel=1e-4)


def test_counters_of_batches_may_be_there():
    distance, (rebuilt, clip) = PerceptualDistance(side_px=None, size=TINY), clip_pair()
    distance.load({**random_state(), "bn1.num_batches_tracked": torch.tensor(7)})
    assert torch.equal(distance(rebuilt, clip), tiny_distance()(rebuilt, clip))


def test_weights_are_copied_in_full_precision():
    state = {name: value if name == "fc.weight" else value.half() for name, value in random_state().items()}
    distance = PerceptualDistance(side_px=None, size=TINY)
    distance.load(state)
    state["fc.weight"].zero_()
    assert all(value.dtype == torch.float32 for value in distance.state_dict().values())
    assert distance(*clip_pair()) > 0


def test_weights_that_do_not_fit_are_named():
    state = {name: value for name, value in random_state().items() if not name.startswith("layer2.0.downsample")}
    state["head.bias"] = state.pop("fc.bias")
    state["fc.weight"] = torch.zeros(9, 64)
    with pytest.raises(ValueError, match="are not those of a ResNet") as caught:
        PerceptualDistance(size=TINY).load(state)
    assert "missing: layer2.0.downsample.0.weight, layer2.0.downsample.1.weight, " in str(caught.value)
    assert "and 3 more; unexpected: head.bias; " in str(caught.value)
    assert "of another shape: fc.weight is (9, 64) and not (6, 64)" in str(caught.value)


def test_a_classifier_without_weights_judges_nothing():
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        PerceptualDistance(size=TINY)(*clip_pair())
