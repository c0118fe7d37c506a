"""How well windows are rebuilt: measures against their definitions, and the gate that a collapsed tokenizer does not pass."""

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image

from models.grid import Patching
from models.quantizers import fsq, lfq
from models.quantizers.fsq import Config as Scalar
from models.tokenizers.linear import Config as Linear
from stages import tokenizer
from stages.errors import TokenizerCollapsed
from stages.preview import tokenizer_preview
from stages.progress import Silent
from stages.quality import Health, Rebuilt, check_health, kept_tokens, measures, psnr_db, rebuild, seam_ratio
from stages.storage.artifact import Artifact, find, fingerprint
from stages.storage.workspace import Workspace
from tests.stages import toy

LEVELS = Scalar(levels=(4, 3, 3))
Clips = tuple[Workspace, Artifact]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    workspace = Workspace(tmp_path_factory.mktemp("clips"))
    return workspace, toy.snapshot(workspace, num_shards=1, per_shard=6)


def windows(count: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


def found(codes: torch.Tensor) -> Rebuilt:
    true = windows(len(codes))
    return Rebuilt(true, true, (true + 0.1).clamp(0, 1), torch.zeros_like(true), codes, torch.zeros(codes.shape))


def test_psnr_is_that_of_each_window() -> None:
    true = torch.full((2, 3, 2, 4, 4), 0.5)
    made = true + torch.tensor([0.1, 0.01])[:, None, None, None, None]
    assert psnr_db(made, true).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert psnr_db(true, true).tolist() == [100, 100]


def test_psnr_is_ten_logarithms_of_one_over_the_mean_squared_error() -> None:
    true = windows(2)
    made = (true + 0.2 * torch.randn(true.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    for window, rebuilt, value in zip(true, made, psnr_db(made, true), strict=True):
        pairs = zip(window.flatten().tolist(), rebuilt.flatten().tolist(), strict=True)
        error = sum((a - b) ** 2 for a, b in pairs) / window.numel()
        assert float(value) == pytest.approx(10 * math.log10(1 / error), rel=1e-4)


def test_ssim_falls_with_the_error() -> None:
    true, codes = windows(10), torch.zeros(10, 4, 2, 2, dtype=torch.long)
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(1))
    off = [(true + share * noise).clamp(0, 1) for share in (0.0, 0.1, 0.3)]
    ssim = [measures(Rebuilt(true, made, made, made, codes, codes.float()), LEVELS)["ssim_all_tokens"] for made in off]
    assert ssim[0] == pytest.approx(1)
    assert ssim[0] > ssim[1] > ssim[2]


def test_a_reconstruction_is_measured_against_the_mean_colour_of_each_window() -> None:
    true, codes = windows(4), torch.zeros(4, 4, 2, 2, dtype=torch.long)
    flat = true.mean(dim=(2, 3, 4), keepdim=True).expand_as(true)
    over = [
        measures(Rebuilt(true, made, made, made, codes, codes.float()), LEVELS)["psnr_over_flat_db"]
        for made in (true, flat, 1 - true)
    ]
    assert over[0] > over[1] == 0 > over[2]


@pytest.mark.parametrize("keep_first_slot", [True, False])
@pytest.mark.parametrize("kind", ["random", "ties", "constant"])
@pytest.mark.parametrize("k", [5, 9, 16])
def test_exactly_k_tokens_are_kept_the_first_slot_before_all_others(keep_first_slot: bool, kind: str, k: int) -> None:
    drawn = torch.rand(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    scores = {"random": drawn, "ties": (3 * drawn).round(), "constant": torch.ones_like(drawn)}[kind]
    kept = kept_tokens(scores, k, keep_first_slot)
    assert kept.flatten(1).sum(dim=1).tolist() == [k, k]
    assert not keep_first_slot or bool((kept[:, 0] == 1).all())
    free = slice(1, None) if keep_first_slot else slice(None)
    for clip in range(2):
        inside, outside = (scores[clip, free][kept[clip, free] == value] for value in (1, 0))
        assert len(outside) == 0 or inside.min() >= outside.max()


def test_codes_in_use_and_their_entropy_are_counted() -> None:
    codes = torch.tensor([0, 0, 1, 2]).repeat(4).view(1, 4, 2, 2)
    measured = measures(found(codes), LEVELS)
    assert measured["codes_used"] == 3
    assert measured["code_entropy_bits"] == pytest.approx(1.5)
    assert measured["code_entropy_share"] == pytest.approx(1.5 / 4)  # sixteen tokens have four bits at most
    assert measured["least_channel_entropy_bits"] == 0  # all codes below 4 differ in the first channel alone
    assert measured["psnr_all_tokens_db"] == 100
    assert measured["ssim_all_tokens"] == pytest.approx(1)
    assert measured["ssim_kept_tokens"] < 1
    assert measured["psnr_topk_gain_db"] == measured["psnr_kept_tokens_db"] - measured["psnr_random_tokens_db"] > 0


def test_more_tokens_than_codes_are_measured_against_the_codes() -> None:
    codes = torch.arange(36).repeat(4).view(1, 4, 6, 6)
    measured = measures(found(codes), LEVELS)
    assert measured["code_entropy_bits"] == pytest.approx(math.log2(36), abs=1e-4)
    assert measured["code_entropy_share"] == pytest.approx(1, abs=1e-4)
    assert measured["least_channel_entropy_bits"] == pytest.approx(math.log2(3), abs=1e-4)


def test_the_channel_that_says_least_is_found_bit_by_bit() -> None:
    codes = torch.tensor([7] * 4 + [8] * 2 + [9] * 2).view(1, 2, 2, 2)
    assert measures(found(codes), lfq.Config(bits=6))["least_channel_entropy_bits"] == 0, "those of 16 and 32 never change"
    odd = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))  # six of eight are; the other three bits are even
    assert measures(found(codes), lfq.Config(bits=4))["least_channel_entropy_bits"] == pytest.approx(odd)


def test_one_code_has_no_entropy() -> None:
    measured = measures(found(torch.full((2, 4, 2, 2), 5)), LEVELS)
    assert (measured["codes_used"], measured["code_entropy_bits"], measured["least_channel_entropy_bits"]) == (1, 0, 0)


def test_random_tokens_are_as_many_as_the_kept_ones_the_first_slot_among_them() -> None:
    # So many levels that no token has the zero code by itself.
    quantizer, patching = fsq.Config(levels=(63,) * 3), Patching(tubelet_frames=2, patch_px=8)
    module, true = Linear(window_frames=8, patching=patching, quantizer=quantizer).build(), windows(11)
    drawn, nothing = (
        rebuild(module, true, num_kept=20, keep_first_slot=True, seed=3).drawn,
        module.reconstruct(true, torch.zeros(11, 4, 4, 4)).clamp(0, 1),
    )
    changed = (drawn - nothing).abs().unflatten(2, (4, 2)).unflatten(4, (4, 8)).unflatten(6, (4, 8)).amax(dim=(1, 3, 5, 7)) > 0
    assert changed.flatten(1).sum(dim=1).tolist() == [20] * 11
    assert changed[:, 0].all()
    assert not torch.equal(rebuild(module, true, num_kept=20, keep_first_slot=True, seed=4).drawn, drawn)


def test_windows_are_rebuilt_from_all_from_kept_and_from_random_tokens() -> None:
    module, true = Linear(window_frames=8).build(), windows(10)
    made = rebuild(module, true, num_kept=6, keep_first_slot=True, seed=0)
    again = rebuild(module, true, num_kept=6, keep_first_slot=True, seed=0)
    assert all(torch.equal(one, two) for one, two in zip(made, again, strict=True))
    assert torch.equal(made.complete, module.reconstruct(true).clamp(0, 1))
    assert torch.equal(made.codes, module.tokenize(true)[0])
    kept = kept_tokens(made.priority, 6, True)
    assert torch.allclose(made.sparse, module.reconstruct(true, kept).clamp(0, 1), atol=1e-6)
    assert not torch.equal(made.drawn, made.sparse)
    everything = rebuild(module, true, num_kept=16, keep_first_slot=True, seed=0)
    assert torch.equal(everything.sparse, everything.complete)


def test_a_jump_of_the_error_between_windows_is_a_seam() -> None:
    span = torch.rand(3, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    noise = 0.1 * torch.randn(span.shape, generator=torch.Generator().manual_seed(3))
    even = seam_ratio([span], [span + noise], window_frames=8, tubelet_frames=2)
    jumping = noise.clone()
    jumping[:, 8:] += 0.5
    seam = seam_ratio([span], [span + jumping], window_frames=8, tubelet_frames=2)
    assert even is not None
    assert seam is not None
    assert even == pytest.approx(1, abs=0.3)
    assert seam > 5 * even
    assert seam_ratio([span[:, :8]], [span[:, :8]], window_frames=8, tubelet_frames=2) is None


def alternating() -> tuple[torch.Tensor, torch.Tensor]:
    """A span of four windows and its reconstruction, whose error changes by 0.1 after every slot."""
    span = torch.rand(3, 32, 8, 8, generator=torch.Generator().manual_seed(0))
    return span, span + 0.1 * (torch.arange(32) // 2 % 2)[None, :, None, None]


def ratio(spans: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> float | None:
    return seam_ratio(spans, made, window_frames=8, tubelet_frames=2)


def test_the_seam_ratio_follows_its_definition() -> None:
    span, made = alternating()
    step = (torch.arange(32) // 8)[None, :, None, None]
    assert ratio([span], [made]) == pytest.approx(1, rel=1e-3), "a change like any other"
    # At a seam the error falls back by 0.1 as well as jumping by 0.2.
    assert ratio([span], [made + 0.2 * step]) == pytest.approx((0.2 - 0.1) ** 2 / 0.1**2, rel=1e-2)
    assert ratio([span], [made - 0.2 * step]) == pytest.approx((0.2 + 0.1) ** 2 / 0.1**2, rel=1e-2)
    assert ratio([span], [span]) == 0, "a perfect reconstruction has no seams"
    assert ratio([span, span[:, :8]], [made, made[:, :8]]) == pytest.approx(1, rel=1e-3)


def test_a_collapse_is_refused_and_says_what_is_wrong() -> None:
    healthy = {"codes_used": 90.0, "code_entropy_bits": 6.0, "code_entropy_share": 0.6, "least_channel_entropy_bits": 1.0}
    healthy["psnr_over_flat_db"] = 2.0
    check_health(healthy, Health())
    with pytest.raises(TokenizerCollapsed, match=r"the 2 codes in use have 0\.50 bits of entropy, 5\.0% of what is possible"):
        check_health({**healthy, "codes_used": 2.0, "code_entropy_bits": 0.5, "code_entropy_share": 0.05}, Health())
    with pytest.raises(TokenizerCollapsed, match=r"least used channel of the quantizer has 0\.010 bits.*tokenizer\.health"):
        check_health({**healthy, "least_channel_entropy_bits": 0.01}, Health())
    check_health({**healthy, "least_channel_entropy_bits": 0.0}, Health(min_channel_entropy_bits=0))
    with pytest.raises(TokenizerCollapsed, match=r"rebuilt windows are -0\.50 dB from windows painted in their mean colour"):
        check_health({**healthy, "psnr_over_flat_db": -0.5}, Health())
    check_health({**healthy, "psnr_over_flat_db": -0.5}, Health(min_psnr_over_flat_db=-1))


class Steps(Silent):
    """How much there was to train, and how much of it was done before."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.trained = 0

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        self.begun.append((total, done))

    def advance(self, amount: int = 1) -> None:
        self.trained += amount


def collapsing(**changes: Any) -> tokenizer.Config:
    """A training of two steps that cannot reach what is asked of its codes."""
    values = {
        "model": {"name": "adaptive", **toy.NETWORK},
        "size_px": toy.SIZE_PX,
        "optimization": toy.TWO_STEPS,
        "adversarial": None,
        "health": {**toy.NO_HEALTH, "min_channel_entropy_bits": 9.0},
        "num_preview_windows": 2,
    }
    return tokenizer.Config.model_validate({**values, **changes})


def test_what_was_trained_and_refused_is_judged_again_without_training_and_another_gate_is_another_training(
    clips: Clips,
) -> None:
    workspace, snapshot = clips
    inputs, strict, steps = {"shard": snapshot}, collapsing(), Steps()
    watched = Workspace(workspace.root, monitor=steps)
    for number in range(2):
        with pytest.raises(TokenizerCollapsed, match=r"health\.min_channel_entropy_bits is 9\. .* trains anew"):
            tokenizer.run(strict, inputs, watched)
        assert steps.begun[-1] == (2, 2 * number)
        assert steps.trained == 2, "the second time nothing is trained"
    name = fingerprint("tokenizer", tokenizer.VERSION, strict, inputs)
    assert find(workspace, "tokenizer", name) is None
    left = [path.name for path in workspace.artifact_folder("tokenizer", name).iterdir()]
    assert left == ["checkpoints"], "nothing is published, and nothing of the training is lost"
    # What is asked for is part of what is made: with a lower gate it is another artifact, which is trained anew.
    lower = tokenizer.run(collapsing(health=toy.NO_HEALTH), inputs, watched)
    assert steps.begun[-1] == (2, 0)
    assert steps.trained == 4
    assert lower.artifact.fingerprint != name


def test_quality_is_measured_on_as_many_windows_as_were_asked_for_two_in_a_row(clips: Clips) -> None:
    config = collapsing(num_preview_windows=7)
    measured, made = tokenizer.measure(config, config.model.build().eval(), clips[1])
    assert len(made.windows) == 7
    assert 0 <= made.windows.min() <= made.windows.max() <= 1
    assert measured["seam_ratio"] > 0
    expected = measures(made, config.model.quantizer)
    assert {name: measured[name] for name in expected} == expected


def test_the_picture_is_the_same_every_time_and_as_wide_as_windows_are_asked_for() -> None:
    shown = found(torch.zeros(5, 4, 2, 2, dtype=torch.long))
    pictures = [Image.open(io.BytesIO(tokenizer_preview(shown, num_windows=count))) for count in (1, 1, 2)]
    assert pictures[0] == pictures[1]
    assert [picture.size for picture in pictures] == [(240, 640), (240, 640), (480, 640)]
