"""Checkpoints: tensors in safetensors and plain values in JSON, one fresh folder per step, never a pickle.

A checkpoint exists when its ``state.json`` does, which is written last, holds the tensors' sha256 and is sealed with its own. A
damaged newest one is passed over for the one before it; at least two are kept.
"""

import contextlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from stages.storage.artifact import CHECKPOINTS
from stages.storage.publish import canonical_json, publish_bytes, sha256_bytes, sha256_file

KEEP = 2

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """The whole state of a training at one step."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of the artifact in ``folder`` and drop all but the newest two."""
    place = folder / CHECKPOINTS / f"step-{checkpoint.step:08d}"
    data = encode(checkpoint.tensors)
    publish_bytes(place / "state.safetensors", data)
    record = {"step": checkpoint.step, "sha256": sha256_bytes(data), "values": checkpoint.values}
    if sha256_file(place / "state.safetensors") != record["sha256"]:
        raise OSError(f"{place}: what was written does not read back; the checkpoint before it is kept")
    publish_bytes(place / "state.json", canonical_json({**record, "seal": _seal(record)}))
    kept = _places(folder)[-KEEP:]
    for old in set((folder / CHECKPOINTS).glob("step-*")).difference(kept):  # halves that a killed run left among them
        shutil.rmtree(old)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or ``None`` to start from the beginning; damaged ones are set aside."""
    damaged: list[Path] = []
    for place in reversed(_places(folder)):
        checkpoint = _load(place)
        if checkpoint:
            for bad in damaged:
                _log.warning("checkpoint=%s damaged, set aside as %s; going on from %s", bad, _set_aside(bad), place)
            return checkpoint
        damaged.append(place)
    for bad in damaged:
        _log.warning("checkpoint=%s damaged, set aside as %s; there is none before it", bad, _set_aside(bad))
    return None


def newest_step(folder: Path) -> int:
    """The step that a training would continue from; 0 without a whole checkpoint."""
    newest = load_newest(folder)
    return newest.step if newest else 0


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file."""
    return safetensors.torch.load(path.read_bytes())


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file; equal tensors give equal bytes."""
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def _set_aside(place: Path) -> Path:
    """Where a damaged checkpoint is out of the way, so that it is not one of those that are kept."""
    aside = place.with_name(f"damaged-{place.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(OSError):  # another rank was faster
        place.rename(aside)
    return aside


def _places(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / CHECKPOINTS).glob("step-*/state.json"))


def _seal(record: Mapping[str, Any]) -> str:
    return sha256_bytes(canonical_json(record))


def _load(place: Path) -> Checkpoint | None:
    try:
        record = json.loads((place / "state.json").read_bytes())
        data = (place / "state.safetensors").read_bytes()
        seal = record.pop("seal")
        step, digest, values = record["step"], record["sha256"], record["values"]
        is_whole = seal == _seal(record) and digest == sha256_bytes(data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    if not is_whole:
        return None
    return Checkpoint(step=step, tensors=safetensors.torch.load(data), values=values)
