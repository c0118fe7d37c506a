"""What the trained networks make of single clips: the tokenizer's reconstruction, the autoencoder's, and the chosen tokens.

Everything here is pixels and numbers for a person to look at; drawing them is the business of ``stages.figures``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor

from models.extension import load
from models.grid import Grid, gather_tokens, patchify, unpatchify
from models.mae import MaskedAutoencoder
from models.masking import MaskingConfig, first_real, token_scores
from models.masking.hidden_only import Config as HiddenOnly
from models.masking.priority import Config as PriorityMasking
from models.shapes import Bool, Float, Int, Shaped
from models.targets.code_vectors import Config as CodeTarget
from models.tokenizers import Tokenizer
from models.top_k import top_k_positions
from stages.draws import generator
from stages.networks import Geometry, load_autoencoder, load_tokenizer
from stages.networks import geometry as read_geometry
from stages.storage.artifact import Artifact
from stages.views import View, per_token, real_tokens

Frames = npt.NDArray[np.uint8]
"""``[T H W C]``"""

Patches = Shaped[Tensor, "1 N patch_dim"]
"""Pixels of one clip as ``models.grid.patchify`` orders them, uint8."""

UNUSED, VISIBLE, TOP, RANDOM = 0, 1, 2, 3
"""What a token is to a training step: without a part in it, seen by the encoder, predicted for its priority, or by chance.

A token that is both seen and predicted counts as seen: it has no part in the loss.
"""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One clip and what the networks make of it; all clips ``uint8 [T H W C]``, all maps ``[t h w]``."""

    original: Frames
    tokenized: Frames
    """The tokenizer's reconstruction from all true codes."""
    predicted: Frames | None
    """The autoencoder's reconstruction: original pixels where the encoder saw them, decoded predictions everywhere else.
    ``None`` where the target is not codes, so that there is nothing to decode."""
    priority: npt.NDArray[np.float32]
    roles: npt.NDArray[np.int64]
    """``UNUSED``, ``VISIBLE``, ``TOP`` or ``RANDOM``."""
    num_recorded_frames: int
    tokenizer_psnr_db: float
    """Of ``tokenized`` over the recorded frames."""
    unexplained_share: float | None
    """Squared error of the predicted code vectors over their variance, at tokens that a training step would count."""


