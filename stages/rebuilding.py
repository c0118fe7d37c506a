"""What a tokenizer is trained towards: pixels, the judgement of an opponent that learns, and features of a fixed network.

Source: the losses and weights of MAGVIT, arXiv 2212.05199, and its published configuration, which arXiv 2411.13683 takes over.
"""

import logging
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.adversarial import LeCam, discriminator_loss, generator_loss, r1_penalty
from models.config import Config
from models.discriminator import Config as DiscriminatorConfig
from models.perceptual import PerceptualDistance
from models.tokenizers.adaptive import AdaptiveTokenizer
from stages.draws import generator
from stages.errors import ConfigError
from stages.training import Losses, Moment
from stages.weights import WeightsFile

TOKENIZER, DISCRIMINATOR = "tokenizer", "discriminator"
"""The players of the training."""

_log = logging.getLogger(__name__)


class Adversarial(Config):
    """The opponent: a network that learns to tell rebuilt windows from true ones."""

    weight: float = Field(default=0.1, gt=0)
    """Weight of what the opponent thinks. Source: MAGVIT."""
    start_step: int = Field(default=0, ge=0)
    """Steps of the tokenizer alone before the opponent joins. Our choice; MAGVIT has none."""
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The opponent's network."""
    learning_rate: float | None = Field(default=None, gt=0)
    """The opponent's peak rate; ``None``: the tokenizer's, as in MAGVIT."""
    r1_weight: float = Field(default=10.0, ge=0)
    """Weight of the gradient penalty on true windows. Source: MAGVIT; arXiv 1801.04406 for the form."""
    r1_every_steps: int = Field(default=1, gt=0)
    """The penalty is taken once in so many steps, and counts that many times. StyleGAN2, arXiv 1912.04958, takes 16."""
    lecam_weight: float = Field(default=0.0, ge=0)
    """Weight of the LeCam regularisation, arXiv 2104.03310; off in MAGVIT's published configuration."""


class Perceptual(Config):
    """The fixed network whose features of rebuilt frames should be those of true ones. Off without weights."""

    weight: float = Field(default=0.1, ge=0)
    """Weight of the distance. Source: MAGVIT."""
    weights: WeightsFile | None = None
    """Weights of a ResNet-50 that was trained on ImageNet, with torchvision's names; this project brings none along."""
    num_frames: int | None = Field(default=None, gt=0)
    """Frames per window that are compared, evenly spaced; ``None``: all."""
    side_px: int | None = Field(default=224, gt=0)
    """Side that frames are scaled to for the fixed network; ``None``: as they are. Source: MAGVIT."""


class Opponent(nn.Module):
    """The discriminator and the running means of its judgements."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.judge = config.build()
        self.lecam = LeCam()


class Objective:
    """The losses of both players for one part of a batch.

    Args:
        module: the tokenizer.
        seed: of the chance in the selection of tokens.
        opponent: the discriminator, if there is one.
        adversarial: how it plays.
        perceptual: the fixed network with its weight, if there is one.
    """

    def __init__(
        self,
        module: AdaptiveTokenizer,
        *,
        seed: int,
        opponent: Opponent | None,
        adversarial: Adversarial | None,
        perceptual: tuple[PerceptualDistance, float] | None,
    ) -> None:
        self.module, self.seed = module, seed
        self.opponent, self.adversarial = opponent, adversarial
        self.perceptual = perceptual

    def __call__(self, batch: Mapping[str, Tensor], moment: Moment) -> dict[str, Losses]:
        """Measures by player; the discriminator's as soon as it plays."""
        window = batch["window"].float() / 255
        rebuilt = self.module(window, generator(self.seed, "selection", *moment))
        clip = rebuilt.clip.float()
        pixels = functional.mse_loss(clip, window)
        measures = {"loss": pixels + rebuilt.penalty, "psnr_db": -10 * torch.log10(pixels.detach().clamp_min(1e-10))}
        if self.perceptual:
            distance, weight = self.perceptual
            measures["perceptual"] = distance(clip, window)
            measures["loss"] = measures["loss"] + weight * measures["perceptual"]
        found = {TOKENIZER: measures}
        if self.opponent and self.adversarial and moment.step >= self.adversarial.start_step:
            measures["adversarial"] = generator_loss(self.opponent.judge(clip).float())
            measures["loss"] = measures["loss"] + self.adversarial.weight * measures["adversarial"]
            found[DISCRIMINATOR] = self._opponents(self.opponent, self.adversarial, clip.detach(), window, moment.step)
        return found

    def _opponents(self, opponent: Opponent, rules: Adversarial, clip: Tensor, window: Tensor, step: int) -> Losses:
        true, false = opponent.judge(window).float(), opponent.judge(clip).float()
        measures = {"loss": discriminator_loss(true, false), "margin": (true - false).detach().mean()}
        if rules.lecam_weight:
            measures["loss"] = measures["loss"] + rules.lecam_weight * opponent.lecam(true, false)
        if rules.r1_weight and step % rules.r1_every_steps == 0:
            measures["r1"] = r1_penalty(opponent.judge, window)
            measures["loss"] = measures["loss"] + rules.r1_weight * rules.r1_every_steps * measures["r1"]
        return measures


def perceptual_network(config: Perceptual) -> tuple[PerceptualDistance, float] | None:
    """The fixed network with its weight; ``None``, and said so, where no weights are given.

    Raises:
        ConfigError: the weights are not those of the network.
    """
    if not config.weight:
        return None
    if config.weights is None:
        _log.warning("perceptual loss off: tokenizer.perceptual.weights names no file of weights")
        return None
    network = PerceptualDistance(num_frames=config.num_frames, side_px=config.side_px)
    try:
        network.load(config.weights.read())
    except ValueError as error:
        raise ConfigError(f"{config.weights.path}: {error}") from error
    return network, config.weight
