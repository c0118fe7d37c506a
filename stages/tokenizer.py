"""Stage 2: train the adaptive tokenizer on short windows, so that it can say which tokens matter and what they are.

The losses are pixels alone so far; the adversarial and the perceptual one of the MAGVIT recipe are not built.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models import tokenizer
from models.config import Config as BaseConfig
from stages import preview
from stages.batches import ClipFrames, Sample, Stream, training_clips
from stages.draws import below, generator
from stages.errors import ConfigError
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip
from stages.storage.publish import canonical_json, publish_bytes
from stages.storage.workspace import Workspace
from stages.training import Losses, Optimization, Training, device, on_stream, train
from stages.views import View, cut

INPUTS = ("shard",)
VERSION = 2


class Config(BaseConfig):
    """What to train, on what, and for how long."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers", "cache_bytes"})

    model: tokenizer.Config
    """The network."""
    size_px: int
    """Height and width of the training windows, cropped at random."""
    optimization: Optimization
    """Steps, rates, batch; ``batch_clips`` counts windows."""
    exclude: dict[str, str] = Field(default_factory=dict)
    """Clips with one of these labels are not trained on, such as ``{split: test}``."""
    num_preview_windows: int = 64
    """Windows over which the published quality is measured."""
    seed: int = 0
    """Seed of initial weights, order, crops and windows."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    cache_bytes: int = 0
    """Decoded video to keep in memory, per process."""


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """A trained tokenizer: ``model.safetensors`` with its config, curves and a picture of what it does.

    Raises:
        TrainingDiverged: the loss stopped being finite.
        ArtifactBusy: another live run trains the same tokenizer.
    """
    make = functools.partial(_make, config, inputs["shard"], workspace)
    return artifact.produce("tokenizer", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def _make(config: Config, snapshot: Artifact, workspace: Workspace, folder: Path) -> Work:
    stream = _stream(config, snapshot)
    module = _untrained(config)
    resumed = checkpoints.newest_step(folder)
    training = _training(config, module, stream)
    history = train(training, folder=folder, monitor=workspace.monitor)
    quality, picture = _quality(module.eval(), _held_windows(config, stream))
    publish_bytes(folder / "config.json", canonical_json(config.model.model_dump(mode="json")))
    publish_bytes(folder / "model.safetensors", checkpoints.encode(module.state_dict()))
    publish_bytes(folder / "metrics.json", canonical_json({"quality": quality, "history": history}))
    publish_bytes(folder / "preview.png", picture)
    workspace.monitor.log(training.total_steps, {f"final_{key}": value for key, value in quality.items()})
    counts = {"parameters": sum(value.numel() for value in module.parameters())}
    return Work(training.total_steps - resumed, resumed, counts, metrics=quality)


def _untrained(config: Config) -> tokenizer.AdaptiveTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return tokenizer.AdaptiveTokenizer(config.model).to(device())


def _stream(config: Config, snapshot: Artifact) -> Stream:
    frames = ClipFrames(snapshot, config.cache_bytes)
    return Stream(training_clips(snapshot, config.exclude), config.seed, functools.partial(_sample, config, frames))


def _sample(config: Config, frames: ClipFrames, clip: Clip, epoch: int) -> Sample:
    """One window of a clip, ``uint8 [C T H W]``, at a time and a place drawn for (seed, clip, epoch)."""
    spare = [clip.num_frames - config.model.window_frames, clip.height_px - config.size_px, clip.width_px - config.size_px]
    if min(spare[1:]) < 0:
        raise ConfigError(
            f"clip {clip.clip_id} is {clip.width_px}x{clip.height_px} px, smaller than tokenizer.size_px={config.size_px}; "
            "make shard.clip.size_px at least as large"
        )
    source = generator(config.seed, "window", clip.clip_id, epoch)
    start, y, x = (below(max(0, bound) + 1, source) for bound in spare)
    flip = bool(below(2, source))
    view = View(clip.clip_id, 0, start, y, x, config.size_px, flip, num_real_frames=config.model.window_frames)
    window = cut(frames, clip, view, config.model.window_frames)
    return {"window": torch.from_numpy(rearrange(window, "T H W C -> C T H W").copy())}


def _training(config: Config, module: tokenizer.AdaptiveTokenizer, stream: Stream) -> Training:
    losses = functools.partial(_losses, module)
    return on_stream(
        stream, module, losses, optimization=config.optimization, num_workers=config.num_workers, label="tokenizer"
    )


def _losses(module: tokenizer.AdaptiveTokenizer, batch: Mapping[str, Tensor]) -> Losses:
    window = batch["window"].float() / 255
    rebuilt = module(window)
    loss = functional.mse_loss(rebuilt.clip.float(), window)
    return {"loss": loss, "psnr_db": _psnr_db(loss.detach())}


def _psnr_db(mean_squared_error: Tensor) -> Tensor:
    return -10 * torch.log10(mean_squared_error.clamp_min(1e-10))


def _held_windows(config: Config, stream: Stream) -> Tensor:
    windows = [stream[position]["window"] for position in range(config.num_preview_windows)]
    return torch.stack(windows).to(device()).float() / 255


@torch.no_grad()
def _quality(module: tokenizer.AdaptiveTokenizer, windows: Tensor) -> tuple[dict[str, float], bytes]:
    """PSNR with all tokens and with the kept ones alone, use of the codebook, and a picture of the first windows."""
    all_codes, priorities, complete, sparse = [], [], [], []
    for part in torch.split(windows, 8):
        codes, priority = module.tokenize(part)
        all_codes.append(codes)
        priorities.append(priority)
        complete.append(module.decode(codes))
        sparse.append(module(part).clip)
    usage = torch.bincount(torch.cat(all_codes).flatten(), minlength=1)
    used = usage[usage > 0] / usage.sum()
    quality = {
        "psnr_all_tokens_db": float(_psnr_db(functional.mse_loss(torch.cat(complete), windows))),
        "psnr_kept_tokens_db": float(_psnr_db(functional.mse_loss(torch.cat(sparse), windows))),
        "codes_used": float(len(used)),
        "code_entropy_bits": float(-(used * used.log2()).sum()),
    }
    shown = [_frames(windows[:4]), _frames(complete[0][:4]), _frames(sparse[0][:4])]
    return quality, preview.tokenizer_preview(*shown, priority=priorities[0][:4].cpu().numpy())


def _frames(clips: Tensor) -> npt.NDArray[np.uint8]:
    pixels: npt.NDArray[np.uint8] = (rearrange(clips, "B C T H W -> B T H W C").clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels
