"""Stage 3: run the frozen tokenizer over every clip and view once, and store codes, priorities and products for pretraining.

A shard's clips are decoded once for all views that are missing, by worker processes, while the network works on those before
and a thread publishes the units before them. What is published, and lost when a run is killed, is one view of one shard; what a
killed run has to do again is the shard that it was at.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from pydantic import Field, model_validator

from models.config import Config as BaseConfig
from models.extension import extension
from models.tokenizers import Tokenizer, WindowConfig
from stages.batches import ClipFrames
from stages.device import Precision, device, warn_of_imitation
from stages.errors import ArtifactMissing, ConfigError, TargetsInvalid
from stages.fan_out import tick
from stages.networks import load_tokenizer
from stages.products import ProductConfig
from stages.storage import artifact
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip, Index
from stages.storage.targets.adoption import adopted, donors, is_held
from stages.storage.targets.layout import CODES, PRIORITY, ArraySpec, Extent, Unit, unit_digest
from stages.storage.targets.writing import TargetWriter
from stages.storage.workspace import Workspace
from stages.tokenizing import Look, Network, Shard, ShardValues, tokenized
from stages.views import ViewConfig, draw_view

STAGE = "precompute"
INPUTS = ("shard", "tokenizer")
VERSION = 3
PRODUCTS = (CODES.name, PRIORITY.name)
"""What the tokenizer says of every token, whatever the config."""

_UNPUBLISHED_SHARDS = 2
"""Shards whose values may wait in memory for the thread that publishes them."""


class Config(BaseConfig):
    """Which views of every clip get targets, and how they are made."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"verify_share", "num_shards_at_once", "num_workers", "cache_bytes"})

    views: ViewConfig
    """Their shape and number."""
    windows: WindowConfig = WindowConfig()
    """How a view is cut into the tokenizer's windows. As many whole clips as have ``batch_windows`` go through it together."""
    precision: Precision = "fp32"
    """Precision of the tokenizer's matrix products and convolutions."""
    products: tuple[extension("stages.products", ProductConfig), ...] = ()
    """What else to store of every token, beside codes and priorities."""
    verify_share: float = Field(default=0.01, ge=0, le=1)
    """Share of the clips that are decoded and computed a second time, and must come out the same; of every run at least one
    group, unless it is 0. Our choice."""
    num_shards_at_once: int = Field(default=1, gt=0)
    """Clip shards that are computed at a time, each by a process with a network of its own, here or where the task runner of a
    flow has its workers; 1 computes one after the other in the process of the stage."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that decode and compute products, each up to two clips ahead; 0 does so in the process of the tokenizer and
    between its passes, which is best where the tokenizer itself fills all cores. All missing views of a clip are in memory
    then: 77 MB for four of 128 frames at 224 px."""
    cache_bytes: int = Field(default=200_000_000, ge=0)
    """Decoded video to keep in memory, per process; room for one clip spares decoding it once per view. A clip of 128 frames
    at 256 x 341 px has 34 MB."""

    @property
    def product_names(self) -> frozenset[str]:
        """Everything that is stored per token, for maskings and targets to ask for."""
        return frozenset([*PRODUCTS, *(product.name for product in self.products)])

    @model_validator(mode="after")
    def _names_tell_apart(self) -> Self:
        names = [*PRODUCTS, *(product.name for product in self.products)]
        if len(set(names)) < len(names):
            raise ValueError(f"products name something twice, or what is stored anyway: {', '.join(names)}")
        return self

    @model_validator(mode="after")
    def _windows_fit_the_views(self) -> Self:
        stride = self.windows.stride_frames
        if stride is not None and stride > self.views.num_frames:
            raise ValueError(f"windows.stride_frames {stride} is more than views.num_frames {self.views.num_frames}")
        return self


Units = Mapping[tuple[int, int], Unit]
"""By clip shard and view."""


