"""How well windows are rebuilt: measures against their definitions, and what a collapsed tokenizer looks like."""

import math

import pytest
import torch

from models.quantizers.fsq import Config as Scalar
from models.tokenizers.linear import Config as Linear
from stages.errors import TokenizerCollapsed
from stages.quality import Health, Rebuilt, check_health, kept_tokens, measures, psnr_db, rebuild, seam_ratio

LEVELS = Scalar(levels=(4, 3, 3))


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


def test_a_collapse_is_refused_and_says_what_is_wrong() -> None:
    healthy = {"codes_used": 90.0, "code_entropy_bits": 6.0, "code_entropy_share": 0.6, "least_channel_entropy_bits": 1.0}
    check_health(healthy, Health())
    with pytest.raises(TokenizerCollapsed, match=r"the 2 codes in use have 0\.50 bits of entropy, 5\.0% of what is possible"):
        check_health({**healthy, "codes_used": 2.0, "code_entropy_bits": 0.5, "code_entropy_share": 0.05}, Health())
    with pytest.raises(TokenizerCollapsed, match=r"least used channel of the quantizer has 0\.010 bits.*tokenizer\.health"):
        check_health({**healthy, "least_channel_entropy_bits": 0.01}, Health())
    check_health({**healthy, "least_channel_entropy_bits": 0.0}, Health(min_channel_entropy_bits=0))
