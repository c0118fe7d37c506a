"""Stage 4: masked autoencoding of long clips: the encoder sees a few tokens, the decoder predicts the few that matter."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor, nn

from models import cost, mae
from models.config import Config as BaseConfig
from models.extension import extension, load
from models.grid import Grid, Patching, patchify
from models.masking import MaskingConfig, token_scores
from models.quantizers import QuantizerConfig
from models.targets import Target, TargetConfig
from models.videomae_weights import encoder_from_videomae, from_videomae
from stages.autoencoding import Watched, held_out_measures, held_out_picture, losses
from stages.batches import ClipFrames, Sample, Stream, held_out_clips, training_clips
from stages.device import device
from stages.draws import below, generator
from stages.errors import ArtifactMissing, ConfigError
from stages.estimate import run_of
from stages.optimization import Optimization
from stages.pictures import score_name
from stages.player import Player
from stages.progress import Monitor, Silent
from stages.ranks import ALONE, Ranks, joined
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip
from stages.storage.publish import canonical_json, publish_bytes
from stages.storage.targets.chunks import ChunkReader, Place
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.together import together
from stages.training import SAMPLE, Course, Training, on_stream, train
from stages.views import ViewConfig, cut, per_token, real_tokens, stored_view
from stages.weights import WeightsFile

INPUTS = ("shard", "precompute")
VERSION = 4

_PLAYER = "autoencoder"


class Initial(BaseConfig):
    """Weights of an earlier pretraining."""

    form: Literal["lvmae", "videomae"] = "lvmae"
    """Whose names the tensors have: ours, or those of ``transformers.VideoMAEForPreTraining``."""
    encoder: WeightsFile
    """``encoder.safetensors`` of an earlier pretraining, or a whole checkpoint of the other form."""
    decoder: WeightsFile | None = None
    """``decoder.safetensors``; ``None``: the decoder begins anew, as it must for another target."""


class Config(BaseConfig):
    """What to pretrain, how to mask it, and for how long."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset(
        {"on_new_data", "num_ranks", "num_workers", "cache_bytes", "activation_checkpointing"}
    )

    model: mae.Config
    """Encoder and decoder."""
    initial: Initial | None = None
    """Weights to begin with, of clips of any length; ``None``: drawn from ``seed``."""
    on_new_data: Literal["restart", "continue"] = "restart"
    """What a run does when clips were added since this recipe pretrained last. ``restart``: it begins with ``initial`` again.
    ``continue``: encoder and decoder begin with the weights of the newest earlier snapshot, and the schedule begins anew."""
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
    masks_per_clip: int = Field(default=1, gt=0)
    """Samples in a row of every decoded clip, each with its own choice of tokens; ``batch_clips`` counts samples. Source:
    MAE-ST, arXiv 2205.09113, and VideoMAE V2, arXiv 2303.16727, take 4."""
    num_held_out_clips: int = Field(default=32, ge=0)
    """Clips among those excluded on which the loss is measured on the way; 0: none."""
    held_out_every_steps: int | None = Field(default=None, gt=0)
    """Steps between these measurements, a multiple of ``optimization.log_every_steps``; ``None``: never."""
    compile: bool = False
    """Whether every block is compiled; results differ in the last bits."""
    activation_checkpointing: Literal["none", "full"] = "none"
    """Whether blocks keep their input alone and compute the rest again in the backward pass: less memory, more time."""
    seed: int = 0
    """Seed of initial weights, order, views and token choice."""
    num_ranks: int = Field(default=1, gt=0)
    """Processes of this machine that train together, one per GPU; ``optimization.accumulation_steps`` is a multiple of it. A
    launcher such as ``torchrun`` starts them itself."""
    num_workers: int = 0
    """Processes per rank that decode; 0 decodes in the training process."""
    cache_bytes: int = 0
    """Decoded video to keep in memory, per process."""

    @model_validator(mode="after")
    def _measurements_fall_on_reports(self) -> Self:
        every = self.optimization.log_every_steps
        if self.held_out_every_steps and self.held_out_every_steps % every:
            raise ValueError(
                f"held_out_every_steps {self.held_out_every_steps} must be a multiple of optimization.log_every_steps {every}"
            )
        return self

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
    latest: dict[tuple[str, Place], Tensor] = dataclasses.field(default_factory=dict)
    """The patches of the view that was decoded last, for the next mask of the same."""


