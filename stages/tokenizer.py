"""Stage 2: train the adaptive tokenizer on short windows, so that it can say which tokens matter and what they are.

A frozen tokenizer, given as a file of weights, takes the same way without the training: it is measured and published.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from einops import rearrange
from pydantic import Field, model_validator
from torch import Tensor

from models.config import Config as BaseConfig
from models.extension import extension
from models.grid import Grid
from models.tokenizers import Tokenizer, TokenizerConfig, adaptive
from models.tokenizers.adaptive import AdaptiveTokenizer
from stages import quality
from stages.batches import ClipFrames, Sample, Stream, drawn_clips, held_out_clips, training_clips
from stages.device import device
from stages.draws import below, generator
from stages.errors import ConfigError
from stages.optimization import Optimization
from stages.player import Player
from stages.rebuilding import DISCRIMINATOR, TOKENIZER, Adversarial, Objective, Opponent, Perceptual, perceptual_network
from stages.storage import artifact, checkpoints
from stages.storage.artifact import Artifact, Outcome, Work
from stages.storage.index import Clip, Index
from stages.storage.publish import canonical_json, publish_bytes
from stages.storage.workspace import Workspace
from stages.training import SAMPLE, Course, Training, on_stream, train
from stages.views import View, cut
from stages.weights import WeightsFile

INPUTS = ("shard",)
VERSION = 4

_HEADLINES = ("psnr_all_tokens_db", "psnr_kept_tokens_db", "psnr_topk_gain_db", "ssim_all_tokens", "code_entropy_bits")
"""What a run says of a tokenizer; everything is in its ``metrics.json``."""
_SPAN_WINDOWS = 2
"""Windows in a row on which quality is measured, where a clip is long enough: a seam has one on either side."""


class Config(BaseConfig):
    """What to train, on what, and for how long."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"on_new_data", "num_workers", "cache_bytes"})

    model: extension("models.tokenizers", TokenizerConfig)
    """The network."""
    weights: WeightsFile | None = None
    """Weights of a tokenizer that is trained already: nothing is trained then."""
    on_new_data: Literal["retrain", "keep"] = "retrain"
    """What a run does when clips were added since this recipe trained its tokenizer. ``keep``: it takes the weights of the
    newest earlier snapshot as ``weights``, so that targets that are there stay valid and only new shards get new ones."""
    size_px: int = Field(gt=0)
    """Height and width of the training windows, cropped at random."""
    optimization: Optimization
    """Steps, rates, batch; ``batch_clips`` counts windows."""
    adversarial: Adversarial | None = Adversarial()
    """The opponent; ``None``: none."""
    perceptual: Perceptual = Perceptual()
    """The network whose features are compared; off without weights."""
    health: quality.Health = quality.Health()
    """What the tokenizer must reach to be published."""
    exclude: dict[str, str] = Field(default_factory=dict)
    """Clips with one of these labels are not trained on, such as ``{split: test}``; quality is measured on them."""
    num_preview_windows: int = Field(default=64, ge=2)
    """Windows over which the published quality is measured."""
    quality_every_steps: int | None = Field(default=None, gt=0)
    """Steps between measurements of quality on the way, which join the curves; ``None``: at the end alone."""
    seed: int = 0
    """Seed of initial weights, order, crops, windows and chance in the selection."""
    num_workers: int = 0
    """Processes that decode; 0 decodes in the training process."""
    cache_bytes: int = 0
    """Decoded video to keep in memory, per process."""

    @model_validator(mode="after")
    def _tokens_fill_the_window(self) -> Self:
        side = self.model.patching.patch_px
        if self.size_px % side:
            raise ValueError(f"size_px {self.size_px} is no multiple of model.patching.patch_px {side}")
        if isinstance(self.model, adaptive.Config):
            self.model.num_kept(self.window_tokens)
        return self

    @model_validator(mode="after")
    def _measurements_fall_on_reports(self) -> Self:
        every = self.optimization.log_every_steps
        if self.quality_every_steps and self.quality_every_steps % every:
            raise ValueError(
                f"quality_every_steps {self.quality_every_steps} must be a multiple of optimization.log_every_steps {every}"
            )
        return self

    @property
    def window_tokens(self) -> int:
        """Tokens of a training window."""
        grid: Grid = self.model.patching.grid(self.model.window_frames, self.size_px)
        return grid.num_tokens

    @property
    def kept(self) -> tuple[int, bool]:
        """Tokens that are kept of a window, and whether the whole first slot is among them; half, where nothing says so."""
        if isinstance(self.model, adaptive.Config):
            return self.model.num_kept(self.window_tokens), self.model.keep_first_slot
        return self.window_tokens // 2, True


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """A tokenizer: ``model.safetensors`` with its config, curves, quality and a picture of what it does.

    Raises:
        ConfigError: weights that were given are not those of the network, or not the pinned ones.
        TrainingDiverged: the loss stopped being finite.
        TokenizerCollapsed: it uses too few of its codes.
        ArtifactBusy: another live run trains the same tokenizer.
    """
    make = functools.partial(_make, config, inputs["shard"], workspace)
    return artifact.produce("tokenizer", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def _make(config: Config, snapshot: Artifact, workspace: Workspace, folder: Path) -> Work:
    from stages import preview  # with matplotlib, which most commands need not import

    module, resumed, total, course = _finished(config, snapshot, workspace, folder)
    measured, found = measure(config, module.eval(), snapshot)
    quality.check_health(measured, config.health)
    publish_bytes(folder / "config.json", canonical_json(config.model.model_dump(mode="json")))
    checkpoints.write_tensors(folder / "model.safetensors", module.state_dict())
    publish_bytes(folder / "metrics.json", canonical_json({"quality": measured, **course._asdict()}))
    publish_bytes(folder / "preview.png", preview.tokenizer_preview(found))
    workspace.monitor.log(total, {f"final_{key}": value for key, value in measured.items()})
    counts = {"parameters": sum(value.numel() for value in module.parameters())}
    return Work(total - resumed, resumed, counts, metrics={name: measured[name] for name in _HEADLINES})


def _finished(config: Config, snapshot: Artifact, workspace: Workspace, folder: Path) -> tuple[Tokenizer, int, int, Course]:
    """The tokenizer, trained or as it was given, with steps done before, steps in all and the course of the training."""
    module = _untrained(config)
    if config.weights or not isinstance(module, AdaptiveTokenizer):
        return _given(config, module), 0, 0, Course([], "")
    training = _training(config, module, snapshot)
    resumed = checkpoints.newest_step(folder)
    course = train(training, folder=folder, monitor=workspace.monitor)
    trained: Any = training.players[TOKENIZER].trained
    return trained, resumed, training.total_steps, course


def _untrained(config: Config) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        module: Tokenizer = config.model.build()
        return module.to(device())


def _given(config: Config, module: Tokenizer) -> Tokenizer:
    if config.weights:
        try:
            module.load_state_dict(config.weights.read())
        except RuntimeError as error:
            raise ConfigError(f"{config.weights.path}: not the weights of tokenizer.model: {error}") from error
    return module


def _stream(config: Config, snapshot: Artifact) -> Stream:
    frames = ClipFrames(snapshot, config.cache_bytes)
    return Stream(training_clips(snapshot, config.exclude), config.seed, functools.partial(_sample, config, frames))


def _sample(config: Config, frames: ClipFrames, clip: Clip, epoch: int) -> Sample:
    """One window of a clip, ``uint8 [C T H W]``, at a time and a place drawn for (seed, clip, epoch)."""
    source = generator(config.seed, "window", clip.clip_id, epoch)
    window = span(config, frames, clip, num_frames=config.model.window_frames, source=source)
    return {SAMPLE: f"{clip.clip_id} {epoch}", "window": window}


def span(config: Config, frames: ClipFrames, clip: Clip, *, num_frames: int, source: torch.Generator) -> Tensor:
    """Frames in a row of a clip, ``uint8 [C T H W]``, at a time, a place and a direction drawn from ``source``."""
    spare = [clip.num_frames - num_frames, clip.height_px - config.size_px, clip.width_px - config.size_px]
    if min(spare[1:]) < 0:
        raise ConfigError(
            f"clip {clip.clip_id} is {clip.width_px}x{clip.height_px} px, smaller than tokenizer.size_px={config.size_px}; "
            "make shard.clip.size_px at least as large"
        )
    start, y, x = (below(max(0, bound) + 1, source) for bound in spare)
    flip = bool(below(2, source))
    view = View(clip.clip_id, 0, start, y, x, config.size_px, flip, num_real_frames=num_frames)
    return torch.from_numpy(rearrange(cut(frames, clip, view, num_frames), "T H W C -> C T H W").copy())


def _training(config: Config, module: AdaptiveTokenizer, snapshot: Artifact) -> Training:
    players = {TOKENIZER: Player(module, config.optimization)}
    opponent = None
    if config.adversarial:
        opponent = _opponent(config, config.adversarial)
        rate = config.adversarial.learning_rate or config.optimization.learning_rate
        settings = config.optimization.model_copy(update={"learning_rate": rate, "ema_decay": None})
        players[DISCRIMINATOR] = Player(opponent, settings)
    perceptual = perceptual_network(config.perceptual)
    if perceptual:
        perceptual[0].to(device())
    losses = Objective(module, seed=config.seed, opponent=opponent, adversarial=config.adversarial, perceptual=perceptual)
    return on_stream(
        _stream(config, snapshot),
        players,
        losses,
        optimization=config.optimization,
        num_workers=config.num_workers,
        label="tokenizer",
        judge=functools.partial(_judge, config, players[TOKENIZER], snapshot),
        judge_every_steps=config.quality_every_steps,
        pictures=functools.partial(_pictures, config, players[TOKENIZER], snapshot),
    )


def _opponent(config: Config, adversarial: Adversarial) -> Opponent:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        return Opponent(adversarial.discriminator).to(device())


def _judge(config: Config, player: Player, snapshot: Artifact) -> dict[str, float]:
    """Quality of the tokenizer on its way."""
    module: Any = player.trained
    measured = measure(config, module.eval(), snapshot)[0]
    module.train()
    return measured


def _pictures(config: Config, player: Player, snapshot: Artifact) -> dict[str, bytes]:
    """What the tokenizer on its way makes of the first of the windows that quality is measured on."""
    from stages import preview

    module: Any = player.trained
    few = config.model_copy(update={"num_preview_windows": min(preview.WINDOWS_SHOWN, config.num_preview_windows)})
    found = measure(few, module.eval(), snapshot)[1]
    module.train()
    return {"tokenizer": preview.tokenizer_preview(found)}


def measure(config: Config, module: Tokenizer, snapshot: Artifact) -> tuple[dict[str, float], quality.Rebuilt]:
    """Every measure of quality on clips that were not trained on (on those that were, if all were), and what was measured."""
    held_out, spans = _held_spans(config, snapshot)
    frames = config.model.window_frames
    windows = torch.cat([rearrange(span, "C (n T) H W -> n C T H W", T=frames) for span in spans])
    num_kept, keep_first_slot = config.kept
    found = quality.rebuild(module, windows, num_kept=num_kept, keep_first_slot=keep_first_slot, seed=config.seed)
    measured = quality.measures(found, config.model.quantizer) | {"measured_on_held_out_clips": float(held_out)}
    parts = torch.split(found.complete, [part.shape[1] // frames for part in spans])
    rebuilt = [rearrange(part, "n C T H W -> C (n T) H W") for part in parts]
    tubelet_frames = config.model.patching.tubelet_frames
    seams = quality.seam_ratio(spans, rebuilt, window_frames=frames, tubelet_frames=tubelet_frames)
    return measured | ({} if seams is None else {"seam_ratio": seams}), found


def _held_spans(config: Config, snapshot: Artifact) -> tuple[bool, list[Tensor]]:
    """Spans of one or two windows ``float [3 n*T H W]``, of clips that were not trained on, if there are any."""
    most, source = config.num_preview_windows, functools.partial(generator, config.seed, "held spans")
    held_out = held_out_clips(snapshot, config.exclude, most, source())
    clips = held_out or drawn_clips(Index(snapshot), most, source())
    frames, spans, missing, draw = ClipFrames(snapshot), [], config.num_preview_windows, 0
    while missing > 0:
        clip = clips[draw % len(clips)]
        windows = max(1, min(_SPAN_WINDOWS, missing, clip.num_frames // config.model.window_frames))
        place = generator(config.seed, "held span", clip.clip_id, draw // len(clips))
        frames_seen = span(config, frames, clip, num_frames=windows * config.model.window_frames, source=place)
        spans.append(frames_seen.to(device()).float() / 255)
        missing, draw = missing - windows, draw + 1
    return bool(held_out), spans
