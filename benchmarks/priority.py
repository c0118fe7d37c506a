"""Whether the priority finds what moves: how much of the top tenth of all tokens lies on the object of a synthetic clip.

    python benchmarks/priority.py [--steps N] [--seeds N] [--size PX ...] [--set PATH=VALUE ...] [--root DIR] [--quick]
                                  [--pictures DIR [--data FOLDER ...] [--weights FILE --weights-config FILE]]

Synthetic videos, whose object's box is known in every frame, go through the stages ``shard`` and ``tokenizer`` as in the demo;
clips of the split ``test`` are held out, and on them the learned priority is compared with the same network untrained, with
optical flow, EVEREST's distance, codec motion, and random order. A token of 2 x 16 x 16 pixels counts by the share of it,
over its frames, that the object's box covers. Distractors have no boxes: a token on one counts as a miss.

Two lines are no rivals but bounds: the boxes themselves, and the change of block means, made by hand for this set's noise.
At 128 px the same scenes are drawn twice as large, on a grid of 8 x 8 instead of 4 x 4; the tokenizer trains on crops of 64 px.

``--pictures`` draws a synthetic clip, and real ones where there are any, by the tokenizer of ``--weights`` or one trained here.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import _common, _heat, _objects
from models.extension import load
from models.tokenizers import Tokenizer
from pipeline.recipe import Request
from stages import shard, tokenizer
from stages.device import precisions
from stages.networks import load_tokenizer
from stages.products import Footage
from stages.readers import synthetic
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import read_tensors
from stages.storage.index import Index
from stages.storage.workspace import Workspace

RIVALS = {"flow": "flow", "everest": "EVEREST", "random": "random", "untrained": "untrained"}
"""What the learned priority is divided by, and the rows it is taken from."""
LEARNED = "learned priority"
WINDOW_PX = 64
"""Side of the training windows, as in the demo."""
REAL_PX = 128
_TOP_LEVEL = ("object_px", "travel_px", "home_px", "distractor_px", "camera_px")


class Setting(NamedTuple):
    """Clips of one size and what is known of them."""

    size_px: int
    snapshot: Artifact
    seen: Sequence[Footage]
    objects: _objects.Array
    """Covered share of every token ``[n t h w]``."""


def main() -> None:
    """Train, compare, and write ``priority.json``."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace((asked.root or Path(scratch)).absolute())
        settings = [_setting(asked, workspace, size_px) for size_px in asked.size]
        found = [_compared(asked, workspace, setting) for setting in settings]
        if asked.pictures:
            _pictures(asked, workspace, settings[-1], Path(scratch))
    _report(asked, settings, found)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    parser.add_argument("--steps", type=int, default=400, help="training steps of 8 windows (400; at most 30 with --quick)")
    parser.add_argument("--seeds", type=int, default=2, help="trainings per size, from different weights (2; 1 with --quick)")
    parser.add_argument("--size", type=int, nargs="+", default=[64, 128], help="sides of the clips (64 128; 64 with --quick)")
    parser.add_argument("--train", type=int, default=128, help="clips to train on (128; 16 with --quick)")
    parser.add_argument("--test", type=int, default=48, help="clips to measure on (48; 8 with --quick)")
    parser.add_argument("--adversarial", action="store_true", help="with the opponent of the demo; pixels alone without")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="another value of the demo's recipe")
    parser.add_argument("--root", type=Path, help="keep the artifacts here, and continue what lies there")
    parser.add_argument("--pictures", type=Path, help="a folder for pictures")
    parser.add_argument("--data", type=Path, nargs="+", metavar="FOLDER", help="folders of real videos, for pictures")
    parser.add_argument("--weights", type=Path, help="a tokenizer for the pictures of real clips, safetensors")
    parser.add_argument("--weights-config", type=Path, help="its config.json")
    asked = parser.parse_args()
    if bool(asked.weights) != bool(asked.weights_config):
        parser.error("--weights and --weights-config go together")
    if asked.quick:
        asked.steps, asked.seeds, asked.size = min(asked.steps, 30), 1, asked.size[:1]
        asked.train, asked.test = min(asked.train, 16), min(asked.test, 8)
    return asked


