"""The second part of what ``lvmae plan`` prints: what pretraining costs by count, as tables for a person and as JSON.

What a run would do, stage by stage, is the first part and in ``pipeline.estimation.estimates``.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from models import cost
from pipeline.plan import newest_snapshot
from pipeline.recipe import Recipe
from pipeline.wording import duration, size
from stages import estimate
from stages.device import device, precisions
from stages.errors import ConfigError
from stages.estimate import Device, Run
from stages.storage.index import Index
from stages.storage.workspace import Workspace

_PARTS = {
    "weights": "parameters",
    "moments": "moments of AdamW",
    "average": "moving average",
    "tables": "vectors of positions",
    "gradients": "gradients at that moment",
    "activations": "activations",
    "copies": "bf16 copies of parameters",
    "batch": "batch",
    "video": "decoded video that is kept, at most",
    "workspace": "libraries' workspace",
    "taken": "interpreter and libraries",
    "total": "in all",
}
_WAYS = {
    "plain": "clips at once, at most",
    "checkpointing": "with activation checkpointing",
    "materialised": "where attention is not fused",
}
_PACES = {"floor": "floor", "eager": "expected, eager", "compiled": "expected, compiled"}


def cost_record(recipe: Recipe, *, root: str, num_devices: int, num_clips: int | None, memory_gb: str) -> dict[str, Any]:
    """What the pretraining of a recipe costs, as one JSON object.

    Args:
        recipe: the recipe.
        root: where a snapshot of its clips may lie.
        num_devices: that share every batch.
        num_clips: clips of one epoch; ``None``: as many as the newest snapshot has, if there is one.
        memory_gb: memory of the GPUs to compare, in GB, with commas between.

    Raises:
        ConfigError: the recipe does not fit, or the sizes of memory are no numbers.
    """
    sizes = _sizes(memory_gb)
    run = estimate.run_of(
        recipe.pretrain,
        recipe.precompute.views,
        recipe.tokenizer.model.quantizer,
        num_devices=num_devices,
        activation_checkpointing=recipe.pretrain.activation_checkpointing,
        compiled=recipe.pretrain.compile,
    )
    places = [estimate.this_device(run.policy.precision), *(estimate.gpu(one, run.policy.precision) for one in sizes)]
    return _record(recipe, run, places, num_clips or _clips_of_snapshot(recipe, root))


def _sizes(memory_gb: str) -> list[float]:
    try:
        sizes = [float(one) for one in memory_gb.split(",")]
    except ValueError:
        sizes = [0]
    if not all(0 < one < math.inf for one in sizes):
        raise ConfigError(f"--memory {memory_gb!r}: expected sizes in GB with commas between, such as --memory 80,141")
    return sizes


def _clips_of_snapshot(recipe: Recipe, root: str) -> int | None:
    snapshot = newest_snapshot(recipe, Workspace.at(root))
    return len(Index(snapshot).without(recipe.pretrain.exclude)) if snapshot else None


def _record(recipe: Recipe, run: Run, places: Sequence[Device], num_clips: int | None) -> dict[str, Any]:
    work, views, optimization = run.workload, recipe.precompute.views, recipe.pretrain.optimization
    flops = cost.flops(work)
    num_samples = (num_clips or 0) * recipe.pretrain.masks_per_clip
    steps: dict[str, float] = {"step": 1}
    if num_clips:
        steps["epoch"] = num_samples / run.batch_clips
    if num_clips or optimization.num_steps:
        steps["training"] = optimization.total_steps(num_samples)
    return {
        "recipe": recipe.name,
        "clip": {
            "num_frames": views.num_frames,
            "size_px": views.size_px,
            "tokens": work.grid.num_tokens,
            "visible_tokens": work.visible,
            "predicted_tokens": work.predicted,
            "decoded_tokens": work.decoded,
        },
        "parameters": cost.parameters(work)._asdict(),
        "flops_per_clip": {**flops._asdict(), "forward": flops.forward, "training": flops.training},
        "kept_bytes_per_clip": {name: cost.saved_bytes(work, way.policy) for name, way in _ways(run).items()},
        "precision": run.policy.precision,
        "batch_clips": run.batch_clips,
        "num_devices": run.num_devices,
        "clips_at_once": run.clips_at_once,
        "num_clips": num_clips,
        "num_steps": steps.get("training"),
        "checkpoint_bytes": estimate.checkpoint_bytes(run),
        "devices": [_device_record(run, place, steps) for place in places],
    }


def _device_record(run: Run, place: Device, steps: Mapping[str, float]) -> dict[str, Any]:
    needed = estimate.memory(run, place)
    largest = {name: estimate.largest_clips_at_once(way, place) for name, way in _ways(run).items()}
    eager, compiled = (estimate.duration(dataclasses.replace(run, compiled=one), place) for one in (False, True))
    step_s = {"floor": eager.floor_s, "eager": eager.expected_s, "compiled": compiled.expected_s}
    return {
        **place._asdict(),
        "needed_bytes": {**needed._asdict(), "total": needed.total},
        "fits": estimate.fits(needed, place),
        "largest_clips_at_once": largest,
        "fitting_parts": estimate.fitting_parts(run, largest["plain"]),
        "duration_s": {what: {pace: count * one for pace, one in step_s.items()} for what, count in steps.items()},
    }


def _ways(run: Run) -> dict[str, Run]:
    """The training as it is asked for, with activation checkpointing, and with attention that is not fused."""
    policies = {
        "plain": run.policy,
        "checkpointing": run.policy._replace(activation_checkpointing="full"),
        "materialised": run.policy._replace(attention="materialised"),
    }
    return {name: dataclasses.replace(run, policy=policy) for name, policy in policies.items()}


def cost_lines(record: Mapping[str, Any]) -> list[str]:
    """The same as tables."""
    places = record["devices"]
    rows = [
        ["", *(place["name"] for place in places)],
        ["memory", *(size(place["memory_bytes"]) for place in places)],
        *_memory_rows(places),
        *([f"  {shown}", *(str(place["largest_clips_at_once"][way]) for place in places)] for way, shown in _WAYS.items()),
        *_duration_rows(places),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows]
    return [*_facts(record), "", *table, "", *_remarks(record)]


def _facts(record: Mapping[str, Any]) -> list[str]:
    clip, flops, kept = record["clip"], record["flops_per_clip"], record["kept_bytes_per_clip"]
    forward = flops["forward"]
    in_attention = (flops["encoder_attention"] + flops["decoder_attention"]) / forward
    in_decoder = (flops["decoder_linear"] + flops["decoder_attention"]) / forward
    facts = {
        "clip": f"{clip['num_frames']} frames of {clip['size_px']} px, {clip['tokens']:,} tokens: "
        f"{clip['visible_tokens']:,} visible ({clip['visible_tokens'] / clip['tokens']:.1%}), "
        f"{clip['predicted_tokens']:,} predicted ({clip['predicted_tokens'] / clip['tokens']:.1%})",
        "parameters": "{encoder:,} in the encoder, {decoder:,} in what is thrown away".format(**record["parameters"]),
        "operations": f"{forward / 1e9:,.4g} GFLOP forward and {flops['training'] / 1e9:,.4g} GFLOP of training per clip, "
        f"{in_decoder:.0%} in the decoder, {in_attention:.0%} in attention",
        "kept": f"{size(kept['plain'])} per clip for the backward pass in {record['precision']}; {size(kept['checkpointing'])} "
        f"with activation checkpointing, {size(kept['materialised'])} where attention is not fused",
        "step": f"{record['batch_clips']:,} clips on {record['num_devices']} device{'s' * (record['num_devices'] > 1)}, "
        f"{record['clips_at_once']:,} at once",
    }
    title = "what its pretraining costs by count"
    return [title, *(f"{name:<10}  {fact}" for name, fact in facts.items())]


def _memory_rows(places: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The parts of a step's memory, those left out that are nothing anywhere."""
    parts = {name: [place["needed_bytes"][name] for place in places] for name in _PARTS}
    rows = [[f"  {_PARTS[name]}", *map(size, values)] for name, values in parts.items() if any(values)]
    verdict = ["yes" if place["fits"] else "NO" for place in places]
    return [["needed by a step", *("" for _ in places)], *rows, ["  fits", *verdict]]


