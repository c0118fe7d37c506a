"""Local files that hold an encoder of others: a folder of Hugging Face, or one file of weights.

Weights are read as tensors alone: safetensors, and PyTorch's own files with the unpickler that knows tensors and plain values
and refuses whatever could run code.
"""

import argparse
import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from models.vit import PIXEL_MEAN, PIXEL_STD
from stages.errors import ConfigError
from stages.storage.checkpoints import read_tensors

SAFETENSORS = ".safetensors"
PYTORCH = (".pth", ".pt", ".bin")

_WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_OLD = "pytorch_model.bin"
_PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
_WRAPPERS = ("model", "module", "state_dict")
_NOT_PLAIN = "it is no file of torch.save, or holds more than tensors and plain values"
_CONVERT = "where you trust its origin, convert it to safetensors as docs/encoders.md says"


class Statistics(NamedTuple):
    """Of R, G and B in [0, 1]: what is taken from pixels, and what they are divided by then."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights, by name.

    Raises:
        ConfigError: there is none, or one that an index names is missing.
    """
    if path.is_file() and path.suffix in (SAFETENSORS, *PYTORCH):
        return [path]
    if path.is_dir():
        if (path / _INDEX).is_file():
            return _indexed(path)
        for name in (_WHOLE, _OLD):
            if (path / name).is_file():
                return [path / name]
        found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{path}: no {_WHOLE}, {_INDEX} or {_OLD} in this folder; it has {found}; correct the path")
    kinds = ", ".join((SAFETENSORS, *PYTORCH))
    reason = "not a file of weights" if path.exists() else "not there"
    raise ConfigError(f"{path}: {reason}; give a folder of Hugging Face or one local file ({kinds}); nothing is downloaded")


def digest(files: Sequence[Path]) -> str:
    """The sha256 in hex of the bytes of all files, one after another: of one file, its own."""
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()


def read_weights(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of all files.

    Raises:
        ConfigError: a file cannot be read, holds more than tensors and plain values, or has no tensors.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= _safetensors(path) if path.suffix == SAFETENSORS else _pytorch(path)
    return tensors


def read_description(path: Path) -> dict[str, Any]:
    """What the ``config.json`` of a folder says; nothing for a single file or a folder without."""
    return _json(path / "config.json") if (path / "config.json").is_file() else {}


def read_statistics(path: Path) -> Statistics:
    """What a folder's preprocessor normalises pixels with; ImageNet's where it has none."""
    for name in _PREPROCESSORS:
        if not (path / name).is_file():
            continue
        described = _json(path / name)
        if described.get("do_normalize") is False:
            return Statistics((0.0,) * 3, (1.0,) * 3)
        mean, deviation = described.get("image_mean", PIXEL_MEAN), described.get("image_std", PIXEL_STD)
        return Statistics(_colours(mean, path / name), _colours(deviation, path / name))
    return Statistics(PIXEL_MEAN, PIXEL_STD)


def _indexed(folder: Path) -> list[Path]:
    index = folder / _INDEX
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise ConfigError(f"{index}: names no files of weights (weight_map); fetch the folder again")
    files = [folder / name for name in sorted(set(map(str, named.values())))]
    for path in files:
        if path.parent != folder or path.suffix != SAFETENSORS or not path.is_file():
            raise ConfigError(f"{index}: names {path.name}, which is no {SAFETENSORS} file in {folder}; fetch the folder again")
    return files


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except SafetensorError as error:
        raise ConfigError(f"{path}: not a safetensors file ({error}); fetch it again, or correct the path") from error


def _pytorch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``, which published checkpoints keep beside the arguments of their training."""
    mapped = zipfile.is_zipfile(path)  # in the older form nothing can be left unread
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise ConfigError(f"{path}: refused, {_NOT_PLAIN} ({_reason(error)}); fetch it again, or {_CONVERT}") from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a whole file of torch.save ({_reason(error)}); fetch it again") from error
    return _unwrapped(loaded, path)


def _unwrapped(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict itself, in none or one of the wrappers that training scripts put around it."""
    inner = loaded
    if isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in _WRAPPERS if isinstance(loaded.get(name), Mapping)), loaded)
    found = {name: value for name, value in inner.items() if isinstance(value, Tensor)} if isinstance(inner, Mapping) else {}
    if not found:
        held = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded).__name__
        raise ConfigError(
            f"{path}: no weights; expected a dictionary of tensors, alone or under {', '.join(_WRAPPERS)}; found {held}"
        )
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}); fetch it again") from error
    if not isinstance(described, dict):
        raise ConfigError(f"{path}: not a JSON object; fetch it again")
    return described


def _colours(value: Any, path: Path) -> tuple[float, ...]:
    values = value if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3 or not all(isinstance(one, int | float) for one in values):
        raise ConfigError(f"{path}: image_mean and image_std must be a number or three, found {value!r}; correct the file")
    return tuple(map(float, values))


def _reason(error: Exception) -> str:
    """The first sentence of what went wrong, without PyTorch's advice to load the file in spite of it."""
    said = str(error).rpartition("WeightsUnpickler error:")[2].strip() or str(error).strip()
    return said.partition("\n")[0].partition(". ")[0] or type(error).__name__