def _setting(asked: argparse.Namespace, workspace: Workspace, size_px: int) -> Setting:
    """Rendered clips of a size, everything in them scaled with it but the noise, which is drawn per pixel."""
    plain = synthetic.Config().scenes
    scaled = {name: getattr(plain, name) * size_px / plain.size_px for name in _TOP_LEVEL} | {"size_px": size_px}
    source = synthetic.Config.model_validate({"num_train": asked.train, "num_test": asked.test, "scenes": scaled})
    demo = Request(recipe="lvmae", overlays=("demo",)).load().shard
    clip = demo.clip.model_copy(update={"size_px": size_px})
    made = shard.run(demo.model_copy(update={"source": source, "clip": clip}), {}, workspace).artifact
    clips = _objects.held_out(made)
    seen = _objects.footage(made, clips, num_frames=clip.num_frames, size_px=size_px)
    return Setting(size_px, made, seen, _objects.object_coverage(source, workspace, clips))


def _config(asked: argparse.Namespace, seed: int) -> tokenizer.Config:
    """The demo's tokenizer for another number of steps; it is published whatever its codes."""
    changes = [
        f"tokenizer.seed={seed}",
        f"tokenizer.size_px={WINDOW_PX}",
        f"tokenizer.optimization.num_steps={asked.steps}",
        f"tokenizer.optimization.precision={precisions(torch.device('cpu'))[-1]}",
        f"tokenizer.num_preview_windows={8 if asked.quick else 64}",
        "tokenizer.health={min_code_entropy_share: 0.0, min_channel_entropy_bits: 0.0, min_psnr_over_flat_db: -100}",
        *([] if asked.adversarial else ["tokenizer.adversarial=null"]),
        *asked.set,
    ]
    return Request(recipe="lvmae", overlays=("demo",), overrides=tuple(changes)).load().tokenizer


def _learned(asked: argparse.Namespace, workspace: Workspace, snapshot: Artifact, seed: int = 0) -> Tokenizer:
    return load_tokenizer(tokenizer.run(_config(asked, seed), {"shard": snapshot}, workspace).artifact)


def _untrained(asked: argparse.Namespace, seed: int) -> Tokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built: Tokenizer = _config(asked, seed).model.build().eval()
    return built


def _compared(asked: argparse.Namespace, workspace: Workspace, setting: Setting) -> dict[str, Any]:
    """A row per score, one of each network per seed, and the ratios of seed means with intervals over clips."""
    seeds, seen = range(asked.seeds), setting.seen
    scores = _objects.products(seen)
    scores["random"] = np.random.default_rng(0).random(setting.objects.shape)
    for seed in seeds:
        scores[f"untrained, seed {seed}"] = _objects.priorities(_untrained(asked, seed), seen)
    _common.say(f"{setting.size_px} px: training {asked.seeds} x {asked.steps} steps ...")
    for seed in seeds:
        scores[f"{LEARNED}, seed {seed}"] = _objects.priorities(_learned(asked, workspace, setting.snapshot, seed), seen)
    scores["by hand: change of 8 px block means"] = _objects.block_means(seen, 8)
    scores["bound: the boxes"] = setting.objects
    shares = {name: _objects.covered(values, setting.objects).mean(axis=1) for name, values in scores.items()}  # [n] each
    means = shares | {
        name: np.mean([shares[f"{name}, seed {seed}"] for seed in seeds], axis=0) for name in (LEARNED, "untrained")
    }
    rows = _objects.judged(scores, setting.objects)
    _common.say(f"\n{setting.size_px} px, {len(seen)} clips:\n{_common.table(rows)}\n")
    return {"size_px": setting.size_px, "rows": rows, "ratios": _ratios(means, setting.objects)}


