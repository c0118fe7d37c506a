"""What the paper claims of decoding few tokens, at a size that two processor cores bear: many short trainings, one judge.

    python benchmarks/claims.py [--data FOLDER] [--groups NAME ...] [--rows NAME ...] [--seeds N ...] [--root DIR] [--quick]

Every row is a pretraining of the recipe ``lvmae`` under the overlay ``demo`` that differs from the first row in one thing:
which tokens the decoder predicts, how many, what it predicts of them, or how long its clips are. All are given the same number
of training operations by count (``models.cost``), so that a row that decodes more makes fewer steps; shorter clips come in
larger batches, and of more views. The group ``remedies`` asks whether 128 frames do better when trained longer, wider or at
another rate. All seeds of a row share clips, tokenizer and targets.

The frozen encoders are read by the linear probe, twice: with 8 parts of time kept apart, where the features' places tell the
order whatever the encoder knows, and with one mean over all of time, where only what the encoder itself knows of the order is
left. An encoder of shorter clips is shown windows of the length it knows, one after the other. Differences from the first row
are paired by seed and by clip.

Without ``--data`` the clips are the synthetic set, whose label ``class`` needs both ends of a clip (docs/synthetic.md). A
folder with ``labels.csv`` is judged by grouped 5-fold cross-validation. What is there below ``--root`` is not made again.
"""

import argparse
import dataclasses
import json
import math
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy import stats

from benchmarks import _common
from models import cost
from pipeline.plan import newest_snapshot
from pipeline.recipe import Recipe, Request
from stages import estimate, networks
from stages.batches import ClipFrames
from stages.encoders import OwnEncoder, VideoEncoder
from stages.evals import Features
from stages.evals.linear_probe import Config as LinearProbe
from stages.features import ClipFeatures, Extractor
from stages.foreign_encoder import ForeignEncoder
from stages.metrics import Hits, answers
from stages.pixels import PIXELS
from stages.protocol import Asking, Question, question, scored_clips
from stages.reading import read
from stages.scoring import grouped_interval, wilson_interval
from stages.storage import artifact
from stages.storage.artifact import Artifact
from stages.storage.checkpoints import read_tensors
from stages.storage.index import Clip, Index
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.views import stored_view

BASE = "adaptive 15 %"
FRAMES = 128
TIME_BINS = 8
CELLS = 2
UNORDERED = "mean over time"
READINGS = {"order kept": TIME_BINS, UNORDERED: 1}
"""Parts of time that the probe is given apart."""
BATCH_CLIPS = 8


class Setting(NamedTuple):
    """One row: what differs from the first one."""

    group: str
    name: str
    changes: tuple[str, ...] = ()
    num_frames: int = FRAMES
    operations: float = 1
    """Of training, as a multiple of the first row's."""


def _adaptive(share: float) -> tuple[str, ...]:
    """The paper's two parts to one of priority and chance, at another budget."""
    top = round(share * 2 / 3, 4)
    return (f"pretrain.decoder_masking={{name: priority, top: {top}, random: {round(share - top, 4)}}}",)


_WIDER = ("pretrain.model.encoder={width: 128, depth: 3, num_heads: 8}",)


def _rate(learning_rate: float) -> tuple[str, ...]:
    return (f"pretrain.optimization.learning_rate={learning_rate}",)


def _masking(spelled: str) -> tuple[str, ...]:
    return (f"pretrain.decoder_masking={spelled}",)


