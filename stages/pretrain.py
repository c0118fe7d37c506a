"""Stage 4: masked autoencoding of long clips: the encoder sees a few tokens, the decoder predicts the few that matter."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from models import mae
from models.config import Config as BaseConfig
from models.extension import extension, load
from models.grid import Grid, Patching, patchify
from models.masking import MaskingConfig
from models.quantizers import QuantizerConfig
from models.targets import Target, TargetConfig
from stages.batches import ClipFrames, Sample, Stream, training_clips
from stages.device import device
from stages.draws import below, generator
from stages.errors import ConfigError
from stages.optimization import Optimization
from stages.player import Player
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip
from stages.storage.publish import canonical_json, publish_bytes
from stages.storage.targets.chunks import ChunkReader, Place
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.training import SAMPLE, Course, Losses, Moment, Training, on_stream, train
from stages.views import ViewConfig, cut, per_token, real_tokens, stored_view

INPUTS = ("shard", "precompute")
VERSION = 4

_PLAYER = "autoencoder"


class Config(BaseConfig):
    """What to pretrain, how to mask it, and for how long."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers", "cache_bytes"})

    model: mae.Config
    """Encoder and decoder."""
    encoder_masking: extension("models.masking", MaskingConfig)
    """Which tokens the encoder sees."""
    decoder_masking: extension("models.masking", MaskingConfig)
    """Which tokens the decoder predicts; those that the encoder sees as well do not count in the loss,
    and ``hidden_only`` keeps any rule away from them."""
    target: extension("models.targets", TargetConfig)
    """What is predicted of a token."""
    optimization: Optimization
    """Steps, rates, batch."""
    exclude: dict[str, str] = Field(default_factory=dict)
    """Clips with one of these labels are not trained on, such as ``{split: test}``."""
    seed: int = 0
    """Seed of initial weights, order, views and token choice."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    cache_bytes: int = 0
    """Decoded video to keep in memory, per process."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the precomputed products that the maskings and the target read."""
        return frozenset([*self.encoder_masking.needs, *self.decoder_masking.needs, *self.target.needs])


@dataclasses.dataclass(frozen=True)
class Task:
    """What every sample is made with: the config resolved against its inputs. It is sent to the workers.

    Args:
        config: the stage's.
        views: shape of the stored views.
        grid: their token grid.
        quantizer: the tokenizer's.
    """

    config: Config
    views: ViewConfig
    grid: Grid
    quantizer: QuantizerConfig
    frames: ClipFrames
    targets: ChunkReader


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """A pretrained encoder in ``encoder.safetensors``, the decoder beside it, and the curves.

    Raises:
        ConfigError: the model's patches are not the tokenizer's.
        TrainingDiverged: the loss stopped being finite.
        ArtifactBusy: another live run trains the same encoder.
    """
    make = functools.partial(_make, config, inputs, workspace)
    return artifact.produce("pretrain", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, folder: Path) -> Work:
    targets = TargetReader(inputs["precompute"])
    task = _task(config, inputs["shard"], targets)
    target = config.target.build(config.model.patching, task.quantizer)
    module = _untrained(task, target)
    resumed = checkpoints.newest_step(folder)
    training = _training(task, module, target, _stream(task, inputs["shard"], targets))
    course = train(training, folder=folder, monitor=workspace.monitor)
    _publish(task, training.players[_PLAYER].trained, target, course, folder)
    counts = {
        "tokens": task.grid.num_tokens,
        "visible_tokens": config.encoder_masking.count(task.grid),
        "predicted_tokens": config.decoder_masking.count(task.grid),
        "encoder_parameters": sum(value.numel() for value in module.encoder.parameters()),
    }
    return Work(training.total_steps - resumed, resumed, counts, metrics={"loss": course.history[-1]["loss"]})


def _task(config: Config, snapshot: Artifact, targets: TargetReader) -> Task:
    stored = targets.attributes
    there = [spec.name for spec in targets.extent.arrays]
    if not config.needs <= {*there}:
        raise ConfigError(
            f"pretrain needs {', '.join(sorted(config.needs - {*there}))} per token; these targets hold {', '.join(there)}: "
            "add what is missing to precompute.products"
        )
    if Patching.model_validate(stored["patching"]) != config.model.patching:
        raise ConfigError(
            f"pretrain.model.patching is {config.model.patching.model_dump()}, that of the targets {stored['patching']}; "
            "give tokenizer.model.patching and pretrain.model.patching the same values"
        )
    views = ViewConfig.model_validate(stored["views"])
    return Task(
        config=config,
        views=views,
        grid=config.model.patching.grid(views.num_frames, views.size_px),
        quantizer=load("models.quantizers", stored["quantizer"]),
        frames=ClipFrames(snapshot, config.cache_bytes),
        targets=targets.chunks,
    )


