"""Stage 6: the pretrained encoder in forms that work elsewhere, each compared with the network that it was made of.

A form is the unit of work: it is written, loaded again and compared on a seeded input. One that fails leaves the others; the
same command continues with it. What was measured of its errors is in ``export.json``; times are no bytes of an artifact, and go
into the metrics of the run.
"""

import errno
import functools
import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from models.config import Config as BaseConfig
from models.extension import extension
from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import WEIGHTS, ClipEncoder, Description, Sampling
from stages.backends._measuring import parity, seconds_per_clip
from stages.backends._tracing import placed
from stages.draws import generator
from stages.errors import ConfigError, ExportFailed
from stages.networks import geometry
from stages.preflight import free
from stages.storage import artifact
from stages.storage.artifact import CHECKPOINTS, Artifact, FileRecord, Outcome, Work
from stages.storage.checkpoints import read_tensors
from stages.storage.clips import Dataset
from stages.storage.publish import canonical_json, publish_bytes, sync_tree
from stages.storage.workspace import Workspace

INPUTS = ("pretrain",)
VERSION = 1
RECORD = "export.json"
EAGER = "eager"

_TIMING_LIMIT_S = 30.0
_LEAST_FREE_BYTES = 4096
"""What a disk has at most that is full: one block."""

_log = logging.getLogger(__name__)

Entry = dict[str, Any]
"""What ``export.json`` says of one form."""


class Config(BaseConfig):
    """In which forms the encoder is exported, and how they are compared with it."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"speed_rounds"})

    backends: tuple[extension("stages.backends", BackendConfig), ...] = Field(
        default=("safetensors", "transformers", "torch_export"), min_length=1, validate_default=True
    )
    """The forms. The default ones are quick and take nothing that is not installed."""
    num_frames: int | None = Field(default=None, gt=0)
    """Frames of a clip; null: those of the pretraining. Positions are computed, so that any number works."""
    size_px: int | None = Field(default=None, gt=0)
    """Height and width of a frame; null: those of the pretraining."""
    batch_clips: int = Field(default=2, ge=2)
    """Clips of the probe input, and of programs that take a fixed number: of a single one, tracing would make a constant."""
    seed: int = 0
    """Seed of the probe input."""
    speed_rounds: int = Field(default=3, ge=0)
    """How often each form and the network itself are timed in turn, within half a minute or once; 0 times nothing."""

    @model_validator(mode="after")
    def _names_tell_apart(self) -> Self:
        names = [backend.name for backend in self.backends]
        if len(set(names)) < len(names):
            raise ValueError(f"backends name something twice: {', '.join(names)}")
        return self


class Probe(NamedTuple):
    """What forms are compared on."""

    encoder: ClipEncoder
    frames: Tensor
    expected: Callable[[], Tensor]
    """The network's own tokens, computed when they are first asked for."""


class Made(NamedTuple):
    """One form, written and compared."""

    entry: Entry
    metrics: Mapping[str, float]


def run(config: Config, inputs: Mapping[str, Artifact], workspace: Workspace) -> Outcome:
    """The encoder in every form, one folder each, and ``export.json`` with what was measured of them.

    Raises:
        ConfigError: frames or pixels do not fill whole patches.
        ExportFailed: some forms could not be made; the others are kept, and the next run continues with those.
        ArtifactBusy: another live run makes the same export.
    """
    make = functools.partial(_make, config, inputs["pretrain"], workspace)
    return artifact.produce("export", version=VERSION, config=config, inputs=inputs, workspace=workspace, make=make)


def describe(pretrain: Artifact, *, num_frames: int | None = None, size_px: int | None = None) -> Description:
    """What the encoder of a pretrain artifact is, for clips of its own or of another size.

    Raises:
        ConfigError: frames or pixels do not fill whole patches.
    """
    made = geometry(pretrain)
    frames, side = num_frames or made.views.num_frames, size_px or made.views.size_px
    sampling = _sampling(pretrain, made.views.size_px, side)
    described = Description(model=made.model, num_frames=frames, size_px=side, sampling=sampling)
    try:
        _ = described.grid
    except ValueError as error:
        raise ConfigError(f"num_frames={frames} and size_px={side} do not fit the encoder: {error}") from error
    return described


def load_clip_encoder(pretrain: Artifact, described: Description) -> ClipEncoder:
    """The encoder of a pretrain artifact, for clips as they are described."""
    return ClipEncoder.build(described, read_tensors(pretrain.verified(WEIGHTS)))


def _sampling(pretrain: Artifact, trained_px: int, size_px: int) -> Sampling:
    """How the clips were made that an encoder was trained on, scaled to another size.

    The pretraining names their snapshot; where that is gone, frames are taken as they are and leave no margin.
    """
    made_from = pretrain.manifest.inputs.get("shard")
    workspace = Workspace(pretrain.folder.parents[1])
    snapshots = Dataset(workspace, Path(made_from.path).name).snapshots() if made_from else []
    clip = next((one.manifest.config.get("clip") for one in snapshots if made_from and one.digest == made_from.digest), None)
    if clip is None:
        _log.warning("pretrain=%s its clips are gone, so frames are taken at each video's own rate", pretrain.folder)
        return Sampling(short_side_px=_even(size_px))
    short_side_px = _even(clip["size_px"] * size_px / trained_px)
    return Sampling(fps=clip["fps"], frame_stride=clip["frame_stride"], short_side_px=max(short_side_px, _even(size_px)))


def _even(side_px: float) -> int:
    return 2 * math.ceil(side_px / 2)