def _ratios(means: dict[str, _objects.Array], objects: _objects.Array) -> dict[str, dict[str, float]]:
    """The learned priority over everything else, ``[n]`` per score, each with its interval."""
    below = {f"priority_vs_{name}": means[row] for name, row in RIVALS.items()}
    below["priority_lift"] = objects.reshape(len(objects), -1).mean(axis=1)
    found = {}
    for name, other in below.items():
        low, high = _objects.ratio_interval(means[LEARNED], other)
        ratio = means[LEARNED].mean() / max(float(other.mean()), 1e-9)
        found[name] = {"ratio": _common.rounded(float(ratio)), "low": _common.rounded(low), "high": _common.rounded(high)}
    return found


def _pictures(asked: argparse.Namespace, workspace: Workspace, setting: Setting, scratch: Path) -> None:
    asked.pictures.mkdir(parents=True, exist_ok=True)
    learned = _learned(asked, workspace, setting.snapshot)
    panels = [_panel(learned, setting.seen[:1], "synthetic")]
    folders = asked.data or _common.real_folders()
    if folders:
        panels += _real_panels(asked, workspace, folders, scratch)
    (asked.pictures / "priority.png").write_bytes(_heat.picture(panels))


def _real_panels(asked: argparse.Namespace, workspace: Workspace, folders: Sequence[Path], scratch: Path) -> list[_heat.Panel]:
    """A panel for a clip of every folder, cut to two windows."""
    every = 60 if asked.weights else 8
    place, _ = _common.videos(folders, scratch / "videos", every=every)
    clip = {"size_px": REAL_PX, "num_frames": 32, "min_frames": 32, "motion_vectors": False}
    wanted = {"dataset": "real", "source": {"name": "folder", "path": str(place)}, "clip": clip}
    made = shard.run(shard.Config.model_validate(wanted), {}, workspace).artifact
    network = _given(asked.weights, asked.weights_config) if asked.weights else _learned(asked, workspace, made)
    clips = list(Index(made))
    found = [[clip for clip in clips if clip.key.startswith(folder.name)] for folder in folders]
    chosen = [part[len(part) // 2] for part in found if part]
    return [
        _panel(network, _objects.footage(made, [clip], num_frames=32, size_px=REAL_PX), clip.key.split("-")[0])
        for clip in chosen
    ]


def _given(weights: Path, config: Path) -> Tokenizer:
    built: Tokenizer = load("models.tokenizers", json.loads(config.read_bytes())).build()
    built.load_state_dict(read_tensors(weights))
    return built.eval()


def _panel(network: Tokenizer, seen: Sequence[Footage], title: str) -> _heat.Panel:
    scores = {"learned priority": _objects.priorities(network, seen), **_objects.products(seen)}
    shown = {name: values[0] for name, values in scores.items() if name != "codec motion"}
    top = {name: _objects.top_tokens(values[None])[0] for name, values in shown.items()}
    return _heat.Panel(title, seen[0].pixels, shown, top)


def _report(asked: argparse.Namespace, settings: Sequence[Setting], found: Sequence[dict[str, Any]]) -> None:
    flat = {name: interval["ratio"] for name, interval in found[0]["ratios"].items()}
    finer = [{f"{name}_{part['size_px']}px": value["ratio"] for name, value in part["ratios"].items()} for part in found[1:]]
    for part in finer:
        flat |= part
    result = {
        "machine": _common.machine(),
        "data": {
            "source": "synthetic",
            "clips": [len(setting.seen) for setting in settings],
            "area": [_common.rounded(float(setting.objects.mean())) for setting in settings],
            "steps": asked.steps,
            "seeds": asked.seeds,
            "adversarial": asked.adversarial,
            "changes": asked.set,
            "model": _config(asked, 0).model.model_dump(mode="json"),
        },
        "settings": found,
        "ratios": flat,
    }
    _common.finish("priority", result, out=asked.out)


if __name__ == "__main__":
    main()
