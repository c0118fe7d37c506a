"""What makes clips harder: the same for all frames, by draws of a given generator, and as the pictures of others have it."""

import collections

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from models import augmentation
from models.augmentation import OPERATIONS, RandAugment, drawn_operations, erase, rand_augment
from models.mixing import Mix, Mixing, draw_mix, mixed, mixed_labels, smoothed

ALWAYS = RandAugment(share=1.0)


def source(seed=0):
    return torch.Generator().manual_seed(seed)


def noisy(frames=1, side=24, seed=0):
    """A clip with some structure and all values."""
    ramp = torch.linspace(20, 200, side).expand(3, frames, side, side)
    return (ramp + 30 * torch.randn(3, frames, side, side, generator=source(seed))).clamp(0, 255).to(torch.uint8)


def picture(clip):
    return Image.fromarray(clip[:, 0].permute(1, 2, 0).contiguous().numpy())


# RandAugment.


@pytest.mark.parametrize("seed", range(12))
def test_equal_frames_stay_equal(seed):
    still = noisy().expand(3, 5, 24, 24).contiguous()
    found = rand_augment(still, ALWAYS, source(seed))
    assert found.dtype == torch.uint8
    assert (found == found[:, :1]).all()
    assert not torch.equal(found, still)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"contrast", "autocontrast", "equalize"}))
def test_a_frame_is_changed_as_if_it_were_alone(name):
    clip = noisy(frames=3)
    found = OPERATIONS[name](clip, 0.7)
    for time in range(3):
        assert torch.equal(found[:, time : time + 1], OPERATIONS[name](clip[:, time : time + 1], 0.7))


@pytest.mark.parametrize("name", ["contrast", "autocontrast", "equalize"])
def test_what_looks_at_brightness_changes_equal_values_equally_in_all_frames(name):
    clip = torch.cat([noisy(seed=1) // 2 + 20, noisy(seed=2) // 4], dim=1)
    found = OPERATIONS[name](clip, 0.7)
    assert not torch.equal(found, clip)
    for before, after in zip(clip, found, strict=True):
        pairs = {(int(old), int(new)) for old, new in zip(before.flatten(), after.flatten(), strict=True)}
        assert len(pairs) == len({old for old, _ in pairs})


PILLOW = {
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    "colour": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
    "posterize": lambda image, strength: ImageOps.posterize(image, 4 - int(4 * abs(strength))),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 - int(256 * abs(strength))),
    "invert": lambda image, strength: ImageOps.invert(image),
    "autocontrast": lambda image, strength: ImageOps.autocontrast(image),
    "equalize": lambda image, strength: ImageOps.equalize(image),
    "rotate": lambda image, strength: image.rotate(-30 * strength, resample=Image.Resampling.BILINEAR),
    "shear_x": lambda image, strength: moved(image, (1, 0.3 * strength, -0.3 * strength * image.height / 2, 0, 1, 0)),
    "shear_y": lambda image, strength: moved(image, (1, 0, 0, 0.3 * strength, 1, -0.3 * strength * image.width / 2)),
    "translate_x": lambda image, strength: moved(image, (1, 0, 0.45 * strength * image.width, 0, 1, 0)),
    "translate_y": lambda image, strength: moved(image, (1, 0, 0, 0, 1, 0.45 * strength * image.height)),
}


def moved(image, coefficients):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BILINEAR)


@pytest.mark.parametrize("strength", [-0.7, 0.3, 0.7])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_operations_agree_with_pillow(name, strength):
    clip = noisy()
    found = OPERATIONS[name](clip, strength)[:, 0].permute(1, 2, 0).int().numpy()
    expected = np.asarray(PILLOW[name](picture(clip), strength)).astype(int)
    if name.startswith(("rotate", "shear", "translate")):  # at the rim the two fill in differently
        inside = np.asarray(PILLOW[name](Image.new("RGB", (24, 24), (255, 255, 255)), strength))[..., 0] == 255
        inside[[0, -1]], inside[:, [0, -1]] = False, False
        frame = np.pad(inside, 1)
        inside &= frame[:-2, 1:-1] & frame[2:, 1:-1] & frame[1:-1, :-2] & frame[1:-1, 2:]
        assert inside.mean() > 0.25
        found, expected = found[inside], expected[inside]
    assert np.abs(found - expected).max() <= (2 if name in ("contrast", "sharpness") else 1)


def test_outside_of_a_moved_clip_lies_the_mean_colour():
    found = augmentation.translate_x(torch.zeros(3, 2, 20, 20, dtype=torch.uint8), 1.0)
    assert found[:, :, 5, -1].tolist() == [[124, 124], [116, 116], [104, 104]]
    assert found[:, :, 5, 0].max() == 0


