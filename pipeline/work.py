"""How many units a stage would do, and how many bytes it needs: counted from the snapshot and the recipe, writing nothing.

A unit is what a stage reports as done or reused: a shard of clips, an optimizer step, a view of a shard, a form of an export.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from models import cost
from pipeline.plan import STAGES, Action, Step
from pipeline.recipe import Recipe
from stages import estimate, export, precompute
from stages.multi_view import MultiViewConfig
from stages.preflight import free
from stages.storage import checkpoints, features
from stages.storage.artifact import Artifact
from stages.storage.features import FeatureUnit
from stages.storage.index import Index
from stages.storage.targets.layout import CODES, PRIORITY, ArraySpec
from stages.storage.workspace import Workspace

_FLOAT_BYTES = 4
_UNIT_BYTES = 16_000
"""What the tables and the metadata of one unit of targets take; 11 kB were measured with six clips."""
_PAGE_BYTES = 20_000_000
"""What the page of an evaluation takes with its pictures and films; our choice, 7 MB were measured with one clip shown."""


class Extent(NamedTuple):
    """How much there is to work on, as far as it is known before it is there."""

    snapshot: Artifact | None
    """The clips that are there already."""
    new_shards: int | None
    """Shards that will be added to them; ``None``: unknown."""

    @property
    def shards(self) -> int | None:
        """Shards with clips, in the end. A new one whose sources all go to quarantine is counted although it has none."""
        if self.new_shards is None:
            return None
        return self.new_shards + (len(Index(self.snapshot).ordinals()) if self.snapshot else 0)

    @property
    def is_final(self) -> bool:
        """Whether what is there is all that there will be."""
        return self.snapshot is not None and self.new_shards == 0


class Amount(NamedTuple):
    """The work of one stage."""

    units: int | None
    """To be done; ``None``: not known yet."""
    reused: int = 0
    """Done before."""


def amount(
    recipe: Recipe,
    stage: str,
    extent: Extent,
    *,
    inputs: Mapping[str, Artifact],
    workspace: Workspace,
    fingerprint: str | None = None,
) -> Amount:
    """The work of a stage after the first, if it runs.

    Args:
        recipe: as the stage runs it.
        stage: its name.
        extent: the clips.
        inputs: those of its inputs that are there, or that will be remade with the same tokenizer.
        workspace: where it lies.
        fingerprint: of what it makes; ``None`` while an input is missing or will be another one: nothing of it is done then.
    """
    if stage == "precompute":
        return _amount_of_targets(recipe, extent, inputs, workspace)
    if stage in ("tokenizer", "pretrain"):
        total = _num_steps(recipe, stage, extent)
    elif stage == "evaluate":
        total = _num_evaluated(recipe, extent)
    else:
        total = len(recipe.export.backends)
    if total is None or fingerprint is None:
        return Amount(total)
    done = min(_num_done(recipe, stage, workspace.artifact_folder(stage, fingerprint), extent), total)
    return Amount(total - done, done)


def _amount_of_targets(recipe: Recipe, extent: Extent, inputs: Mapping[str, Artifact], workspace: Workspace) -> Amount:
    """Views of shards; those that the same tokenizer made before are adopted."""
    num_views = recipe.precompute.views.num_views
    if not set(STAGES["precompute"].INPUTS) <= set(inputs):
        return Amount(None if extent.shards is None else extent.shards * num_views)
    missing, total = precompute.remaining(recipe.precompute, inputs, workspace)
    if extent.new_shards is None:
        return Amount(None, total - missing)
    return Amount(missing + extent.new_shards * num_views, total - missing)


def _num_steps(recipe: Recipe, stage: str, extent: Extent) -> int | None:
    if stage == "tokenizer" and (recipe.tokenizer.weights or recipe.tokenizer.model.name != "adaptive"):
        return 0  # it is given, and not trained
    config = recipe.tokenizer if stage == "tokenizer" else recipe.pretrain
    repeats = 1 if stage == "tokenizer" else recipe.pretrain.masks_per_clip
    if config.optimization.num_steps is not None:
        return config.optimization.num_steps
    if not extent.is_final or extent.snapshot is None:
        return None
    return config.optimization.total_steps(repeats * len(Index(extent.snapshot).without(config.exclude)))


def _num_evaluated(recipe: Recipe, extent: Extent) -> int | None:
    """Views of shards whose features are extracted."""
    config = recipe.evaluate
    if config.views != MultiViewConfig():
        return None  # how many views a clip has shows in its pixels
    if extent.snapshot is None or not extent.is_final:
        return extent.shards
    return len(Index(extent.snapshot).where(config.where).having(config.columns).ordinals())


def _num_done(recipe: Recipe, stage: str, folder: Path, extent: Extent) -> int:
    """Units that a run which was stopped left in an artifact's folder."""
    if stage in ("tokenizer", "pretrain"):
        return checkpoints.whole_step(folder)
    if stage == "export":
        return sum(export.finished(folder, backend.name) is not None for backend in recipe.export.backends)
    ordinals = Index(extent.snapshot).ordinals() if extent.snapshot else []
    return sum(features.is_committed(folder, FeatureUnit(ordinal, 0)) for ordinal in ordinals)