SETTINGS = (
    Setting("masking", BASE),
    Setting("masking", "random 15 %", _masking("{name: random, share: 0.15}")),
    Setting("masking", "uniform slots 14 %", _masking("{name: uniform_frames, step: 7}")),
    Setting("masking", "flow 15 %", _masking("{name: priority, by: flow, top: 0.10, random: 0.05}")),
    Setting("masking", "EVEREST 15 %", _masking("{name: priority, by: everest, top: 0.10, random: 0.05}")),
    Setting("masking", "all tokens", _masking("{name: none}")),
    *(Setting("budget", f"adaptive {round(100 * share)} %", _adaptive(share)) for share in (0.05, 0.10, 0.25, 0.50)),
    Setting("target", "pixels, 15 %", ("pretrain.target={name: pixels}",)),
    Setting("target", "pixels, all tokens", (*_masking("{name: none}"), "pretrain.target={name: pixels}")),
    *(Setting("frames", f"{count} frames", num_frames=count) for count in (16, 32, 64)),
    *(Setting("remedies", f"{count} frames, 3 x operations", num_frames=count, operations=3) for count in (128, 32)),
    *(Setting("remedies", f"{count} frames, 2 x width and operations", _WIDER, count, operations=2) for count in (128, 32)),
    *(Setting("remedies", f"128 frames, rate {rate}", _rate(rate)) for rate in (8.0e-4, 5.0e-3)),
)


class Trained(NamedTuple):
    """One pretraining."""

    setting: Setting
    seed: int
    num_steps: int
    made: Artifact
    cpu_s: float | None
    """Of the whole command; ``None`` where an earlier run made it and did not say."""
    peak_bytes: int | None