class Piece(NamedTuple):
    """All that computing one clip shard takes: plain values, so that they can travel."""

    config: Config
    inputs: Mapping[str, Artifact]
    folder: Path
    """Of the artifact."""
    shard: Shard
    units: Units
    """Those of the shard."""

    @property
    def ordinal(self) -> int:
        """The shard's number."""
        return self.shard.ordinal


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """Codes, priorities and products of every clip and view in ``targets.zarr``, with the view table and the ledger.

    Units that an earlier artifact holds, such as one of the snapshot before, are adopted and not computed.

    Raises:
        ConfigError: the views do not divide into the tokenizer's windows or patches.
        TargetsInvalid: some units came out impossible, or differently the second time; all others are stored.
        ArtifactBusy: another live run makes the same targets.
    """
    make = functools.partial(_make, config, inputs, workspace)
    return artifact.produce(STAGE, version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def remaining(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> tuple[int, int]:
    """How many units a run would compute, and how many there are; what other artifacts hold is adopted. Writes nothing."""
    units = _units(config, inputs, Index(inputs["shard"]).by_shard())
    folder = workspace.artifact_folder(STAGE, artifact.fingerprint(STAGE, VERSION, config, inputs))
    places = [folder, *(donor.folder for donor in donors(workspace, STAGE, folder))]
    lacking = [unit for unit in units.values() if not any(is_held(place, unit) for place in places)]
    return len(lacking), len(units)


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, folder: Path) -> Work:
    by_shard = Index(inputs["shard"]).by_shard()
    if not by_shard:
        raise ArtifactMissing(f"{inputs['shard'].manifest_path}: holds no clip; shard some videos first")
    network = _network(config, load_tokenizer(inputs["tokenizer"]))
    store = TargetWriter(folder, _extent(config, network), _attributes(config, network.tokenizer, inputs))
    units = _units(config, inputs, by_shard)
    missing = _missing(store, units, workspace, folder)
    shards = [Shard(ordinal, by_shard[ordinal], views) for ordinal, views in _views_by_shard(missing).items()]
    if config.num_shards_at_once > 1 and shards:
        invalid = _fill_at_once(config, shards, units, inputs=inputs, folder=folder, workspace=workspace)
    else:
        ticked = workspace.monitor.advance
        invalid = _fill(config, shards, units, store=store, network=network, snapshot=inputs["shard"], ticked=ticked)
    if invalid:
        raise TargetsInvalid(f"{len(invalid)} of {len(units)} units are not stored, the others are: {invalid[0]}")
    counts = {"clips": sum(map(len, by_shard.values())), "views": config.views.num_views}
    return Work(len(missing), len(units) - len(missing), counts)


def _network(config: Config, tokenizer: Tokenizer) -> Network:
    try:
        tokenizer.window_starts(config.views.num_frames, config.windows)
    except ValueError as error:
        raise ConfigError(
            f"precompute.views.num_frames={config.views.num_frames} and precompute.windows do not fit the tokenizer: {error}"
        ) from error
    warn_of_imitation(device(), config.precision, "precompute.precision")
    return Network(tokenizer.to(device()), config.windows, config.views.num_frames, config.precision, device())


def _extent(config: Config, network: Network) -> Extent:
    tokenizer, views = network.tokenizer, config.views
    try:
        grid = tokenizer.config.patching.grid(views.num_frames, views.size_px)
    except ValueError as error:
        raise ConfigError(f"precompute.views does not fit tokenizer.model.patching: {error}") from error
    products = (ArraySpec(product.name, product.dtype, product.num_channels) for product in config.products)
    return Extent(views.num_views, grid, tokenizer.quantizer.codebook_size, (CODES, PRIORITY, *products))


def _attributes(config: Config, tokenizer: Tokenizer, inputs: Mapping[str, Artifact]) -> dict[str, Any]:
    """What a reader must know beside the extent."""
    return {
        "quantizer": tokenizer.config.quantizer.model_dump(mode="json"),
        "patching": tokenizer.config.patching.model_dump(mode="json"),
        "views": config.views.model_dump(mode="json"),
        "windows": config.windows.model_dump(mode="json"),
        "products": [product.model_dump(mode="json") for product in config.products],
        "tokenizer_digest": inputs["tokenizer"].digest,
        "snapshot_digest": inputs["shard"].digest,
    }


def _units(config: Config, inputs: Mapping[str, Artifact], by_shard: Mapping[int, Sequence[Clip]]) -> Units:
    """Every unit, with what determines its bytes; how many views there are beside its own does not."""
    # What it is and what it weighs: how well it did, and on which clips, is in its digest and changes no code.
    tokenizer = {name: inputs["tokenizer"].manifest.files[name].sha256 for name in ("config.json", "model.safetensors")}
    made_by: dict[str, Any] = {"version": VERSION, "config": artifact.byte_config(config), "tokenizer": tokenizer}
    del made_by["config"]["views"]["num_views"]
    return {
        (ordinal, view): Unit(ordinal, view, len(clips), unit_digest(inputs["shard"], ordinal, view, made_by))
        for ordinal, clips in by_shard.items()
        for view in range(config.views.num_views)
    }


def _missing(store: TargetWriter, units: Units, workspace: Workspace, folder: Path) -> list[Unit]:
    """The units to compute: neither made by a killed run before nor by another artifact."""
    lacking = [unit for unit in units.values() if not store.holds(unit)]
    total, missing = (sum(unit.num_clips for unit in some) for some in (units.values(), lacking))
    workspace.monitor.begin(STAGE, total=total, done=total - missing)
    taken = set()
    for unit in adopted(store, lacking, donors(workspace, STAGE, folder)):
        taken.add(unit)
        workspace.monitor.advance(unit.num_clips)
    return [unit for unit in lacking if unit not in taken]


def _views_by_shard(units: Sequence[Unit]) -> dict[int, tuple[int, ...]]:
    groups = itertools.groupby(units, key=lambda unit: unit.ordinal)
    return {ordinal: tuple(unit.view for unit in group) for ordinal, group in groups}


def _fill_at_once(
    config: Config,
    shards: Sequence[Shard],
    units: Units,
    *,
    inputs: Mapping[str, Artifact],
    folder: Path,
    workspace: Workspace,
) -> list[TargetsInvalid]:
    """The same for several shards at a time, each a piece of work of its own."""
    pieces = (
        Piece(config, inputs, folder, shard, {(shard.ordinal, view): units[shard.ordinal, view] for view in shard.views})
        for shard in shards
    )
    done = workspace.fan_out(
        make_shard,
        pieces,
        num_workers=min(config.num_shards_at_once, len(shards)),
        ticked=workspace.monitor.advance,
        total=len(shards),
    )
    return [error for errors in done for error in errors]


def make_shard(piece: Piece) -> list[TargetsInvalid]:
    """Compute and publish those units of one clip shard that are not there; what is wrong with those that could not be."""
    config, inputs = piece.config, piece.inputs
    network = _network(config, load_tokenizer(inputs["tokenizer"]))
    store = TargetWriter(piece.folder, _extent(config, network), _attributes(config, network.tokenizer, inputs))
    missing = tuple(view for _, view in piece.units if not store.holds(piece.units[piece.ordinal, view]))
    if not missing:
        return []
    shard = piece.shard._replace(views=missing)
    return _fill(config, [shard], piece.units, store=store, network=network, snapshot=inputs["shard"], ticked=_ticked)


def _ticked(count: int) -> None:
    for _ in range(count):
        tick()


def _fill(
    config: Config,
    shards: Sequence[Shard],
    units: Units,
    *,
    store: TargetWriter,
    network: Network,
    snapshot: Artifact,
    ticked: Callable[[int], None],
) -> list[TargetsInvalid]:
    """Compute and publish the missing units; what is wrong with those that could not be."""
    frames = ClipFrames(snapshot, config.cache_bytes if config.views.num_views > 1 else 0)
    look = Look(snapshot, frames, config.views, network.tokenizer.config.patching, config.products)
    done = tokenized(
        shards,
        look=look,
        network=network,
        share=config.verify_share,
        num_workers=config.num_workers,
        ticked=ticked,
    )
    publish = functools.partial(_publish, config, units, store)
    return [error for errors in _behind(publish, done) for error in errors]


def _publish(config: Config, units: Units, store: TargetWriter, found: ShardValues) -> list[TargetsInvalid]:
    """Publish the views of one shard; what is wrong with those that are not."""
    shard, errors = found.shard, []
    for view, values in found.values.items():
        rows = [draw_view(clip, view, config.views).row() for clip in shard.clips]
        try:
            store.write_unit(units[shard.ordinal, view], values=values, views=rows, again=found.again[view])
        except TargetsInvalid as error:
            errors.append(error)
    return errors


def _behind(
    publish: Callable[[ShardValues], list[TargetsInvalid]], done: Iterable[ShardValues]
) -> Iterator[list[TargetsInvalid]]:
    """The outcome of publishing one shard after the other, in a thread beside the one that computes them."""
    waiting: collections.deque[Future[list[TargetsInvalid]]] = collections.deque()
    with ThreadPoolExecutor(1, thread_name_prefix="publish") as thread:
        for found in done:
            waiting.append(thread.submit(publish, found))
            if len(waiting) > _UNPUBLISHED_SHARDS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
