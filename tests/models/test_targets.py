"""What each target promises beyond what all of them promise (see test_extensions)."""

import torch

from models.grid import Patching
from models.quantizers import fsq, lfq
from models.targets import code_vectors, pixels

SMALL = Patching(tubelet_frames=2, patch_px=4)
QUANTIZER = fsq.Config(levels=(8, 5, 5))


def test_codes_become_the_vectors_of_the_tokenizers_quantizer():
    quantizer = lfq.Config(bits=5)
    target = code_vectors.Config().build(SMALL, quantizer)
    codes = torch.tensor([[0, 31, 5]])
    assert target.dim == 5
    assert target(torch.zeros(1, 3, SMALL.patch_dim), {"codes": codes})[0, 2].tolist() == [1, -1, 1, -1, -1]


def test_codes_become_their_grid_vectors():
    target = code_vectors.Config().build(SMALL, QUANTIZER)
    codes = torch.randint(0, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    vectors = target(torch.zeros(2, 7, SMALL.patch_dim), {"codes": codes})
    assert target.dim == 3
    assert torch.equal(QUANTIZER.build().codes(vectors), codes)


def test_pixels_have_zero_mean_and_unit_variance_in_every_channel():
    target = pixels.Config().build(SMALL, QUANTIZER)
    patches = torch.rand(2, 5, SMALL.patch_dim, generator=torch.Generator().manual_seed(0))
    standardised = target(patches, {}).reshape(2, 5, 32, 3)
    assert target.dim == SMALL.patch_dim
    assert standardised.mean(dim=2).abs().max() < 1e-5
    assert torch.allclose(standardised.var(dim=2, correction=1), torch.ones(2, 5, 3), atol=1e-4)


def test_pixels_forget_brightness_and_contrast_of_each_channel():
    target = pixels.Config().build(SMALL, QUANTIZER)
    patches = torch.rand(1, 4, 32, 3, generator=torch.Generator().manual_seed(0))
    changed = patches * torch.tensor([0.5, 0.9, 0.7]) + torch.tensor([0.1, 0.0, 0.3])
    assert torch.allclose(target(patches.flatten(2), {}), target(changed.flatten(2), {}), atol=1e-4)


def test_a_flat_tubelet_is_all_zeros():
    target = pixels.Config().build(SMALL, QUANTIZER)
    assert torch.equal(target(torch.full((1, 1, SMALL.patch_dim), 0.5), {}), torch.zeros(1, 1, SMALL.patch_dim))
