"""A graph of PyTorch's operators, by ``torch.export``: runs wherever torch does, on any number of clips, without our code."""

import json
import zipfile
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import ClipEncoder
from stages.backends._tracing import traced
from stages.errors import ArtifactDamaged

PROGRAM = "encoder.pt2"


class Config(BackendConfig):
    """``encoder.pt2`` for ``torch.export.load``, and ``config.json``."""

    name: Literal["torch_export"] = "torch_export"
    """The name in a recipe."""

    def write(self, encoder: ClipEncoder, folder: Path, example: Tensor) -> None:
        """Trace the encoder and save its graph and weights."""
        program = traced(encoder, example, any_batch=True)
        program.example_inputs = None  # they would be stored as a pickle
        torch.export.save(program, folder / PROGRAM)
        encoder.description.write(folder)

    def load(self, folder: Path) -> Program:
        """The graph as a module.

        Raises:
            ArtifactDamaged: the file holds pickles, which could run code, or is no such file.
        """
        path = folder / PROGRAM
        _refuse_pickles(path)
        return Program(torch.export.load(path).module())


def _refuse_pickles(path: Path) -> None:
    """Nothing, when a program is graph and plain numbers: torch unpickles whatever an archive marks as pickled."""
    try:
        with zipfile.ZipFile(path) as archive:
            suspects = [
                member.filename
                for member in archive.infolist()
                if (member.file_size and "/sample_inputs/" in member.filename)
                or ("_config.json" in member.filename and _marks_pickles(archive.read(member)))
            ]
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ArtifactDamaged(f"{path}: no exported program ({error}); export again") from error
    if suspects:
        raise ArtifactDamaged(f"{path}: holds pickled values ({suspects[0]}), which are never loaded; export again")


def _marks_pickles(config: bytes) -> bool:
    entries = json.loads(config).get("config", {})
    return any(entry.get("use_pickle") for entry in entries.values())