@dataclasses.dataclass(frozen=True)
class World:
    """Where all of it happens.

    Args:
        asked: the command line.
        place: the root of all artifacts.
        shared: overrides of every command.
    """

    asked: argparse.Namespace
    place: Path
    shared: tuple[str, ...]

    def request(self, setting: Setting, *changes: str) -> Request:
        """What a command for a row asks for."""
        views = {"num_frames": setting.num_frames, "num_views": self.asked.views * FRAMES // setting.num_frames}
        lengths = tuple(f"precompute.views.{name}={value}" for name, value in views.items())
        products = "[{name: flow}, {name: everest}]" if setting.num_frames == FRAMES else "[]"  # shorter clips: no row asks
        overrides = (*self.shared, f"precompute.products={products}", *lengths, *setting.changes, *changes)
        return Request(recipe="lvmae", overlays=("demo",), source=self.asked.data, overrides=overrides)

    def run(self, stage: str, request: Request, *, threads: int) -> tuple[dict[str, Any], Any]:
        """What one stage's command printed, and what it cost."""
        words = [sys.executable, "-m", "pipeline", stage, *shlex.split(request.spelled())]
        child = subprocess.Popen(
            [*words, "--root", str(self.place), "--no-tracking", "--json"],
            cwd=_common.ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        output, errors = child.stdout.read(), child.stderr.read()  # type: ignore[union-attr]
        _, status, spent = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise RuntimeError(f"{shlex.join(words)}: ended with {child.returncode}:\n{errors[-2000:]}")
        return json.loads(output.splitlines()[-1]), spent

    def artifact(self, stage: str, record: Mapping[str, Any]) -> Artifact:
        """What a command made."""
        found = artifact.find(Workspace.at(str(self.place)), stage, record["fingerprint"])
        assert found is not None
        return found


def main() -> None:
    """Train every row with every seed, read all encoders at once, and write the result."""
    asked = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        world = World(asked, (asked.root or Path(scratch)).absolute(), _shared(asked))
        chosen = [one for one in SETTINGS if one.name == BASE or (one.group in asked.groups and _named(one, asked.rows))]
        _prepare(world, chosen)
        trained = _trained(world, chosen)
        result = _result(world, trained, *_read(world, trained))
    _common.finish(asked.name, result, out=asked.out)


def _arguments() -> argparse.Namespace:
    parser = _common.arguments(__doc__ or "")
    groups = tuple(dict.fromkeys(one.group for one in SETTINGS))
    usual = [name for name in groups if name != "remedies"]
    parser.add_argument("--data", help="folder of labelled clips (the synthetic set)")
    parser.add_argument("--label", default="class", help="what the probe tells (class)")
    parser.add_argument("--groups", nargs="+", choices=groups, default=usual, help=f"rows to make ({' '.join(usual)})")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="of those groups, only these (all)")
    parser.add_argument("--steps", type=int, help="training steps of the first row (600; 20 with --quick)")
    parser.add_argument("--seeds", type=int, nargs="+", help="of weights, order and masks (0 1 2; 0 with --quick)")
    parser.add_argument("--views", type=int, default=2, help="stored views per clip, more of shorter ones (2)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, of one thread each (2)")
    parser.add_argument("--root", type=Path, metavar="DIR", help="keep artifacts here, and go on with those that are there")
    parser.add_argument("--name", default="claims", help="of the result's file (claims)")
    asked = parser.parse_args()
    asked.steps = asked.steps or (20 if asked.quick else 600)
    asked.seeds = asked.seeds or ([0] if asked.quick else [0, 1, 2])
    if asked.quick:
        asked.groups = ["target"]
    return asked


def _named(setting: Setting, rows: Sequence[str] | None) -> bool:
    return not rows or setting.name in rows


def _shared(asked: argparse.Namespace) -> tuple[str, ...]:
    common: list[str] = []
    if asked.data:  # every clip is pretrained on, and none of their labels
        common += ["tokenizer.exclude.split=nobody", "pretrain.exclude.split=nobody"]
    elif asked.quick:
        common += ["shard.source.num_train=24", "shard.source.num_test=16"]
    else:
        common += ["shard.source.num_test=256"]
    if asked.quick:
        common += ["tokenizer.optimization.num_steps=4", "tokenizer.adversarial=null", "tokenizer.num_preview_windows=2"]
        common += [f"tokenizer.health.{name}" for name in ("min_code_entropy_share=0", "min_channel_entropy_bits=0")]
        common += ["tokenizer.health.min_psnr_over_flat_db=-100"]
    return tuple(common)


def _prepare(world: World, chosen: Sequence[Setting]) -> None:
    base = chosen[0]
    for stage in ("shard", "tokenizer"):
        _common.say(f"{stage} ...")
        world.run(stage, world.request(base), threads=os.cpu_count() or 1)
    for num_frames in sorted({one.num_frames for one in chosen}):
        _common.say(f"precompute, {num_frames} frames ...")
        world.run("precompute", world.request(base._replace(num_frames=num_frames)), threads=os.cpu_count() or 1)


def _trained(world: World, chosen: Sequence[Setting]) -> list[Trained]:
    whole = _flop(world.request(chosen[0]).load())
    pairs = [(one, seed) for seed in world.asked.seeds for one in chosen]

    def train(pair: tuple[Setting, int]) -> Trained:
        """One row with one seed, for as many steps as give the operations of the first row."""
        one, seed = pair
        batch = BATCH_CLIPS * FRAMES // one.num_frames
        bare = world.request(one, f"pretrain.optimization.batch_clips={batch}", f"pretrain.seed={seed}")
        steps = max(1, round(world.asked.steps * one.operations * whole / _flop(bare.load())))
        request = bare.model_copy(update={"overrides": (*bare.overrides, f"pretrain.optimization.num_steps={steps}")})
        begun = time.perf_counter()
        record, spent = world.run("pretrain", request, threads=1)
        _common.say(
            f"{one.name}, seed {seed}: {steps} steps of {batch}, {time.perf_counter() - begun:.0f} s, {record['state']}"
        )
        fresh = record["units_done"] == steps
        cost_of = (spent.ru_utime + spent.ru_stime, spent.ru_maxrss * 1024) if fresh else (None, None)
        return _remembered(world, Trained(one, seed, steps, world.artifact("pretrain", record), *cost_of))

    with ThreadPoolExecutor(world.asked.jobs) as pool:
        return list(pool.map(train, pairs))


def _remembered(world: World, trained: Trained) -> Trained:
    """With what it cost when it was made, if that was measured below this root."""
    path = world.place / "claims-costs" / f"{trained.made.fingerprint}.json"
    if trained.cpu_s is not None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps([trained.cpu_s, trained.peak_bytes]))
    elif path.exists():
        cpu_s, peak_bytes = json.loads(path.read_text())
        return trained._replace(cpu_s=cpu_s, peak_bytes=peak_bytes)
    return trained


