"""The k largest scores, with the gradient of their mean under noise."""

from typing import Any, Literal

import torch
from pydantic import Field
from torch import autograd

from models.selection import SelectionConfig, hard_top_k, standardised
from models.shapes import Float, Tensor


class Config(SelectionConfig):
    """Forward the hard top k, backward the Jacobian of the mean top k of scores with Gaussian noise, from a few samples.

    The published layer also gives that mean forward, whose values lie between 0 and 1; here the forward pass keeps exactly k,
    so that a token is either seen or not.

    Source: perturbed optimizers, arXiv 2002.08676; differentiable patch selection, arXiv 2104.03059.
    """

    name: Literal["perturbed"] = "perturbed"
    """The name in a recipe."""

    num_samples: int = Field(default=32, ge=2)
    """Noisy copies of the scores behind each gradient. Our choice; arXiv 2104.03059 uses 500."""

    noise: float = Field(default=0.3, gt=0)
    """Standard deviation of the noise, in standard deviations of the scores. Our choice."""

    def keep(self, scores: Float[Tensor, "B N"], k: int, generator: torch.Generator | None) -> Float[Tensor, "B N"]:
        """The k largest; chance has a part in the gradient alone, and without a generator there is none."""
        plain = standardised(scores)
        if generator is None:
            return hard_top_k(plain, k).to(scores.dtype)
        shape = (self.num_samples, *plain.shape)
        drawn = torch.randn(shape, generator=generator, device=generator.device).to(plain.device)
        kept: Tensor = _Perturbed.apply(plain, drawn, k, self.noise)  # type: ignore[no-untyped-call]
        return kept.to(scores.dtype)


class _Perturbed(autograd.Function):
    """The top k of scores, and the Jacobian of its mean under ``noise * drawn``."""

    @staticmethod
    def forward(context: Any, scores: Tensor, drawn: Tensor, k: int, noise: float) -> Tensor:
        context.save_for_backward(hard_top_k(scores + noise * drawn, k), drawn)
        context.noise = noise
        return hard_top_k(scores, k)

    @staticmethod
    def backward(context: Any, *grads: Any) -> Any:
        chosen, drawn = context.saved_tensors  # [samples, B, N]
        # With the mean over the samples taken out, a gradient that is the same for every token moves no score.
        gain = ((chosen - chosen.mean(dim=0)) * grads[0]).sum(dim=-1, keepdim=True)  # [samples, B, 1]
        return (gain * drawn).mean(dim=0) / context.noise, None, None, None
