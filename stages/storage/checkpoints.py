"""Checkpoints: tensors in safetensors and plain values in JSON, one fresh folder per step, never a pickle.

A checkpoint exists when its ``state.json`` does, which is written last, holds the tensors' sha256 and is sealed with its own. A
damaged newest one is passed over for the one before it; at least two are kept.
"""

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from stages.storage.artifact import CHECKPOINTS
from stages.storage.publish import appearing, canonical_json, publish_bytes, sha256_bytes, sha256_file

KEEP = 2
_TENSORS = "state.safetensors"

_log = logging.getLogger(__name__)


class Checkpoint(NamedTuple):
    """The whole state of a training at one step."""

    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint of the artifact in ``folder`` and drop all but the newest two."""
    place = folder / CHECKPOINTS / f"step-{checkpoint.step:08d}"
    digest = write_tensors(place / _TENSORS, checkpoint.tensors)
    record = {"step": checkpoint.step, "sha256": digest, "values": checkpoint.values}
    publish_bytes(place / "state.json", canonical_json({**record, "seal": _seal(record)}))
    kept = _places(folder)[-KEEP:]
    for old in set((folder / CHECKPOINTS).glob("step-*")).difference(kept):  # halves that a killed run left among them
        shutil.rmtree(old)


def load_newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, or ``None`` to start from the beginning; damaged ones are set aside."""
    found = _newest(folder)
    if found is None:
        return None
    place, record = found
    return Checkpoint(record["step"], read_tensors(place / _TENSORS), record["values"])


def newest_step(folder: Path) -> int:
    """The step that a training would continue from; 0 without a whole checkpoint."""
    found = _newest(folder)
    return found[1]["step"] if found else 0


def whole_step(folder: Path) -> int:
    """The same for who only asks: nothing is set aside."""
    found = (_whole(place) for place in reversed(_places(folder)))
    return next((record["step"] for record in found if record), 0)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file."""
    return safetensors.torch.load_file(path, backend="pread")  # mapped into memory, a file that is cut later ends the process


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Publish tensors as a safetensors file, without a copy of those that lie in main memory; equal tensors give equal bytes.

    Returns:
        the sha256 of the file, which was read back and holds what was to be written.

    Raises:
        OSError: it could not be written, or does not read back.
    """
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with appearing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            safetensors.torch.save_file(kept, temporary)
        except SafetensorError as error:  # the library has no other for a full disk
            raise OSError(f"{path}: {error}") from error
        temporary.chmod(mode)  # the library lets nobody else read
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
    with safetensors.safe_open(path, framework="pt", backend="pread") as file:
        damaged = [name for name, value in kept.items() if not torch.equal(_raw(file.get_tensor(name)), _raw(value))]
    if damaged:
        raise OSError(f"{path}: {', '.join(damaged)} do not read back as written")
    return sha256_file(path)


def _raw(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The place and the record of the newest whole checkpoint, after setting aside those that are newer and damaged."""
    damaged: list[Path] = []
    found = None
    for place in reversed(_places(folder)):
        record = _whole(place)
        if record:
            found = place, record
            break
        damaged.append(place)
    rest = f"going on from {found[0]}" if found else "there is none before it"
    for bad in damaged:
        _log.warning("checkpoint=%s damaged, set aside as %s; %s", bad, _set_aside(bad), rest)
    return found


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


def _whole(place: Path) -> dict[str, Any] | None:
    """The record of a checkpoint; ``None`` if it or the tensors are damaged."""
    try:
        record: dict[str, Any] = json.loads((place / "state.json").read_bytes())
        seal = record.pop("seal")
        is_whole = seal == _seal(record) and record["sha256"] == sha256_file(place / _TENSORS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return record if is_whole and record.keys() == {"step", "sha256", "values"} else None