def _flop(recipe: Recipe) -> float:
    """Of one training step."""
    run = estimate.run_of(recipe.pretrain, recipe.precompute.views, recipe.tokenizer.model.quantizer)
    return run.batch_clips * cost.flops(run.workload).training


def _read(world: World, trained: Sequence[Trained]) -> tuple[Question, dict[str, dict[str, Hits]]]:
    """The question, and by reading and encoder which tested clips were named rightly."""
    recipe = world.request(SETTINGS[0]).load()
    workspace = Workspace.at(str(world.place))
    snapshot = newest_snapshot(recipe, workspace)
    assert snapshot is not None
    clips = scored_clips(Index(snapshot), {}, (world.asked.label,))
    folds = 5 if world.asked.data else None
    asking = Asking(world.asked.label)
    asked = question(clips, asking, split_label="split", folds=folds, group_label="group" if folds else None)
    features = _features(world, trained, snapshot, clips)
    jobs = [(reading, name) for reading in READINGS for name in features if reading != UNORDERED or name != f"{PIXELS}/0"]
    with ProcessPoolExecutor(world.asked.jobs) as pool:
        found = pool.map(_hits, [asked] * len(jobs), [_reading(features[name], reading) for reading, name in jobs])
        hits: dict[str, dict[str, Hits]] = {reading: {} for reading in READINGS}
        for (reading, name), one in zip(jobs, found, strict=True):
            hits[reading][name] = one
            _common.say(f"{reading}, {name}: {one.mean():.3f}")
    return asked, hits


def _hits(asked: Question, features: Features) -> Hits:
    none = ClipFeatures(first=features, further=features[:0], owners=np.zeros(0, np.int64))
    return answers(asked, read(LinearProbe(), asked, none)).hits


