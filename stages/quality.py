"""How well a tokenizer rebuilds video: PSNR and SSIM with all, with the kept and with random tokens, use of codes, and seams.

Measured on spans of clips, window by window. What a collapsed tokenizer looks like is here too, and refused.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor

from models.config import Config
from models.quantizers import QuantizerConfig
from models.selection import hard_top_k
from models.tokenizers import Tokenizer
from stages.draws import generator
from stages.errors import TokenizerCollapsed

_BATCH_WINDOWS = 8


class Health(Config):
    """What a tokenizer must reach to be published."""

    min_code_entropy_share: float = Field(default=0.25, ge=0, le=1)
    """Entropy of the codes over the most that so many tokens, or so many codes, can have. Our choice."""

    min_channel_entropy_bits: float = Field(default=0.1, ge=0)
    """Entropy of the levels of the worst channel of the quantizer. Our choice."""

    min_psnr_over_flat_db: float = 0.0
    """PSNR with all tokens less that of windows painted in their mean colour, which takes no tokens at all. Our choice."""


class Rebuilt(NamedTuple):
    """Windows and what a tokenizer makes of them; pixels in [0, 1]."""

    windows: Tensor
    """``[n 3 T H W]``"""
    complete: Tensor
    """Rebuilt from all tokens."""
    sparse: Tensor
    """Rebuilt from the k tokens of highest priority, the first slot always kept where training did."""
    drawn: Tensor
    """Rebuilt from as many, the others of them drawn at random."""
    codes: Tensor
    """``[n t h w]``, of all tokens."""
    priority: Tensor
    """``[n t h w]``"""


@torch.no_grad()
def rebuild(module: Tokenizer, windows: Tensor, *, num_kept: int, keep_first_slot: bool, seed: int) -> Rebuilt:
    """What a tokenizer makes of windows.

    Args:
        module: the tokenizer, on the device of the windows.
        windows: ``float [n 3 T H W]`` in [0, 1].
        num_kept: tokens of a window that are kept, the first slot included.
        keep_first_slot: whether the first slot is always kept.
        seed: of the random tokens.
    """
    parts = [
        _rebuild(module, part, (num_kept, keep_first_slot), generator(seed, "random tokens", number))
        for number, part in enumerate(torch.split(windows, _BATCH_WINDOWS))
    ]
    return Rebuilt(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _rebuild(module: Tokenizer, windows: Tensor, kept: tuple[int, bool], source: torch.Generator) -> Rebuilt:
    priority, latents = module.priority(windows), module.latents(windows)
    vectors = module.quantizer(latents)
    random = torch.rand(priority.shape, generator=source).to(priority)
    sparse, drawn = (
        module.rebuild(module.quantizer(latents * kept_tokens(scores, *kept)[..., None])).float().clamp(0, 1)
        for scores in (priority, random)
    )
    complete = module.rebuild(vectors).float().clamp(0, 1)
    return Rebuilt(windows, complete, sparse, drawn, module.quantizer.codes(vectors), priority)


def kept_tokens(scores: Tensor, num_kept: int, keep_first_slot: bool) -> Tensor:
    """Ones at the ``num_kept`` tokens ``[n t h w]`` of highest score, the first slot before all others if it is always kept."""
    ranked = scores.float().clone()
    if keep_first_slot:
        ranked[:, 0] = torch.inf
    return hard_top_k(ranked.flatten(1), num_kept).view_as(scores)


def measures(found: Rebuilt, quantizer: QuantizerConfig) -> dict[str, float]:
    """Every measure by name, units last; decibels and SSIM are means over windows and frames."""
    used = _shares(found.codes.flatten())
    channels = _channel_entropies_bits(found.codes, quantizer.channel_levels)
    sizes = {"all": found.complete, "kept": found.sparse, "random": found.drawn}
    psnr = {f"psnr_{name}_tokens_db": float(psnr_db(clips, found.windows).mean()) for name, clips in sizes.items()}
    ssim = {f"ssim_{name}_tokens": _ssim(clips, found.windows) for name, clips in sizes.items() if name != "random"}
    return {
        **psnr,
        **ssim,
        "psnr_over_flat_db": psnr["psnr_all_tokens_db"] - float(psnr_db(_flat(found.windows), found.windows).mean()),
        "psnr_topk_gain_db": psnr["psnr_kept_tokens_db"] - psnr["psnr_random_tokens_db"],
        "codes_used": float(len(used)),
        "code_entropy_bits": _entropy_bits(used),
        "code_entropy_share": _entropy_bits(used) / _most_bits(found.codes.numel(), quantizer.channel_levels),
        "least_channel_entropy_bits": min(channels),
    }


def psnr_db(rebuilt: Tensor, windows: Tensor) -> Tensor:
    """Peak signal over error of every window ``[n]``, in decibels; 100 for equal ones."""
    error = (rebuilt.float() - windows).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp_min(1e-10))


def seam_ratio(spans: Sequence[Tensor], rebuilt: Sequence[Tensor], *, window_frames: int, tubelet_frames: int) -> float | None:
    """How much more the error jumps from one window to the next than from one tubelet to the next within a window.

    Mean squares of the change of the error from frame to frame; 1: windows cannot be seen. ``None``: no span has two windows.

    Args:
        spans: ``[3 n*T H W]`` each, n windows one after the other.
        rebuilt: what became of them.
        window_frames: T.
        tubelet_frames: frames of one slot.
    """
    seams, others = [], []
    for span, made in zip(spans, rebuilt, strict=True):
        change = (made - span).diff(dim=1).square().mean(dim=(0, 2, 3))  # [n*T - 1], the change after each frame
        after = torch.arange(1, len(change) + 1)
        seams.append(change[after % window_frames == 0])
        others.append(change[(after % tubelet_frames == 0) & (after % window_frames != 0)])
    at_seams = torch.cat(seams)
    return float(at_seams.mean() / torch.cat(others).mean().clamp_min(1e-12)) if len(at_seams) else None


def check_health(found: Mapping[str, float], health: Health) -> None:
    """Refuse a tokenizer that uses too few of its codes, or whose decoder makes nothing of them.

    Raises:
        TokenizerCollapsed: it does; the message says by how much, and what to do.
    """
    faults = list(_faults(found, health))
    if faults:
        raise TokenizerCollapsed(
            f"the tokenizer is not published, it has collapsed: {'; '.join(faults)}. Train longer, lower "
            "tokenizer.optimization.learning_rate or the weight of the adversarial loss, or lower tokenizer.health if that is "
            "what you want. Each of these is another tokenizer and trains anew; running the same one again goes on from "
            "its last checkpoint and judges it once more"
        )


def _faults(found: Mapping[str, float], health: Health) -> Iterator[str]:
    share, bits = found["code_entropy_share"], found["least_channel_entropy_bits"]
    if share < health.min_code_entropy_share:
        yield (
            f"the {found['codes_used']:.0f} codes in use have {found['code_entropy_bits']:.2f} bits of entropy, {share:.1%} of "
            f"what is possible, and health.min_code_entropy_share is {health.min_code_entropy_share:.1%}"
        )
    if bits < health.min_channel_entropy_bits:
        yield (
            f"the least used channel of the quantizer has {bits:.3f} bits, and health.min_channel_entropy_bits is "
            f"{health.min_channel_entropy_bits:g}"
        )
    if found["psnr_over_flat_db"] < health.min_psnr_over_flat_db:
        yield (
            f"rebuilt windows are {found['psnr_over_flat_db']:+.2f} dB from windows painted in their mean colour, and "
            f"health.min_psnr_over_flat_db is {health.min_psnr_over_flat_db:g}"
        )


def _flat(windows: Tensor) -> Tensor:
    """Windows painted in their mean colour."""
    return windows.mean(dim=(2, 3, 4), keepdim=True).expand_as(windows)


def _most_bits(num_tokens: int, levels: Sequence[int]) -> float:
    """The entropy that so many tokens can have at most."""
    codebook_bits = float(torch.tensor(levels).log2().sum())
    return min(codebook_bits, float(torch.tensor(float(num_tokens)).log2()))


def _channel_entropies_bits(codes: Tensor, levels: Sequence[int]) -> list[float]:
    found, rest = [], codes.flatten()
    for level in levels:
        found.append(_entropy_bits(_shares(rest % level)))
        rest = rest // level
    return found


def _shares(values: Tensor) -> Tensor:
    """How often each value that occurs does, as shares of all."""
    counts = torch.unique(values, return_counts=True)[1]
    shares: Tensor = counts / counts.sum()
    return shares


def _entropy_bits(shares: Tensor) -> float:
    return max(0.0, float(-(shares * shares.log2()).sum()))


def _ssim(rebuilt: Tensor, windows: Tensor) -> float:
    """Structural similarity, mean over frames. Source: Wang et al. 2004, as torchmetrics computes it."""
    from torchmetrics.functional.image import structural_similarity_index_measure  # seconds to import, and needed once

    total = 0.0
    for made, wanted in zip(torch.split(rebuilt, _BATCH_WINDOWS), torch.split(windows, _BATCH_WINDOWS), strict=True):
        frames, targets = (rearrange(clips, "n C T H W -> (n T) C H W") for clips in (made, wanted))
        found: Any = structural_similarity_index_measure(frames, targets, data_range=1.0)
        total += float(found) * len(wanted)
    return total / len(windows)