def _make(config: Config, pretrain: Artifact, workspace: Workspace, folder: Path) -> Work:
    described = describe(pretrain, num_frames=config.num_frames, size_px=config.size_px)
    encoder = load_clip_encoder(pretrain, described)
    frames = probe(described, config.batch_clips, config.seed)
    entries = {backend.name: entry for backend in config.backends if (entry := finished(folder, backend.name))}
    missing = [backend for backend in config.backends if backend.name not in entries]
    workspace.monitor.begin("export", total=len(config.backends), done=len(entries))
    failures: dict[str, Exception] = {}
    metrics: dict[str, float] = {}
    expected = functools.cache(lambda: encoder(frames))
    for backend in missing:
        try:
            made = _export(backend, Probe(encoder, frames, expected), config=config, folder=folder)
        except Exception as error:
            if free(folder) < _LEAST_FREE_BYTES:  # PyTorch's writer of archives says nothing of the disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error
            _log.info("backend=%s failed", backend.name, exc_info=error)
            failures[backend.name] = error
        else:
            entries[backend.name] = made.entry
            metrics |= made.metrics
            workspace.monitor.advance()
    if failures:
        raise _failed(failures, entries) from next(iter(failures.values()))
    record = _record(config, described, entries)
    publish_bytes(folder / RECORD, json.dumps(record, indent=1).encode())
    counts = {"backends": len(entries), "files": sum(len(entry["files"]) for entry in entries.values())}
    return Work(len(missing), len(entries) - len(missing), counts, metrics)


def probe(described: Description, batch_clips: int, seed: int) -> Tensor:
    """Clips of random pixels, ``uint8 [B T H W C]``."""
    shape = (batch_clips, described.num_frames, described.size_px, described.size_px, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator(seed, "export"))


def _export(backend: BackendConfig, probed: Probe, *, config: Config, folder: Path) -> Made:
    """Write a form, compare it, and lay a record beside the artifact that it is whole.

    Raises:
        ConfigError: the form cannot hold this encoder, or something is missing here.
        ExportFailed: its tokens are not those of the encoder.
    """
    backend.check(probed.encoder.description.model)
    backend.require()
    place = folder / backend.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    backend.write(probed.encoder, place, probed.frames)
    entry: Entry = {"config": backend.model_dump(mode="json"), "parity": None, "unchecked": backend.unchecked}
    metrics: Mapping[str, float] = {}
    if backend.unchecked is None:
        program = backend.load(place)
        entry["parity"] = _compared(backend, program, probed)
        rounds = 0 if backend.is_network else config.speed_rounds
        metrics = _timed(backend.name, program, probed, rounds=rounds)
    sync_tree(place)
    files = sorted(path for path in place.rglob("*") if path.is_file())
    entry["files"] = {path.relative_to(place).as_posix(): FileRecord.of(path).model_dump() for path in files}
    spelled = canonical_json(entry)
    publish_bytes(_record_path(folder, backend.name), spelled)
    return Made(json.loads(spelled), metrics)  # in the order in which a later run would find it


def _compared(backend: BackendConfig, program: Program, probed: Probe) -> dict[str, float]:
    found = parity(program(probed.frames), probed.expected())
    if found.max_relative_error > backend.tolerance:
        raise ExportFailed(
            f"its tokens differ by {found.max_relative_error:.2g} of the largest, {backend.tolerance:.2g} is allowed; "
            "compile it in fp32, or leave it out of export.backends"
        )
    return found._asdict()


def _timed(name: str, program: Program, probed: Probe, *, rounds: int) -> dict[str, float]:
    """Seconds per clip of a form and of the network, on the form's device, and how often the one goes into the other."""
    if not rounds:
        return {}
    ways: dict[str, Callable[[Tensor], Tensor]] = {EAGER: placed(probed.encoder, program.device, "fp32"), name: program}
    frames = probed.frames.to(program.device)
    spent = seconds_per_clip(ways, frames, rounds=rounds, device=program.device, limit_s=_TIMING_LIMIT_S)
    return {f"{name}_s_per_clip": spent[name], f"{name}_vs_eager": spent[EAGER] / max(spent[name], 1e-9)}


def _record_path(folder: Path, name: str) -> Path:
    return folder / CHECKPOINTS / f"{name}.json"


def finished(folder: Path, name: str) -> Entry | None:
    """What an interrupted run left of a form, if all its files are as they were then."""
    path = _record_path(folder, name)
    if not path.exists():
        return None
    entry: Entry = json.loads(path.read_bytes())
    whole = all(
        (file := folder / name / spelled).is_file() and FileRecord.of(file).model_dump() == record
        for spelled, record in entry["files"].items()
    )
    return entry if whole else None


def _failed(failures: Mapping[str, Exception], entries: Mapping[str, Entry]) -> ExportFailed:
    reasons = "\n".join(f"  {name}: {_first_line(error)}" for name, error in failures.items())
    kept = f"; kept are {', '.join(entries)}" if entries else ""
    return ExportFailed(
        f"{len(failures)} of {len(failures) + len(entries)} forms of the encoder could not be made{kept}. Mend what is "
        f"said here and run the same command again, which continues with them; --verbose says more:\n{reasons}"
    )


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    said = text[0] if text else "no reason given"
    return said if isinstance(error, ConfigError | ExportFailed) else f"{type(error).__name__}: {said}"


def _record(config: Config, described: Description, entries: Mapping[str, Entry]) -> dict[str, Any]:
    return {
        "encoder": described.model_dump(mode="json", exclude={"batch_clips"}),
        "input": "frames uint8 [B T H W C], RGB, in the order in which they were recorded",
        "output": "tokens float32 [B N D], N = (time, row, column), after the final norm",
        "probe": {"seed": config.seed, "batch_clips": config.batch_clips},
        "backends": {backend.name: entries[backend.name] for backend in config.backends},
    }
