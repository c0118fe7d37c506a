"""Stage 3: run the frozen tokenizer over every clip and view once, and store codes and priorities for pretraining."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange

from models.config import Config as BaseConfig
from models.grid import Grid
from models.tokenizer import AdaptiveTokenizer
from stages.batches import ClipFrames
from stages.errors import ArtifactMissing, ConfigError
from stages.networks import load_tokenizer
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip, Index
from stages.storage.targets import Shape, TargetWriter
from stages.storage.workspace import Workspace
from stages.training import device
from stages.views import View, ViewConfig, cut, draw_view

INPUTS = ("shard", "tokenizer")
VERSION = 2
PRODUCTS = ("codes", "priority")
"""What this stage stores per token, for maskings and targets to ask for."""


class Config(BaseConfig):
    """Which views of every clip get targets."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"cache_bytes"})

    views: ViewConfig
    """Their shape and number."""
    batch_windows: int = 32
    """Windows per forward pass; bounds the memory."""
    cache_bytes: int = 0
    """Decoded video to keep in memory; a shard of it spares decoding every clip once per view."""


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """Codes and priorities of every clip and view in ``targets.zarr``, with the view table and the ledger.

    Raises:
        ConfigError: the views do not divide into the tokenizer's windows or patches.
        ArtifactBusy: another live run makes the same targets.
    """
    make = functools.partial(_make, config, inputs, workspace)
    return artifact.produce("precompute", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, folder: Path) -> Work:
    by_shard = Index(inputs["shard"]).by_shard()
    if not by_shard:
        raise ArtifactMissing(f"{inputs['shard'].manifest_path}: holds no clip; shard some videos first")
    module = load_tokenizer(inputs["tokenizer"]).to(device())
    writer = _writer(config, module, by_shard, inputs, folder)
    units = [(ordinal, view) for ordinal in by_shard for view in range(config.views.num_views)]
    missing = [unit for unit in units if not writer.is_committed(*unit)]
    workspace.monitor.begin("precompute", total=len(units), done=len(units) - len(missing))
    frames = ClipFrames(inputs["shard"], config.cache_bytes)
    for ordinal, view in missing:
        rows, values = _tokenized(config, module, frames, list(by_shard[ordinal]), view)
        first = ordinal * writer.shape.rows_per_shard
        placed = [{**row.row(), "row": first + slot} for slot, row in enumerate(rows)]
        writer.write_unit(ordinal, view, values=values, views=placed)
        workspace.monitor.advance()
    counts = {"clips": sum(map(len, by_shard.values())), "views": config.views.num_views}
    return Work(len(missing), len(units) - len(missing), counts)


def _writer(
    config: Config,
    module: AdaptiveTokenizer,
    by_shard: Mapping[int, Sequence[Clip]],
    inputs: Mapping[str, Artifact],
    folder: Path,
) -> TargetWriter:
    shape = Shape(
        num_shards=max(by_shard) + 1,
        rows_per_shard=max(map(len, by_shard.values())),
        num_views=config.views.num_views,
        grid=_grid(config, module),
    )
    attributes = {
        "levels": list(module.config.levels),
        "patching": module.config.patching.model_dump(),
        "views": config.views.model_dump(),
        "tokenizer_digest": inputs["tokenizer"].digest,
        "snapshot_digest": inputs["shard"].digest,
    }
    return TargetWriter(folder, shape, attributes)


def _grid(config: Config, module: AdaptiveTokenizer) -> Grid:
    views, window = config.views, module.config.window_frames
    if views.num_frames % window:
        raise ConfigError(
            f"precompute.views.num_frames={views.num_frames} is no multiple of the tokenizer's window of {window} frames"
        )
    try:
        return module.config.patching.grid(views.num_frames, views.size_px)
    except ValueError as error:
        raise ConfigError(f"precompute.views does not fit tokenizer.model.patching: {error}") from error


def _tokenized(
    config: Config, module: AdaptiveTokenizer, frames: ClipFrames, shard: Sequence[Clip], number: int
) -> tuple[list[View], dict[str, npt.NDArray[Any]]]:
    """The view table rows and ``[num_clips, t, h, w]`` values of one unit, clip after clip."""
    rows = [draw_view(clip, number, config.views) for clip in shard]
    found = [
        tokenize_view(module, cut(frames, clip, row, config.views.num_frames), config.batch_windows)
        for clip, row in zip(shard, rows, strict=True)
    ]
    codes, priority = zip(*found, strict=True)
    return rows, {"codes": np.stack(codes), "priority": np.stack(priority)}


@torch.no_grad()
def tokenize_view(
    module: AdaptiveTokenizer, pixels: npt.NDArray[np.uint8], batch_windows: int
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float16]]:
    """Codes and priorities ``[t h w]`` of one view ``uint8 [T H W C]``, ``batch_windows`` windows at a time."""
    windows = torch.from_numpy(rearrange(pixels, "(n T) H W C -> n C T H W", T=module.config.window_frames).copy())
    parts = [module.tokenize(part.to(device()).float() / 255) for part in torch.split(windows, batch_windows)]
    codes = torch.cat([codes for codes, _ in parts]).flatten(0, 1)
    priority = torch.cat([priority for _, priority in parts]).flatten(0, 1)
    return codes.cpu().numpy().astype(np.uint32), priority.float().cpu().numpy().astype(np.float16)