def needed_bytes(recipe: Recipe, upcoming: Step, inputs: Mapping[str, Artifact], workspace: Workspace) -> int | None:
    """Bytes that a stage after the first still needs, now that its inputs are there; ``None``: not known, or nothing to do.

    Args:
        recipe: as the stage runs it.
        upcoming: what the plan says of it.
        inputs: what it reads.
        workspace: where it writes.
    """
    if upcoming.action is not Action.RUN or upcoming.fingerprint is None or upcoming.stage == "shard":
        return None
    extent = Extent(inputs.get("shard"), 0)
    all_units = None if extent.shards is None else extent.shards * recipe.precompute.views.num_views
    bound = size_bytes(recipe, upcoming.stage, extent, all_units if upcoming.stage == "precompute" else None)
    if bound is None or bound <= free(workspace.root):
        return bound  # what is done already need not be looked for
    todo = amount(recipe, upcoming.stage, extent, inputs=inputs, workspace=workspace, fingerprint=upcoming.fingerprint)
    folder = workspace.artifact_folder(upcoming.stage, upcoming.fingerprint)
    if upcoming.stage in ("precompute", "export"):
        return size_bytes(recipe, upcoming.stage, extent, todo.units)
    return max(0, bound - sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()))


def size_bytes(recipe: Recipe, stage: str, extent: Extent, todo: int | None) -> int | None:
    """Bytes that a stage after the first needs on the disk while it runs, at most; ``None``: not known.

    Counted: weights, checkpoints as many as are kept at a time, targets before they are compressed, features, a page.
    """
    if todo == 0:
        return 0
    parameters = cost.parameters(estimate.run_of(recipe.pretrain, recipe.precompute.views, _quantizer(recipe)).workload)
    encoder_bytes = _FLOAT_BYTES * parameters.encoder
    if stage == "tokenizer":
        return _tokenizer_bytes(recipe)
    if stage == "precompute":
        return _target_bytes(recipe, extent, todo)
    if stage == "pretrain":
        run = estimate.run_of(recipe.pretrain, recipe.precompute.views, _quantizer(recipe))
        weights = encoder_bytes + _FLOAT_BYTES * parameters.decoder
        return weights + (checkpoints.KEEP + 1) * estimate.checkpoint_bytes(run)
    if stage == "evaluate":
        return _feature_bytes(recipe, extent)
    return encoder_bytes * (todo or len(recipe.export.backends))


def _quantizer(recipe: Recipe) -> "estimate.QuantizerConfig":
    return recipe.tokenizer.model.quantizer


def _tokenizer_bytes(recipe: Recipe) -> int:
    config = recipe.tokenizer
    with torch.device("meta"):
        own = _num_parameters(config.model.build())
        opponent = _num_parameters(config.adversarial.discriminator.build()) if config.adversarial else 0
    sets = 4 if config.optimization.ema_decay else 3  # parameters, two moments, and the average
    checkpoint = _FLOAT_BYTES * (sets * own + 3 * opponent)
    return _FLOAT_BYTES * own + (checkpoints.KEEP + 1) * checkpoint


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(value.numel() for value in module.parameters())


def _target_bytes(recipe: Recipe, extent: Extent, todo: int | None) -> int | None:
    """Of units to be computed, of as many clips as the shards that are there have in the mean."""
    if extent.snapshot is None or todo is None:
        return None
    views = recipe.precompute.views
    num_tokens = recipe.tokenizer.model.patching.grid(views.num_frames, views.size_px).num_tokens
    products = [ArraySpec(one.name, one.dtype, one.num_channels) for one in recipe.precompute.products]
    arrays = [CODES, PRIORITY, *products]
    token_bytes: int = sum(np.dtype(array.dtype).itemsize * (array.num_channels or 1) for array in arrays)
    index = Index(extent.snapshot)
    clips_per_shard = len(index) / max(1, len(index.ordinals()))
    per_unit: float = clips_per_shard * num_tokens * token_bytes
    return round(todo * per_unit) + todo * _UNIT_BYTES


def _feature_bytes(recipe: Recipe, extent: Extent) -> int | None:
    """Of our own encoders alone; others say nothing of their width before they are loaded."""
    config = recipe.evaluate
    if extent.snapshot is None or not extent.is_final or config.others:
        return None
    cells = config.temporal_bins * config.spatial_cells**2
    width = recipe.pretrain.model.encoder.width
    num_clips = len(Index(extent.snapshot).where(config.where).having(config.columns))
    num_vectors = num_clips * config.views.temporal * config.views.spatial * (1 + len(config.seeds)) * cells
    return _FLOAT_BYTES * num_vectors * width + _PAGE_BYTES