def _reading(features: Features, reading: str) -> Features:
    """Features ``[n, ...]``, part of time after part of time, with those parts ``[n, bins, width]`` that a reading keeps."""
    bins = READINGS[reading]
    return features.reshape(len(features), bins, TIME_BINS // bins, -1).mean(axis=2)


def _features(world: World, trained: Sequence[Trained], snapshot: Artifact, clips: Sequence[Clip]) -> dict[str, Features]:
    """Of every encoder, and of plain pixels, in the order of the clips."""
    made = trained[0].made
    geometry = networks.geometry(made)
    device = torch.device("cpu")
    own: dict[str, VideoEncoder] = {}
    for one in trained:
        encoder = networks.geometry(one.made).model.build_encoder(geometry.grid)
        encoder.load_state_dict(read_tensors(one.made.verified("encoder.safetensors")))
        length, side_px = one.setting.num_frames, geometry.views.size_px
        own[f"{one.setting.name}/{one.seed}"] = ForeignEncoder(encoder.eval(), geometry.model.patching, length, side_px, device)
    for seed in world.asked.seeds:
        own[f"untrained/{seed}"] = OwnEncoder(networks.untrained_encoder(made, seed), geometry.model.patching, device)
    targets = TargetReader(_targets(world))
    extractor = Extractor(
        encoders=own,
        slot_frames=geometry.model.patching.tubelet_frames,
        frames=ClipFrames(snapshot),
        layer=None,
        temporal_bins=TIME_BINS,
        spatial_cells=CELLS,
        pixel_cells=8,
        batch_clips=BATCH_CLIPS,
    )
    _common.say(f"features of {len(clips)} clips by {len(own)} encoders ...")
    found = extractor.features([(clip, stored_view(targets.place(clip, 0))) for clip in clips])
    return {**{name: found[name] for name in own}, f"{PIXELS}/0": found[PIXELS]}


def _targets(world: World) -> Artifact:
    record, _ = world.run("precompute", world.request(SETTINGS[0]), threads=1)
    return world.artifact("precompute", record)


def _result(
    world: World,
    trained: Sequence[Trained],
    asked: Question,
    hits: Mapping[str, Mapping[str, Hits]],
) -> dict[str, Any]:
    rows = []
    names = list(dict.fromkeys(name.rpartition("/")[0] for name in hits[next(iter(READINGS))]))
    by_name = {one.name: one for one in SETTINGS}
    for name in names:
        setting = by_name.get(name)
        rows.append({"row": name, **_costs(world, setting, trained), **_accuracies(name, asked, hits)})
    _common.say(_common.table([{key: value for key, value in row.items() if not isinstance(value, list)} for row in rows]))
    ratios = {f"{row['row']}, {reading}": row[f"{reading}: less"] for row in rows[1:] for reading in READINGS if reading in row}
    return {
        "machine": _common.machine(),
        "settings": {
            "data": Path(world.asked.data).name if world.asked.data else "synthetic",
            "label": world.asked.label,
            "classes": len(asked.class_names),
            "chance": asked.uniform_chance,
            "tested_clips": len(asked.tested),
            "base_steps": world.asked.steps,
            "seeds": world.asked.seeds,
        },
        "rows": rows,
        "ratios": ratios,
    }


def _costs(world: World, setting: Setting | None, trained: Sequence[Trained]) -> dict[str, Any]:
    own = [one for one in trained if setting and one.setting.name == setting.name]
    if not setting or not own:
        return dict.fromkeys(("steps", "GFLOP/clip", "kept MB/clip", "CPU s", "peak MB"))
    recipe = world.request(setting).load()
    run = estimate.run_of(recipe.pretrain, recipe.precompute.views, recipe.tokenizer.model.quantizer)
    measured = [one for one in own if one.cpu_s is not None]
    return {
        "steps": own[0].num_steps,
        "GFLOP/clip": _common.rounded(cost.flops(run.workload).training / 1e9, 3),
        "kept MB/clip": _common.rounded(cost.saved_bytes(run.workload, run.policy) / 1e6, 3),
        "CPU s": _mean([one.cpu_s for one in measured]),
        "peak MB": _mean([one.peak_bytes / 1e6 for one in measured if one.peak_bytes]),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _common.rounded(math.fsum(known) / len(known), 3) if known else None


def _accuracies(name: str, asked: Question, hits: Mapping[str, Mapping[str, Hits]]) -> dict[str, Any]:
    """Per reading the mean over seeds with its interval, and the difference from the first row, paired by seed and clip."""
    found: dict[str, Any] = {}
    for reading, by_run in hits.items():
        if not any(run.rpartition("/")[0] == name for run in by_run):
            continue
        runs = np.stack([one for run, one in by_run.items() if run.rpartition("/")[0] == name])
        base = np.stack([one for run, one in by_run.items() if run.rpartition("/")[0] == BASE])
        low, high = wilson_interval(float(runs.mean()) * runs.shape[1], runs.shape[1])
        found[reading] = _common.rounded(float(runs.mean()), 3)
        found[f"{reading}: runs"] = [float(one) for one in runs.mean(axis=1)]
        found[f"{reading}: interval"] = [_common.rounded(low, 3), _common.rounded(high, 3)]
        found[f"{reading}: less"] = _common.rounded(float(runs.mean() - base.mean()), 3)
        clips = grouped_interval(runs.mean(axis=0) - base.mean(axis=0), asked.groups[asked.tested])
        found[f"{reading}: over clips"] = [_common.rounded(one, 3) for one in clips]
        if len(runs) == len(base) > 1:
            over = (runs.mean(axis=1) - base.mean(axis=1)).tolist()
            reach = float(stats.t.ppf(0.975, len(over) - 1) * np.std(over, ddof=1) / math.sqrt(len(over)))
            found[f"{reading}: over seeds"] = [_common.rounded(np.mean(over) + sign * reach, 3) for sign in (-1, 1)]
    return found


if __name__ == "__main__":
    main()