def test_operations_are_drawn_alike_with_strengths_about_the_magnitude():
    drawn = [one for seed in range(1500) for one in drawn_operations(RandAugment(), source(seed))]
    assert len(drawn) == pytest.approx(1500 * 4 * 0.5, rel=0.05)
    counts = collections.Counter(name for name, _ in drawn)
    assert set(counts) == set(OPERATIONS)
    assert max(counts.values()) < 1.5 * min(counts.values())
    strengths = torch.tensor([strength for _, strength in drawn])
    assert strengths.abs().mean().item() == pytest.approx(0.7, abs=0.01)
    assert strengths.abs().std().item() == pytest.approx(0.05, abs=0.01)
    assert (strengths > 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    assert all(abs(strength) <= 1 for _, strength in drawn_operations(RandAugment(magnitude=10, share=1.0), source()))


def test_a_draw_is_its_generators():
    clip = noisy(frames=2)
    found = [rand_augment(clip, ALWAYS, source(seed)) for seed in (3, 3, 4)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(rand_augment(clip, RandAugment(num_operations=0), source()), clip)


# Erasing.


def test_a_box_is_erased_in_all_frames_alike():
    clip, areas = torch.zeros(3, 4, 40, 60, dtype=torch.uint8), []
    for seed in range(40):
        found = erase(clip, 1.0, source(seed))
        hit = (found > 0).any(dim=0)  # [T, H, W]
        rows, columns = (hit.any(dim=0).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
        box = hit[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.float().mean() > 0.9, "noise is rarely black"
        assert hit.sum() == box.sum()
        areas.append(box[0].numel() / (40 * 60))
    assert min(areas) > 0.01
    assert max(areas) < 0.36
    assert clip.max() == 0, "the clip that was given is left alone"


def test_the_share_of_erased_clips():
    clip = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
    assert all(torch.equal(erase(clip, 0.0, source(seed)), clip) for seed in range(20))
    hits = sum(not torch.equal(erase(clip, 0.25, source(seed)), clip) for seed in range(600))
    assert hits / 600 == pytest.approx(0.25, abs=0.05)


# Mixing.


def test_a_mixup_fades_clips_and_labels_by_the_same_share():
    clips, labels = torch.rand(3, 3, 2, 4, 4, generator=source()), torch.eye(3)
    mix = Mix(own=0.7)
    torch.testing.assert_close(mixed(clips, mix)[0], 0.7 * clips[0] + 0.3 * clips[2])
    assert mixed_labels(labels, mix)[0].tolist() == pytest.approx([0.7, 0.0, 0.3])
    assert mixed_labels(labels, mix)[1].tolist() == pytest.approx([0.0, 1.0, 0.0]), "the middle meets itself"


@pytest.mark.parametrize("seed", range(20))
def test_the_labels_of_a_cutmix_are_shares_of_pixels(seed):
    clips = torch.stack([torch.zeros(3, 4, 20, 30), torch.ones(3, 4, 20, 30)])
    mix = draw_mix(Mixing(mixup=None), height=20, width=30, generator=source(seed))
    found = mixed(clips, mix)
    share = mixed_labels(torch.eye(2), mix)
    assert found[0].mean().item() == pytest.approx(share[0, 1].item(), abs=1e-6)
    assert found[1].mean().item() == pytest.approx(share[1, 1].item(), abs=1e-6)
    assert (found == found[:, :, :1]).all(), "the same box in every frame"
    assert clips[0].max() == 0, "the clips that were given are left alone"


def test_what_is_drawn_is_what_is_wanted():
    def draws(config):
        return [draw_mix(config, height=32, width=32, generator=source(seed)) for seed in range(400)]

    assert set(draws(Mixing(mixup=None, cutmix=None))) == {None}
    assert all(mix.box is None for mix in draws(Mixing(cutmix=None)))
    assert all(mix.box is not None for mix in draws(Mixing(mixup=None)))
    both = draws(Mixing())
    assert sum(mix.box is not None for mix in both) / 400 == pytest.approx(0.5, abs=0.08)
    owns = torch.tensor([mix.own for mix in draws(Mixing(cutmix=None))])
    assert owns.mean().item() == pytest.approx(0.5, abs=0.05)
    assert owns.var().item() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), rel=0.15), "of a beta distribution"
    assert both == draws(Mixing())


def test_smoothed_labels_have_their_closed_form():
    labels = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.25, 0.75, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = smoothed(labels, 0.1)
    assert found[0].tolist() == pytest.approx([0.025, 0.925, 0.025, 0.025])
    assert found[1].tolist() == pytest.approx([0.25, 0.7, 0.025, 0.025])
    assert found[2].tolist() == [0.0] * 4
    assert torch.equal(smoothed(labels, 0.0), labels)