def _untrained(task: Task, target: Target) -> mae.MaskedAutoencoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.config.seed)
        return mae.MaskedAutoencoder(task.config.model, task.grid, target.dim).to(device())


def _stream(task: Task, snapshot: Artifact, targets: TargetReader) -> Stream:
    """The samples; which view of a clip an epoch sees is drawn, and its place looked up, before a worker gets it."""
    config = task.config

    def place(clip: Clip, epoch: int) -> Place:
        return targets.place(clip, below(task.views.num_views, generator(config.seed, "view", epoch, clip.clip_id)))

    return Stream(training_clips(snapshot, config.exclude), config.seed, functools.partial(sample, task), attach=place)


def _training(task: Task, module: mae.MaskedAutoencoder, target: Target, stream: Stream) -> Training:
    config = task.config
    losses = functools.partial(_losses, module, target.to(device()))
    players = {_PLAYER: Player(module, config.optimization)}
    return on_stream(
        stream, players, losses, optimization=config.optimization, num_workers=config.num_workers, label="pretrain"
    )


def sample(task: Task, clip: Clip, epoch: int, place: Place) -> Sample:
    """One clip as a training sees it in one epoch: the visible patches, both index sets, and what the target needs.

    Only what is needed is sent on: ``visible_patches uint8 [V patch_dim]``, ``predict_patches uint8 [P patch_dim]``,
    ``visible [V]``, ``predict [P]``, ``real bool [N]``, and at the predicted positions every product that the target reads.

    Args:
        task: what all samples are made with.
        clip: the clip.
        epoch: of the training.
        place: of the view that it is seen in.
    """
    config, view = task.config, stored_view(place)
    products = {name: per_token(values) for name, values in task.targets.read(place, config.needs).items()}
    real = real_tokens(view, task.grid, config.model.patching.tubelet_frames)
    draws = {role: generator(config.seed, role, epoch, clip.clip_id) for role in ("visible", "predict")}
    visible = config.encoder_masking.select(task.grid, products=products, real=real, generator=draws["visible"])
    predict = config.decoder_masking.select_beside(
        task.grid, visible=visible, products=products, real=real, generator=draws["predict"]
    )
    pixels = torch.from_numpy(cut(task.frames, clip, view, task.views.num_frames))
    patches = patchify(rearrange(pixels, "T H W C -> 1 C T H W"), config.model.patching)[0]
    return {
        SAMPLE: f"{clip.clip_id} {epoch}",
        "visible": visible,
        "predict": predict,
        "real": real,
        "visible_patches": patches[visible],
        "predict_patches": patches[predict],
        **{f"product/{name}": products[name][predict] for name in config.target.needs},
    }


def _losses(module: mae.MaskedAutoencoder, target: Target, batch: Mapping[str, Tensor], moment: Moment) -> Mapping[str, Losses]:
    visible, predict = batch["visible"], batch["predict"]
    products = {name.removeprefix("product/"): value for name, value in batch.items() if name.startswith("product/")}
    wanted = target(batch["predict_patches"].float() / 255, products)
    predicted = module(batch["visible_patches"].float() / 255, visible, predict)
    weight = mae.hidden_weight(visible, predict, batch["real"])
    constant = target.best_constant(wanted, weight).expand(*predict.shape, -1)
    loss = mae.masked_mean(target.error(predicted, wanted), weight)
    baseline = mae.masked_mean(target.error(constant, wanted), weight)
    share = loss.detach() / baseline.clamp_min(1e-12)
    return {_PLAYER: {"loss": loss, "loss_over_constant": share, "counted_share": weight.mean()}}


def _publish(task: Task, module: nn.Module, target: Target, course: Course, folder: Path) -> None:
    described = {
        "model": task.config.model.model_dump(mode="json"),
        "views": task.views.model_dump(mode="json"),
        "target_dim": target.dim,
    }
    state = module.state_dict()
    encoder = {key.removeprefix("encoder."): value for key, value in state.items() if key.startswith("encoder.")}
    decoder = {key: value for key, value in state.items() if not key.startswith("encoder.")}
    publish_bytes(folder / "config.json", canonical_json(described))
    publish_bytes(folder / "encoder.safetensors", checkpoints.encode(encoder))
    publish_bytes(folder / "decoder.safetensors", checkpoints.encode(decoder))
    publish_bytes(folder / "metrics.json", canonical_json(course._asdict()))
