"""What tokenizer and discriminator are trained towards when they play against each other.

Logits are positive where a clip looks recorded. Nothing here is weighted; weights belong to the training. Averages over a
batch are over the clips of this process.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from models.shapes import Float, Tensor


def generator_loss(fake_logits: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean surprise, in nats, of taking the rebuilt clips for recorded ones: the non-saturating loss.

    Source: Goodfellow et al., arXiv 1406.2661, section 3; used by MAGVIT, arXiv 2212.05199.
    """
    return functional.softplus(-fake_logits.float()).mean()


def discriminator_loss(real_logits: Float[Tensor, " B"], fake_logits: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Mean surprise, in nats, of telling recorded from rebuilt clips; 2 ln 2 for logits of zero.

    Args:
        real_logits: of recorded clips.
        fake_logits: of rebuilt clips, which were detached from the network that rebuilt them.

    Source: Goodfellow et al., arXiv 1406.2661.
    """
    return functional.softplus(-real_logits.float()).mean() + functional.softplus(fake_logits.float()).mean()


def r1_penalty(
    discriminator: Callable[[Float[Tensor, "B 3 T H W"]], Float[Tensor, " B"]], real: Float[Tensor, "B 3 T H W"]
) -> Float[Tensor, ""]:
    """Squared length of the gradient of a clip's logit by its pixels, mean over the clips; differentiable once more.

    There is no factor of one half: MAGVIT's cost of 10 multiplies this number as it is, and the ``gamma`` of the paper is
    twice that cost. It is computed in full precision whatever the surroundings, being a sum of many tiny squares.

    Args:
        discriminator: judges every clip by itself; a network that mixes clips would give another quantity.
        real: recorded clips, pixels in [0, 1].

    Source: R1 of Mescheder et al., arXiv 1801.04406, which is gamma / 2 * E |gradient|^2; the form without the half is
    that of the published code of MAGVIT, arXiv 2212.05199.
    """
    pixels = real.detach().requires_grad_()
    with torch.autocast(pixels.device.type, enabled=False):
        logits = discriminator(pixels)
        (gradient,) = torch.autograd.grad(logits.sum(), pixels, create_graph=True)
        return gradient.square().flatten(1).sum(dim=1).mean()


class LeCam(nn.Module):
    """Keeps the logits of either kind of clip near what the other kind got in the steps before.

    A real logit costs the square of what it exceeds the average fake one by, a fake logit the square of what it falls
    short of the average real one. The averages are exponential, start at zero and are part of the state dict, so that a
    training continues where it stopped.

    Args:
        decay: share of an average that one step leaves, in [0, 1). MAGVIT has 0.999, the authors of LeCam 0.99.

    Source: Tseng et al., arXiv 2104.03310, with the one-sided squares of its authors' code. As in the published code of
    MAGVIT, a step is measured against the averages from before it and they are not corrected for their start; unlike
    there, the squares are taken clip by clip, as the paper has it.
    """

    real_average: Tensor
    fake_average: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real_logits: Float[Tensor, " B"], fake_logits: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """The penalty; in training mode the averages take in these logits afterwards."""
        real, fake = real_logits.float(), fake_logits.float()
        excess = functional.relu(real - self.fake_average).square().mean()
        shortfall = functional.relu(self.real_average - fake).square().mean()
        if self.training:
            self.real_average.lerp_(real.detach().mean(), 1 - self.decay)
            self.fake_average.lerp_(fake.detach().mean(), 1 - self.decay)
        return excess + shortfall