@dataclasses.dataclass(frozen=True)
class Painter:
    """The networks and rules that a picture needs.

    Args:
        tokenizer: rebuilds pixels from codes.
        autoencoder: predicts codes.
        geometry: grid and patches of both.
        encoder_masking: what the encoder sees.
        decoder_masking: what the decoder predicts.
        predicts_codes: whether the autoencoder's target is code vectors.
        seed: seed of the token choice.
        device: where the networks are.
    """

    tokenizer: Tokenizer
    autoencoder: MaskedAutoencoder
    geometry: Geometry
    encoder_masking: MaskingConfig
    decoder_masking: MaskingConfig
    predicts_codes: bool
    seed: int
    device: torch.device

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact], device: torch.device) -> "Painter":
        """The painter of one pretraining and the tokenizer behind it."""
        recipe = inputs["pretrain"].manifest.config
        return cls(
            tokenizer=load_tokenizer(inputs["tokenizer"]).to(device),
            autoencoder=load_autoencoder(inputs["pretrain"]).to(device),
            geometry=read_geometry(inputs["pretrain"]),
            encoder_masking=load("models.masking", recipe["encoder_masking"]),
            decoder_masking=load("models.masking", recipe["decoder_masking"]),
            predicts_codes=isinstance(load("models.targets", recipe["target"]), CodeTarget),
            seed=recipe["seed"],
            device=device,
        )

    @torch.no_grad()
    def paint(self, frames: Frames, view: View, stored: Mapping[str, npt.NDArray[Any]]) -> Picture:
        """The picture of one view.

        Args:
            frames: the view's pixels, all frames of it.
            view: where it came from.
            stored: everything that is stored per token, ``[t h w]`` or with channels behind, by name.
        """
        grid, patching = self.geometry.grid, self.geometry.model.patching
        products = {name: per_token(values) for name, values in stored.items()}
        true_codes = products["codes"]  # [N]
        scores = self._scores(products)
        real = real_tokens(view, grid, patching.tubelet_frames)
        visible, predict = self._choose(products, real, view.clip_id)
        patches = patchify(rearrange(torch.from_numpy(frames), "T H W C -> 1 C T H W"), patching)  # [1, N, patch_dim]
        guess = self._predicted_vectors(patches, visible, predict) if self.predicts_codes else None
        tokenized = self._pixels(true_codes)
        return Picture(
            original=frames,
            tokenized=tokenized,
            predicted=None if guess is None else self._composed(patches, visible, guess, true_codes),
            priority=scores.view(tuple(grid)).numpy(),
            roles=token_roles(self.decoder_masking, grid, scores=scores, real=real, visible=visible, predict=predict),
            num_recorded_frames=view.num_real_frames,
            tokenizer_psnr_db=psnr_db(tokenized[: view.num_real_frames], frames[: view.num_real_frames]),
            unexplained_share=None if guess is None else self._unexplained(guess, true_codes, visible, predict, real),
        )

    def _scores(self, products: Mapping[str, Shaped[Tensor, "N ..."]]) -> Float[Tensor, " N"]:
        """What the tokens to predict are chosen by; the tokenizer's priority where they are not chosen by anything."""
        return token_scores(products[score_name(self.decoder_masking)])

    def _choose(
        self, products: Mapping[str, Shaped[Tensor, "N ..."]], real: Bool[Tensor, " N"], clip_id: str
    ) -> tuple[Int[Tensor, " V"], Int[Tensor, " P"]]:
        """What a training step might have drawn for this clip."""
        grid = self.geometry.grid
        draws = {role: generator(self.seed, "picture", role, clip_id) for role in ("visible", "predict")}
        visible = self.encoder_masking.select(grid, products=products, real=real, generator=draws["visible"])
        predict = self.decoder_masking.select_beside(
            grid, visible=visible, products=products, real=real, generator=draws["predict"]
        )
        return visible, predict

    def _predicted_vectors(
        self, patches: Patches, visible: Int[Tensor, " V"], predict: Int[Tensor, " P"]
    ) -> Float[Tensor, "N d"]:
        """Predictions at every position but the visible ones, in rounds no larger than those of the training.

        The first round asks for the chosen tokens alone, as a training step does.
        """
        num_tokens = self.geometry.grid.num_tokens
        rest = torch.ones(num_tokens, dtype=torch.bool).scatter(0, torch.cat([predict, visible]), False).nonzero()[:, 0]
        order = torch.randperm(len(rest), generator=generator(self.seed, "picture", "rest"))
        seen = gather_tokens(patches, visible[None]).to(self.device).float() / 255
        found = torch.zeros(num_tokens, self.tokenizer.quantizer.dim)
        for asked in (predict, *torch.split(rest[order], len(predict))):
            found[asked] = self.autoencoder(seen, visible[None].to(self.device), asked[None].to(self.device))[0].float().cpu()
        return found

    def _composed(
        self, patches: Patches, visible: Int[Tensor, " V"], guess: Float[Tensor, "N d"], true_codes: Int[Tensor, " N"]
    ) -> Frames:
        codes = self.tokenizer.quantizer.nearest(guess.to(self.device)).cpu()
        # The decoder needs a code everywhere. Where the encoder saw the pixels, their own code gives nothing away.
        codes[visible] = true_codes[visible]
        decoded = rearrange(torch.from_numpy(self._pixels(codes)), "T H W C -> 1 C T H W")
        mixed = patchify(decoded, self.geometry.model.patching)
        mixed[0, visible] = patches[0, visible]
        return _frames(unpatchify(mixed, self.geometry.model.patching, self.geometry.grid))

    def _pixels(self, codes: Int[Tensor, " N"]) -> Frames:
        """The tokenizer's decoding of a whole view, one window at a time to bound the memory."""
        grid = self.geometry.grid
        windows = codes.view(-1, self.tokenizer.config.window_slots, grid.h, grid.w)
        clips = [self.tokenizer.decode(window[None].to(self.device)).float().cpu() for window in windows]
        return _frames((torch.cat(clips, dim=2).clamp(0, 1) * 255).round().byte())

    def _unexplained(
        self,
        guess: Float[Tensor, "N d"],
        true_codes: Int[Tensor, " N"],
        visible: Int[Tensor, " V"],
        predict: Int[Tensor, " P"],
        real: Bool[Tensor, " N"],
    ) -> float | None:
        counted = predict[real.scatter(0, visible, False)[predict]]
        if not len(counted):
            return None
        wanted = self.tokenizer.quantizer.vectors(true_codes[counted].to(self.device)).cpu()
        variance = (wanted - wanted.mean(dim=0)).square().mean()
        return float((guess[counted] - wanted).square().mean() / variance.clamp_min(1e-12))


def score_name(rule: MaskingConfig) -> str:
    """The product that a rule chooses by; the tokenizer's priority where it does not choose by anything."""
    return next(iter(rule.needs), "priority")


def token_roles(
    rule: MaskingConfig,
    grid: Grid,
    *,
    scores: Float[Tensor, " N"],
    real: Bool[Tensor, " N"],
    visible: Int[Tensor, " V"],
    predict: Int[Tensor, " P"],
) -> npt.NDArray[np.int64]:
    """What every token is to a training step, ``[t h w]``.

    Args:
        rule: by which ``predict`` was chosen.
        grid: of the clip.
        scores: that it may have chosen by.
        real: which tokens are recorded.
        visible: what the encoder sees.
        predict: what the decoder predicts.
    """
    roles = torch.full((grid.num_tokens,), UNUSED)
    roles[predict] = RANDOM
    eligible = real
    if isinstance(rule, HiddenOnly):
        rule, eligible = rule.rule, real.scatter(0, visible, False)
    if isinstance(rule, PriorityMasking):
        by_score = top_k_positions(scores, grid.num_tokens)
        roles[first_real(by_score, eligible, rule.top_count(grid))] = TOP
    roles[visible] = VISIBLE
    return roles.view(tuple(grid)).numpy()


def psnr_db(rebuilt: Frames, original: Frames) -> float:
    """Peak signal over error of 8-bit pixels, in decibels; 100 for equal ones."""
    error = np.square(rebuilt.astype(np.float64) / 255 - original.astype(np.float64) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def _frames(clip: Shaped[Tensor, "1 C T H W"]) -> Frames:
    frames: Frames = rearrange(clip, "1 C T H W -> T H W C").numpy()
    return frames
