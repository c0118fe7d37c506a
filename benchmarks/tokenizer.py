"""What a tokenizer reaches on real clips while it learns, against codes of the same rate that need no learning.

    python benchmarks/tokenizer.py [--data FOLDER ...] [--steps N] [--root DIR] [--pictures DIR] [--quick]

The clips of a folder (``actions`` and ``skate`` below ``$LVMAE_DATA``, or generated ones) go through the stages ``shard`` and
``tokenizer``; clips of the split ``test`` are held out, and everything is measured on them. At the same rate, one code of
2**18 per tubelet of 2 x 16 x 16 pixels, stand two that learn nothing by gradients: principal components of the training
windows and a block cosine transform, both through the same quantizer. Each is judged with all tokens, with the k of highest
priority and with k random ones.

With ``--root`` the artifacts stay, and a run that was ended continues. Sizes and costs of the variants are counted on meta
tensors.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import _common, _linear
from models.extension import load
from models.tokenizers import Tokenizer
from models.tokenizers.adaptive import VARIANTS
from stages import preview, quality, shard, tokenizer
from stages.device import autocast, precisions
from stages.networks import load_tokenizer
from stages.progress import Silent
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace

PUBLISHED_ENCODER_GFLOP = {"Cosmos DV 4x8x8": 134, "Cosmos DV 8x16x16": 63, "VidTok FSQ causal 4x16x16": 1675}
"""Of 17 frames of 128 px, counted by running the published modules on meta tensors."""
PUBLISHED_PSNR_DB = {"VidTok FSQ 2^18, 4x16x16, causal": 25.38, "VidTok FSQ 2^18, 4x16x16, not causal": 26.37}
"""On MCL-JCV at 256 px: other data and twice the frames per code, so that the order of size compares. Source: its README."""
MEASURES = (
    "psnr_all_tokens_db",
    "psnr_kept_tokens_db",
    "psnr_random_tokens_db",
    "ssim_all_tokens",
    "codes_used",
    "code_entropy_bits",
)


def main() -> None:
    """Train, measure, compare, and write ``tokenizer.json``."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace((asked.root or Path(scratch)).absolute())
        snapshot, sources = _clips(asked, workspace, Path(scratch))
        config = _config(asked)
        variants = [_variant(name) for name in VARIANTS]
        _common.say(_common.table(variants) + "\n")
        baselines = _linear.baselines(config, snapshot, num_windows=32 if asked.quick else 256)
        _common.say("training ...")
        made = tokenizer.run(config, {"shard": snapshot}, _watched(workspace)).artifact
        judged = {"learned": load_tokenizer(made), **baselines}
        results = {name: tokenizer.measure(config, module, snapshot) for name, module in judged.items()}
        speed = _speed(config, judged["learned"], times=2 if asked.quick else 4)
        if asked.pictures:
            _draw(asked.pictures, made, {name: found for name, (_, found) in results.items()})
        _report(asked, sources, config, made, variants, {name: measured for name, (measured, _) in results.items()}, speed)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--data", type=Path, nargs="+", metavar="FOLDER", help="folders of videos, with labels.csv")
    parser.add_argument("--steps", type=int, default=3000, help="training steps of 4 windows (3000; 40 with --quick)")
    parser.add_argument("--size", type=int, default=64, help="side of the windows in pixels (64)")
    parser.add_argument("--variant", default="tiny", choices=list(VARIANTS), help="size of the tokenizer (tiny)")
    parser.add_argument(
        "--adversarial", action="store_true", help="with the opponent of the MAGVIT recipe; pixels alone without"
    )
    parser.add_argument("--root", type=Path, help="keep the artifacts here, and continue what lies there")
    parser.add_argument("--pictures", type=Path, help="a folder for the curve and the pictures")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps = min(asked.steps, 40)
    return asked