class Seen(NamedTuple):
    """How a clip is seen at one of its repeats."""

    place: Place
    """Where the targets of its view are."""
    repeat: int
    """Which mask of the same view, from 0."""


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """A pretrained encoder in ``encoder.safetensors``, the decoder beside it, and the curves.

    Raises:
        ConfigError: the model's patches are not the tokenizer's, or initial weights are not the model's.
        TrainingDiverged: step after step was refused.
        ArtifactBusy: another live run trains the same encoder.
    """
    with joined() as ranks:
        return _run(config, inputs, workspace) if ranks == ALONE else _run_as(ranks, config, inputs, workspace)


def _run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, ranks: Ranks = ALONE) -> Outcome:
    make = functools.partial(_make, config, inputs, workspace, ranks)
    return artifact.produce("pretrain", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def _run_as(ranks: Ranks, config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """The part of one of several processes that a launcher started; the first one writes, and all of them have the artifact."""
    name = artifact.fingerprint("pretrain", VERSION, config, inputs)
    is_made = ranks.gathered(artifact.find_whole(workspace, "pretrain", name) is not None)[0]
    if ranks.is_first:
        outcome = _run(config, inputs, workspace, ranks)
        ranks.wait()
        return outcome
    if not is_made:
        _pretrained(config, inputs, workspace.artifact_folder("pretrain", name), ranks, Silent())
    ranks.wait()
    made = artifact.find(workspace, "pretrain", name)
    if made is None:
        raise ArtifactMissing(
            f"{workspace.artifact_folder('pretrain', name)}: not to be seen here; all ranks need one file system"
        )
    return Outcome(made, units_done=0, units_reused=made.manifest.counts["units"], counts=made.manifest.counts)


def _make(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace, ranks: Ranks, folder: Path) -> Work:
    if config.num_ranks == 1 or ranks.size > 1:
        return _pretrained(config, inputs, folder, ranks, workspace.monitor)
    work = functools.partial(_pretrained, config, inputs, folder)
    done: Work = together(work, num_ranks=config.num_ranks, monitor=workspace.monitor)
    return done


def _pretrained(config: Config, inputs: Mapping[str, Artifact], folder: Path, ranks: Ranks, monitor: Monitor) -> Work:
    """One rank's part of the training; the first one publishes."""
    targets = TargetReader(inputs["precompute"])
    task = _task(config, inputs["shard"], targets)
    target = config.target.build(config.model.patching, task.quantizer)
    module = _untrained(task, target)
    resumed = checkpoints.newest_step(folder)
    clips = _held_out(task.config, inputs["shard"]) if ranks.is_first else []
    held_out = [sample(task, clip, 0, Seen(targets.place(clip, 0), 0)) for clip in clips]
    watched = _watched(task, clips[0], held_out[0], targets) if held_out else None
    task.latest.clear()  # it goes to the workers with the task
    training = _training(task, module, target, _stream(task, inputs["shard"], targets), held_out, watched, ranks)
    course = train(training, folder=folder, monitor=monitor)
    if ranks.is_first:
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
        module = mae.MaskedAutoencoder(task.config.model, task.grid, target.dim)
    if task.config.initial:
        _begin_with(task.config.initial, module)
    for blocks in (module.encoder.blocks, module.decoder):
        blocks.is_recomputed = task.config.activation_checkpointing == "full"
    return module.to(device())


def _begin_with(initial: Initial, module: mae.MaskedAutoencoder) -> None:
    """Take over the weights of an earlier pretraining."""
    encoder = initial.encoder.read()
    try:
        if initial.form == "videomae":
            encoder = encoder_from_videomae(encoder)
        module.encoder.load_state_dict(encoder)
        if initial.decoder:
            state = initial.decoder.read()
            state |= {f"encoder.{name}": value for name, value in module.encoder.state_dict().items()}
            module.load_state_dict(from_videomae(initial.decoder.read()) if initial.form == "videomae" else state)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"pretrain.initial: {initial.encoder.path}: not the weights of pretrain.model: {error}") from error


def _stream(task: Task, snapshot: Artifact, targets: TargetReader) -> Stream:
    """The samples; which view of a clip an epoch sees is drawn, and its place looked up, before a worker gets it."""
    config = task.config

    def seen(clip: Clip, epoch: int, repeat: int) -> Seen:
        view = below(task.views.num_views, generator(config.seed, "view", epoch, clip.clip_id))
        return Seen(targets.place(clip, view), repeat)

    clips = training_clips(snapshot, config.exclude)
    return Stream(clips, config.seed, functools.partial(sample, task), attach=seen, repeats=config.masks_per_clip)


def _training(
    task: Task,
    module: mae.MaskedAutoencoder,
    target: Target,
    stream: Stream,
    held_out: Sequence[Sample],
    watched: Watched | None,
    ranks: Ranks,
) -> Training:
    config, target = task.config, target.to(device())
    player, precision = Player(module, config.optimization), config.optimization.precision
    for block in [*module.encoder.blocks, *module.decoder] if config.compile else ():
        block.compile(fullgraph=True, dynamic=False)
    return on_stream(
        stream,
        {_PLAYER: player},
        lambda batch, moment: {_PLAYER: losses(module, target, batch)},
        optimization=config.optimization,
        num_workers=config.num_workers,
        label="pretrain",
        judge=(lambda: held_out_measures(player.trained, target, held_out, precision)) if held_out else None,
        judge_every_steps=config.held_out_every_steps,
        pictures=(lambda: {"held-out": held_out_picture(player.trained, target, watched, precision)}) if watched else None,
        clip_flops=cost.flops(run_of(config, task.views, task.quantizer).workload).training,
        ranks=ranks,
    )


def _held_out(config: Config, snapshot: Artifact) -> list[Clip]:
    """Clips that are not trained on, always the same."""
    count = config.num_held_out_clips if config.held_out_every_steps else 0
    return held_out_clips(snapshot, config.exclude, count, generator(config.seed, "held out")) if count else []


def _watched(task: Task, clip: Clip, one: Sample, targets: TargetReader) -> Watched:
    """One of these clips with all that there is to see of it."""
    place, rule = targets.place(clip, 0), task.config.decoder_masking
    view = stored_view(place)
    stored = task.targets.read(place, [score_name(rule)])
    scores = [token_scores(per_token(values)) for values in stored.values()]
    frames = cut(task.frames, clip, view, task.views.num_frames)
    return Watched(one, frames, view.num_real_frames, task.grid, rule, scores[0] if scores else None)


def sample(task: Task, clip: Clip, epoch: int, seen: Seen) -> Sample:
    """One clip as a training sees it in one epoch: the visible patches, both index sets, and what the target needs.

    Only what is needed is sent on: ``visible_patches uint8 [V patch_dim]``, ``predict_patches uint8 [P patch_dim]``,
    ``visible [V]``, ``predict [P]``, ``real bool [N]``, and at the predicted positions every product that the target reads.

    Args:
        task: what all samples are made with.
        clip: the clip.
        epoch: of the training.
        seen: the view that it is seen in, and which of its masks.
    """
    config, place, view = task.config, seen.place, stored_view(seen.place)
    products = {name: per_token(values) for name, values in task.targets.read(place, config.needs).items()}
    real = real_tokens(view, task.grid, config.model.patching.tubelet_frames)
    repeat = (seen.repeat,) if seen.repeat else ()
    draws = {role: generator(config.seed, role, epoch, clip.clip_id, *repeat) for role in ("visible", "predict")}
    visible = config.encoder_masking.select(task.grid, products=products, real=real, generator=draws["visible"])
    predict = config.decoder_masking.select_beside(
        task.grid, visible=visible, products=products, real=real, generator=draws["predict"]
    )
    patches = _patches(task, clip, place)
    return {
        SAMPLE: " ".join(map(str, (clip.clip_id, epoch, *repeat))),
        "visible": visible,
        "predict": predict,
        "real": real,
        "visible_patches": patches[visible],
        "predict_patches": patches[predict],
        **{f"product/{name}": products[name][predict] for name in config.target.needs},
    }


def _patches(task: Task, clip: Clip, place: Place) -> Tensor:
    """All patches of a view, ``uint8 [N patch_dim]``; kept for its other masks, if there are any."""
    key = (clip.clip_id, place)
    if key in task.latest:
        return task.latest[key]
    pixels = torch.from_numpy(cut(task.frames, clip, stored_view(place), task.views.num_frames))
    patches: Tensor = patchify(rearrange(pixels, "T H W C -> 1 C T H W"), task.config.model.patching)[0]
    task.latest.clear()
    if task.config.masks_per_clip > 1:
        task.latest[key] = patches
    return patches


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
    checkpoints.write_tensors(folder / "encoder.safetensors", encoder)
    checkpoints.write_tensors(folder / "decoder.safetensors", decoder)
    publish_bytes(folder / "metrics.json", canonical_json(course._asdict()))
