"""Whether the predicted memory of a training step is what it takes: ``stages.estimate``, against real steps in a fresh process.

    python benchmarks/plan.py [--model ViT-B] [--frames 128] [--size 224] [--batch 1] [--precision fp32] [--steps 3] [--quick]

A child process builds the masked autoencoder of a published size, with 10 % of the tokens visible and 15 % predicted, and
trains it for a few steps on random clips, as the stage ``pretrain`` does: forward, backward, norm of gradients, fused AdamW. On
a processor it is measured by its peak resident memory, and predicted with what its interpreter and libraries took before. On a
GPU it is measured by the allocator's peak, and predicted without what libraries take beside it. ``--quick`` takes ViT-S at 32
frames. It needs nothing but torch, einops and pydantic.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import _common

TARGET_DIM = 6
"""Channels of a code vector in the recipe ``lvmae``."""
MEGABYTE = 1e6


def main() -> None:
    """Measure in a child, print a table, write the result."""
    asked = _arguments()
    if asked.child:
        _common.say(json.dumps(_steps(asked)))
        return
    options = [f"--{name}={getattr(asked, name)}" for name in ("model", "frames", "size", "batch", "precision", "steps")]
    _common.say(f"{asked.steps} steps of {asked.model}, {asked.frames} frames of {asked.size} px, batch {asked.batch} ...")
    spent = _common.spend([sys.executable, __file__, "--child", *options])
    measured = json.loads(spent.output.splitlines()[-1])
    parts = [{"of a step": name, "MB": value / MEGABYTE} for name, value in measured["predicted_parts"].items() if value]
    rows = [
        {"memory": "predicted", "MB": measured["predicted_bytes"] / MEGABYTE},
        {"memory": "measured", "MB": measured["measured_bytes"] / MEGABYTE},
    ]
    _common.say(f"\n{_common.table(parts)}\n\n{_common.table(rows)}\n\n{measured['step_s']:.3g} s per step")
    ratio = measured["predicted_bytes"] / measured["measured_bytes"]
    result = {
        "machine": _common.machine(),
        "setting": {name: getattr(asked, name) for name in ("model", "frames", "size", "batch", "precision", "steps")},
        **measured,
        "ratios": {"memory_predicted_over_measured": _common.rounded(ratio, 3)},
    }
    _common.finish("plan", result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument(
        "--model", choices=("ViT-S", "ViT-B", "ViT-L", "ViT-H"), help="published size (ViT-B; ViT-S with --quick)"
    )
    parser.add_argument("--frames", type=int, help="frames of a clip (128; 32 with --quick)")
    parser.add_argument("--size", type=int, default=224, help="side of a clip in pixels (224)")
    parser.add_argument("--batch", type=int, default=1, help="clips at once (1)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of matrix products (fp32)")
    parser.add_argument("--steps", type=int, default=3, help="training steps; moments are there from the second on (3)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    asked.model = asked.model or ("ViT-S" if asked.quick else "ViT-B")
    asked.frames = asked.frames or (32 if asked.quick else 128)
    return asked


def _steps(asked: argparse.Namespace) -> dict[str, Any]:
    """What some steps took, and what they were predicted to take before the first."""
    import torch

    from models import mae
    from models.cost import Policy, Workload
    from models.grid import Patching
    from models.masking import priority, tube
    from stages import estimate
    from stages.device import autocast, device

    config = mae.Config.model_validate({"encoder": asked.model, "decoder": asked.model})
    grid = Patching().grid(asked.frames, asked.size)
    work = Workload(config, grid, tube.Config().count(grid), priority.Config().count(grid), TARGET_DIM)
    run = estimate.Run(work, Policy(asked.precision), batch_clips=asked.batch)
    place = estimate.Device(device().type, device().type, 0, 0.0, estimate.taken_bytes())
    parts = estimate.memory(run, place)._asdict()
    ignored = ("workspace", "taken") if place.kind == "cuda" else ()
    predicted = sum(value for name, value in parts.items() if name not in ignored)

    module = mae.MaskedAutoencoder(config, grid, TARGET_DIM).to(device())
    optimizer = torch.optim.AdamW(module.parameters(), fused=True)
    gc.collect()
    begun_s = 0.0
    for step in range(asked.steps):
        begun_s = time.perf_counter()
        batch = _batch(work, asked.batch, step)
        with autocast(device(), asked.precision):
            loss = _loss(module, {name: value.to(device()) for name, value in batch.items()})
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert torch.isfinite(loss), "random pixels and code vectors train well"
    measured = torch.cuda.max_memory_allocated() if place.kind == "cuda" else _common.peak_bytes()
    return {
        "predicted_bytes": predicted,
        "predicted_parts": parts,
        "measured_bytes": measured,
        "step_s": time.perf_counter() - begun_s,
    }


def _batch(work: Any, count: int, seed: int) -> dict[str, Any]:
    """What the loader of the stage pretrain sends: pixels as bytes, positions, and what is to be predicted."""
    import torch

    source = torch.Generator().manual_seed(seed)
    patch_dim, tokens = work.config.patching.patch_dim, work.grid.num_tokens

    def pixels(amount: int) -> torch.Tensor:
        return torch.randint(256, (count, amount, patch_dim), generator=source, dtype=torch.uint8)

    def positions(amount: int) -> torch.Tensor:
        return torch.stack([torch.randperm(tokens, generator=source)[:amount].sort().values for _ in range(count)])

    return {
        "visible_patches": pixels(work.visible),
        "predict_patches": pixels(work.predicted),
        "visible": positions(work.visible),
        "predict": positions(work.predicted),
        "wanted": torch.rand(count, work.predicted, work.target_dim, generator=source) * 2 - 1,
        "real": torch.ones(count, tokens, dtype=torch.bool),
    }


def _loss(module: Any, batch: dict[str, Any]) -> Any:
    """As the stage pretrain computes it, its yardstick included."""
    from models.mae import hidden_weight, masked_mse

    predicted = module(batch["visible_patches"].float() / 255, batch["visible"], batch["predict"])
    weight = hidden_weight(batch["visible"], batch["predict"], batch["real"])
    loss, wanted = masked_mse(predicted, batch["wanted"], weight), batch["wanted"]
    masked_mse(wanted.mean(dim=(0, 1), keepdim=True).expand_as(wanted), wanted, weight)
    return loss


if __name__ == "__main__":
    main()