def _clips(asked: argparse.Namespace, workspace: Workspace, scratch: Path) -> tuple[Artifact, list[str]]:
    """Clips whose short side leaves room for a random crop, and where they come from."""
    folders = asked.data or _common.real_folders()
    generated, names = (folders, [folder.name for folder in folders]) if folders else _generated(scratch)
    source = {"name": "folder", "path": [str(folder) for folder in generated]}
    clip = {"size_px": asked.size * 9 // 8, "num_frames": 64, "motion_vectors": False}
    config = shard.Config.model_validate({"dataset": "benchmark", "source": source, "clip": clip, "sources_per_shard": 64})
    return shard.run(config, {}, workspace).artifact, names


def _generated(scratch: Path) -> tuple[list[Path], list[str]]:
    folder, names = _common.videos([], scratch / "videos", every=4)
    rows = [f"{path.name},{'test' if number % 4 == 0 else 'train'}" for number, path in enumerate(sorted(folder.iterdir()))]
    (folder / "labels.csv").write_text("\n".join(["path,split", *rows]) + "\n")
    return [folder], names


def _config(asked: argparse.Namespace) -> tokenizer.Config:
    """The training: the variant's network, one selection of tokens, and what two cores can do."""
    points = 4 if asked.quick else 10
    every = max(2, asked.steps // points // 2 * 2)
    return tokenizer.Config.model_validate(
        {
            "model": {"name": "adaptive", "variant": asked.variant, "top_k": 0.49},
            "size_px": asked.size,
            "adversarial": {"r1_every_steps": 16} if asked.adversarial else None,
            "optimization": {
                "num_steps": asked.steps,
                "batch_clips": 4,
                "learning_rate": 1e-3,
                "warmup_share": 0.02,
                "betas": (0.9, 0.99),
                "weight_decay": 0.0,
                "clip_grad_norm": 1.0,
                "ema_decay": 0.995 if asked.steps >= 1000 else 0.8,
                "precision": precisions(torch.device("cpu"))[-1],
                "log_every_steps": every // 2,
                "checkpoint_every_steps": every // 2,
            },
            "quality_every_steps": every,
            "num_preview_windows": 16 if asked.quick else 64,
            "health": {"min_code_entropy_share": 0.0, "min_channel_entropy_bits": 0.0, "min_psnr_over_flat_db": -100.0},
            "exclude": {"split": "test"},
            "cache_bytes": 4_000_000_000,
        }
    )


def _variant(name: str) -> dict[str, Any]:
    """Parameters and floating-point operations of a variant; one multiply and add are two."""
    with torch.device("meta"):
        module = load("models.tokenizers", {"name": "adaptive", "variant": name}).build()
        short, full = torch.empty(1, 3, 16, 128, 128), torch.empty(1, 3, 16, 224, 224)
        vectors = module.latents(full).detach()
    assert vectors.shape[1:4] == (8, 14, 14), "one code per tubelet of 2 x 16 x 16"
    return {
        "variant": name,
        "parameters, M": sum(value.numel() for value in module.parameters()) / 1e6,
        "encoder GFLOP, 16f 128px": _gflop(module.latents, short),
        "scorer GFLOP, 16f 128px": _gflop(module.priority, short),
        "encoder GFLOP, 16f 224px": _gflop(module.latents, full),
        "decoder GFLOP, 16f 224px": _gflop(module.rebuild, vectors),
        "encoder TFLOP, 128f 224px": _gflop(module.latents, full) * 8 / 1e3,
    }


def _gflop(function: Callable[[torch.Tensor], Any], argument: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(argument)
    return counter.get_total_flops() / 1e9


class _Lines(Silent):
    """A monitor that prints a line per report."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()

    def begin(self, label: str, *, total: int, done: int = 0) -> None:
        _common.say(f"{label}: {done} of {total} done before")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        shown = {name: values[name] for name in ("loss", "psnr_db", *MEASURES) if name in values}
        text = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        _common.say(f"{time.monotonic() - self._begun_s:6.0f} s  step {step:6d}  {text}")


def _watched(workspace: Workspace) -> Workspace:
    return Workspace(workspace.root, monitor=_Lines())


def _speed(config: tokenizer.Config, module: Tokenizer, *, times: int) -> list[dict[str, Any]]:
    """Windows per second of the frozen tokenizer and of the training, on all cores, the best of a few."""
    windows = torch.rand(4, 3, config.model.window_frames, config.size_px, config.size_px)
    rows = []
    for precision in precisions(torch.device("cpu")):
        with autocast(torch.device("cpu"), precision):
            frozen_s = _least_s(lambda: module.tokenize(windows), times)
            step_s = _least_s(lambda: (module(windows).clip.float() - windows).square().mean().backward(), times)
        rows.append(
            {
                "precision": precision,
                "encode, frames/s": 4 * config.model.window_frames / frozen_s,
                "encode, GFLOP/s": _gflop(module.latents, windows) / frozen_s,
                "training, windows/s": 4 / step_s,
            }
        )
    return rows


def _least_s(work: Callable[[], Any], times: int) -> float:
    found = []
    for _ in range(times):
        begun_s = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun_s)
    return min(found)


def _draw(folder: Path, made: Artifact, found: Mapping[str, quality.Rebuilt]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    history = json.loads(made.verified("metrics.json").read_bytes())["history"]
    (folder / "tokenizer-curve.png").write_bytes(_linear.curve([row for row in history if "psnr_all_tokens_db" in row]))
    for name, rebuilt in found.items():
        (folder / f"tokenizer-{name.split(' ')[0].lower()}.png").write_bytes(preview.tokenizer_preview(rebuilt))


def _report(
    asked: argparse.Namespace,
    sources: Sequence[str],
    config: tokenizer.Config,
    made: Artifact,
    variants: Sequence[Mapping[str, Any]],
    judged: Mapping[str, Mapping[str, float]],
    speed: Sequence[Mapping[str, Any]],
) -> None:
    history = json.loads(made.verified("metrics.json").read_bytes())["history"]
    curve = [{"step": row["step"], **{name: row[name] for name in MEASURES}} for row in history if MEASURES[0] in row]
    rows = [{"codes": name, **{key: measured[key] for key in MEASURES}} for name, measured in judged.items()]
    for shown in (curve, rows, speed):
        _common.say("\n" + _common.table(shown))
    learned, rivals = judged["learned"], {name: value for name, value in judged.items() if name != "learned"}
    best = {key: max(value[key] for value in rivals.values()) for key in ("psnr_all_tokens_db", "psnr_kept_tokens_db")}
    ratios = {
        "psnr_topk_gain_db": learned["psnr_topk_gain_db"],
        "psnr_all_over_best_baseline_db": learned["psnr_all_tokens_db"] - best["psnr_all_tokens_db"],
        "psnr_kept_over_best_baseline_db": learned["psnr_kept_tokens_db"] - best["psnr_kept_tokens_db"],
        "seam_ratio": learned.get("seam_ratio", 0.0),
    }
    result = {
        "machine": _common.machine(),
        "data": {"source": list(sources), "size_px": asked.size, "steps": asked.steps, "kept": config.kept[0]},
        "variants": variants,
        "published_encoder_gflop_17f_128px": PUBLISHED_ENCODER_GFLOP,
        "published_psnr_db": PUBLISHED_PSNR_DB,
        "curve": curve,
        "quality": {name: dict(measured) for name, measured in judged.items()},
        "speed": speed,
        "ratios": {name: _common.rounded(value, 3) for name, value in ratios.items()},
    }
    _common.finish("tokenizer", result, out=asked.out)


if __name__ == "__main__":
    main()
