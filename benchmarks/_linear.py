"""Tokenizers that learn nothing by gradients, at the rate of the learned one; and the drawing of its curve."""

import io
from collections.abc import Mapping, Sequence

import torch
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from models.grid import patchify
from models.tokenizers import Tokenizer
from models.tokenizers.linear import Config, LinearTokenizer
from stages import tokenizer
from stages.batches import ClipFrames, training_clips
from stages.draws import generator
from stages.storage.artifact import Artifact

_SCALES = (0.6, 0.8, 1.0, 1.3, 1.6, 2.0, 2.5)
"""Widths of the quantizer that are tried, in standard deviations of each coefficient; the best one is taken."""


def baselines(config: tokenizer.Config, snapshot: Artifact, *, num_windows: int) -> dict[str, Tokenizer]:
    """Principal components and a block transform behind the same quantizer, both fitted to so many training windows."""
    patches = _patches(config, snapshot, num_windows)
    model = config.model
    linear = Config(patching=model.patching, window_frames=model.window_frames, quantizer=model.quantizer)
    components, waves = linear.build(), linear.build()
    mean = patches.mean(dim=0)
    directions = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors.flip(1)[:, : components.quantizer.dim].T
    return {
        "PCA + FSQ": fitted(components, patches, mean, directions.contiguous()),
        "DCT + FSQ": fitted(waves, patches, mean, waves.basis),
    }


def fitted(module: LinearTokenizer, patches: Tensor, mean: Tensor, basis: Tensor) -> LinearTokenizer:
    """A linear tokenizer with a basis ``[d patch_dim]``, widths and levels fitted to patches ``[n patch_dim]``."""
    coefficients = (patches - mean) @ basis.T  # [n, d]
    module.basis, module.mean = basis, mean
    best = torch.full((module.quantizer.dim,), torch.inf)
    for width in _SCALES:
        scale = coefficients.std(dim=0) * width
        latents = coefficients / scale
        digits = module._digits(module.quantizer.codes(module.quantizer(latents)))
        table = torch.zeros_like(module.table)
        for level in range(table.shape[1]):
            at = digits == level
            table[:, level] = (latents * at).sum(dim=0) / at.sum(dim=0).clamp_min(1)
        error = ((table.gather(1, digits.T).T - latents) * scale).square().mean(dim=0)
        better = error < best
        best = torch.where(better, error, best)
        module.scale = torch.where(better, scale, module.scale)
        module.table = torch.where(better[:, None], table, module.table)
    return module


def _patches(config: tokenizer.Config, snapshot: Artifact, num_windows: int) -> Tensor:
    """Patches of training windows, ``float [n patch_dim]``."""
    clips, frames, found = training_clips(snapshot, config.exclude), ClipFrames(snapshot), []
    for number in range(num_windows):
        source = generator(config.seed, "baseline", number)
        clip = clips[number % len(clips)]
        window = tokenizer.span(config, frames, clip, num_frames=config.model.window_frames, source=source)
        found.append(patchify(window[None], config.model.patching)[0])
    return rearrange(torch.stack(found), "n N patch -> (n N) patch").float() / 255


def curve(rows: Sequence[Mapping[str, float]]) -> bytes:
    """PSNR and the use of codes over the steps of a training, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    for name, title in (("all", "all tokens"), ("kept", "kept tokens"), ("random", "as many random tokens")):
        left.plot(steps, [row[f"psnr_{name}_tokens_db"] for row in rows], marker=".", label=title)
    left.set_ylabel("PSNR on held-out clips, dB")
    left.legend(frameon=False)
    right.plot(
        steps, [row["code_entropy_bits"] for row in rows], marker=".", color="#D55E00", label="entropy of the codes, bits"
    )
    right.plot(steps, [100 * row["ssim_all_tokens"] for row in rows], marker=".", color="#009E73", label="SSIM, all tokens, %")
    right.legend(frameon=False)
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
