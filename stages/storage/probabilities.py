"""What a network answers that was fine-tuned: one sealed safetensors file per unit, whole or not at all.

A file holds one float32 tensor ``[clips, classes]`` per label. Its header says what it is the answer to, and the sha256 of its
tensors, because a run that continues a killed one reads it before any manifest names it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from safetensors import SafetensorError

from stages.errors import ArtifactDamaged
from stages.storage.publish import canonical_json, publish_bytes

_SEAL = "seal"
"""The one entry of the header, for the library writes several in any order and equal answers shall give equal bytes."""

Probabilities = npt.NDArray[np.float32]
"""One row per clip, ``[clips, classes]``."""


def write(path: Path, found: Mapping[str, Probabilities], *, identity: str) -> None:
    """Publish the answers to one unit; equal ones give equal bytes.

    Args:
        path: the file.
        found: by label.
        identity: digest of all that they follow from.
    """
    tensors = {label: np.ascontiguousarray(rows) for label, rows in found.items()}
    seal = canonical_json({"identity": identity, "sha256": _digest(tensors)}).decode()
    publish_bytes(path, safetensors.numpy.save(tensors, {_SEAL: seal}))


def find(path: Path, *, identity: str) -> dict[str, Probabilities] | None:
    """The answers that an earlier run published; ``None``: there are none.

    Raises:
        ArtifactDamaged: they are damaged, or those to something else.
    """
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            said = json.loads(file.metadata()[_SEAL])
            found = {label: file.get_tensor(label) for label in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ArtifactDamaged(f"{path}: not a whole file ({error}); delete it to train that unit again") from error
    if said["sha256"] != _digest(found):
        raise ArtifactDamaged(f"{path}: its sha256 is not that of its content; delete it to train that unit again")
    if said["identity"] != identity:
        raise ArtifactDamaged(f"{path}: made of other clips, labels or settings; delete it to train that unit again")
    return found


def _digest(tensors: Mapping[str, Probabilities]) -> str:
    digest = hashlib.sha256()
    for label, rows in sorted(tensors.items()):
        digest.update(f"{label} {rows.dtype} {rows.shape}\n".encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