def _duration_rows(places: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for what in places[0]["duration_s"]:
        rows.append([f"time of {'the whole training' if what == 'training' else f'one {what}'}", *("" for _ in places)])
        for pace, shown in _PACES.items():
            rows.append([f"  {shown}", *(_time(place["duration_s"][what][pace]) for place in places)])
    return rows


def _remarks(record: Mapping[str, Any]) -> list[str]:
    remarks = [_advice(record, place) for place in record["devices"] if not place["fits"]]
    if record["num_steps"] is None:
        remarks.append("give --clips N for the time of an epoch and of the training: ROOT holds no clips of this recipe")
    if record["precision"] not in precisions(device()):
        remarks.append(f"this {device().type} only imitates {record['precision']}, many times slower than fp32")
    rate = estimate.GPU_FLOPS_PER_S[record["precision"]] / 1e12
    return [
        *remarks,
        f"a checkpoint has {size(record['checkpoint_bytes'])}; from a GPU it goes through as much main memory",
        f"memory is planned up to {estimate.USABLE_SHARE:.0%} of a device; times leave out waiting for data and transport",
        f"expected: {estimate.EAGER_SHARE:.0%}, compiled {estimate.COMPILED_SHARE:.0%}, of {rate:g} TFLOP/s on an H100 or H200 "
        f"(networks narrower than ViT-B: less); {estimate.PROCESSOR_SHARE:.0%} of the rate just measured on a processor",
    ]


def _advice(record: Mapping[str, Any], place: Mapping[str, Any]) -> str:
    needed, parts = size(place["needed_bytes"]["total"]), place["fitting_parts"]
    problem = f"{place['name']}: {record['clips_at_once']:,} clips at once need {needed}"
    if parts is None:
        return f"{problem}, and no part of the batch fits: take activation checkpointing, a smaller model, or another device"
    at_once = record["batch_clips"] // parts
    return f"{problem}; --set pretrain.optimization.accumulation_steps={parts} makes it {at_once:,} at once, which fit"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else f"{1000 * seconds:.3g} ms"
