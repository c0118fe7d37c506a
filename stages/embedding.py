"""Embeddings of whole videos: windows that slide over the frames, each through the encoder, averaged over its tokens.

Videos are decoded as the stage ``shard`` decodes them, in a child process under limits, scaled alike, and cut to the square in
their centre. A video that is shorter than a window is looped, as in pretraining, and its repeats count in no average; the last
window of a longer one ends with its last frame, so that every frame is in some window.
"""

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from models.extension import load
from models.grid import Grid
from models.shapes import Float, UInt8
from stages import video
from stages.backends import BackendConfig, Program
from stages.backends._clip_encoder import DESCRIPTION, ClipEncoder, Description, Sampling
from stages.device import device
from stages.encoders import OwnEncoder, VideoEncoder
from stages.errors import ArtifactMissing, ConfigError, MediaError, Reason
from stages.export import describe, load_clip_encoder
from stages.storage.artifact import MANIFEST, Artifact, read_manifest
from stages.storage.embeddings import write_embeddings
from stages.storage.tables import Row
from stages.video_command import ClipConfig, Limits
from stages.video_decode import Crop, Pixels, decode

Backend = Literal["eager", "torch_export", "aot_inductor", "onnx", "tensorrt"]
EAGER: Backend = "eager"
Pooling = Literal["mean", "none"]

_SEGMENT_FRAMES = 128

_REMEDIES = {
    Reason.TOO_SHORT: "it has fewer frames than a token spans; leave it out",
    Reason.TRUNCATED: "fetch or copy it again",
    Reason.CORRUPT: "fetch it again, or mend it with `ffmpeg -i FILE -c:v libx264 MENDED.mp4`",
    Reason.TIMEOUT: "raise --timeout",
    Reason.LIMIT: "cut it into parts",
}
_REMEDY = "give a video file that a player can show, or leave it out"


@dataclasses.dataclass(frozen=True)
class Opened:
    """An encoder that is ready to embed.

    Args:
        encoder: computes tokens.
        description: what frames it takes.
        origin: what is known of where it came from, for the file of embeddings.
    """

    encoder: VideoEncoder
    description: Description
    origin: dict[str, str]


class Windowing(NamedTuple):
    """How videos become clips and clips become rows."""

    stride_frames: int
    """Frames from the start of one window to that of the next."""
    pooling: Pooling = "mean"
    """``mean``: one vector per window; ``none``: all tokens of its recorded frames."""
    batch_clips: int = 8
    """Windows per forward pass."""
    limits: Limits = Limits()
    """What a video may cost."""


class Failure(NamedTuple):
    """A video that gave no embeddings."""

    path: Path
    error: MediaError

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return _REMEDIES.get(self.error.reason, _REMEDY)


class Window(NamedTuple):
    """A clip of a video."""

    path: Path
    frames: Pixels
    """``uint8 [T H W C]``, as many as the encoder takes; repeats behind those that were recorded."""
    start_frame: int
    start_s: float
    end_s: float
    num_frames: int
    """Frames that were recorded."""


# The encoder


def open_encoder(folder: Path, backend: Backend = EAGER, *, num_frames: int | None = None) -> Opened:
    """The encoder in a folder: a pretrain artifact, an export artifact, or one exported form alone.

    Args:
        folder: which.
        backend: what computes; ``eager`` is PyTorch with the network's own weights.
        num_frames: frames of a window; ``None``: those of the encoder. Compiled forms take their own number alone.

    Raises:
        ArtifactMissing: the folder is none of these, or does not hold the form.
        ArtifactDamaged: its files are not those of its manifest.
        ConfigError: the form cannot run here, or takes another number of frames.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        return _open_form(_form_folder(folder, backend), backend, num_frames, origin={"encoder": folder.name})
    made = Artifact(folder, read_manifest(manifest), manifest)
    origin = {"encoder": f"{made.manifest.stage}/{made.fingerprint}", "digest": made.digest}
    if made.manifest.stage == "pretrain":
        if backend != EAGER:
            raise ConfigError(f"{folder} is a pretrained encoder and not exported; run `lvmae export` for --backend {backend}")
        described = describe(made, num_frames=num_frames)
        return _opened(load_clip_encoder(made, described), described, origin)
    if made.manifest.stage != "export":
        raise ArtifactMissing(f"{folder} is an artifact of {made.manifest.stage}; name one of pretrain or export")
    for name in made.manifest.files:
        if name.startswith(f"{_form(backend)}/"):
            made.verified(name)
    return _open_form(_form_folder(folder, backend), backend, num_frames, origin=origin)


def _form(backend: Backend) -> str:
    return "safetensors" if backend == EAGER else backend


def _form_folder(folder: Path, backend: Backend) -> Path:
    """Where a form lies: in a folder of its name, or in the folder itself."""
    inner = folder / _form(backend)
    if (inner / DESCRIPTION).is_file():
        return inner
    if (folder / DESCRIPTION).is_file():
        return folder
    there = sorted(path.parent.name for path in folder.glob(f"*/{DESCRIPTION}"))
    holds = f"it holds {', '.join(there)}" if there else "it holds none"
    raise ArtifactMissing(
        f"{folder}: no form {_form(backend)!r} of an encoder; {holds}; add it to export.backends and export again"
    )


def _open_form(folder: Path, backend: Backend, num_frames: int | None, *, origin: dict[str, str]) -> Opened:
    described = Description.read(folder)
    if backend == EAGER:
        described = described.model_copy(update={"num_frames": num_frames or described.num_frames})
        _check_grid(described)
        return _opened(ClipEncoder.build(described, ClipEncoder.read(folder).encoder.state_dict()), described, origin)
    if num_frames not in (None, described.num_frames):
        raise ConfigError(
            f"the form {backend} in {folder} takes {described.num_frames} frames, not {num_frames}; leave --window-frames out, "
            f"use --backend eager, or export with export.num_frames={num_frames}"
        )
    form: BackendConfig = load("stages.backends", backend)
    return Opened(ProgramEncoder(form.load(folder), described), described, {**origin, "backend": backend})


def _opened(network: ClipEncoder, described: Description, origin: dict[str, str]) -> Opened:
    place = device()
    encoder = OwnEncoder(network.encoder.to(place), described.model.patching, place)
    return Opened(encoder, described, {**origin, "backend": EAGER})


def _check_grid(described: Description) -> Grid:
    try:
        return described.grid
    except ValueError as error:
        raise ConfigError(f"--window-frames {described.num_frames}: {error}") from error


@dataclasses.dataclass(frozen=True)
class ProgramEncoder:
    """An exported program as what evaluation and embedding take.

    Args:
        program: the program.
        description: what clips it takes.
    """

    program: Program
    description: Description

    @property
    def tubelet_frames(self) -> int:
        """Frames of one slot."""
        return self.description.model.patching.tubelet_frames

    def tokens(self, frames: UInt8[Tensor, "B T H W C"], *, layer: int | None) -> Float[Tensor, "B t h w D"]:
        """One vector per token.

        Raises:
            ConfigError: the output of a block is asked for, which no exported program gives.
        """
        if layer is not None:
            raise ConfigError(
                f"an exported program gives its last tokens alone, not those of block {layer}; use the encoder itself"
            )
        grid = self.description.grid
        return rearrange(self.program(frames), "B (t h w) D -> B t h w D", t=grid.t, h=grid.h, w=grid.w)


# Videos to rows


def embed(
    paths: Sequence[Path],
    opened: Opened,
    windowing: Windowing,
    *,
    out: Path,
    finished: Callable[[Path, int, Failure | None], None],
) -> int:
    """Write the embeddings of some videos into one Parquet file, in their order; none is written if no video gives one.

    Args:
        paths: the videos.
        opened: the encoder.
        windowing: how.
        out: the file, which appears whole or not at all and replaces an earlier one.
        finished: told of every video, how many windows it gave, and what was wrong with it.

    Returns:
        the number of rows.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(out.parent) as scratch:
        windows = _all_windows(paths, opened, windowing, scratch=scratch, finished=finished)
        return write_embeddings(out, _rows(windows, opened.encoder, windowing), _facts(opened, windowing))


def _facts(opened: Opened, windowing: Windowing) -> dict[str, Any]:
    described = opened.description
    return {
        **opened.origin,
        "window_frames": described.num_frames,
        "stride_frames": windowing.stride_frames,
        "size_px": described.size_px,
        "sampling": described.sampling.model_dump(mode="json"),
        "pooling": windowing.pooling,
        "width": described.model.encoder.width,
    }


def _rows(windows: Iterable[Window], encoder: VideoEncoder, windowing: Windowing) -> Iterator[Row]:
    waiting = iter(windows)
    while batch := list(itertools.islice(waiting, windowing.batch_clips)):
        tokens = encoder.tokens(torch.from_numpy(np.stack([window.frames for window in batch])), layer=None).float().cpu()
        for window, one in zip(batch, tokens, strict=True):
            yield _row(window, one, encoder.tubelet_frames, windowing.pooling)


def _row(window: Window, tokens: Float[Tensor, "t h w D"], tubelet_frames: int, pooling: Pooling) -> dict[str, Any]:
    vectors = rearrange(tokens[: window.num_frames // tubelet_frames], "t h w D -> (t h w) D")
    kept = vectors.mean(dim=0, keepdim=True) if pooling == "mean" else vectors
    return {
        "path": str(window.path),
        "start_s": window.start_s,
        "end_s": window.end_s,
        "start_frame": window.start_frame,
        "num_frames": window.num_frames,
        "num_tokens": len(kept),
        "embedding": kept.flatten().numpy(),
    }


# Videos to windows


def _all_windows(
    paths: Sequence[Path],
    opened: Opened,
    windowing: Windowing,
    *,
    scratch: Path,
    finished: Callable[[Path, int, Failure | None], None],
) -> Iterator[Window]:
    described = opened.description
    clip = clip_config(described.sampling, min_frames=opened.encoder.tubelet_frames)
    for path in paths:
        with _scratch(scratch) as folder:
            try:
                made = video.cut(path.absolute(), clip=clip, limits=windowing.limits, scratch=folder)
            except MediaError as error:
                finished(path, 0, Failure(path, error))
                continue
            count = 0
            for window in windows_of(path, made, described, stride_frames=windowing.stride_frames):
                count += 1
                yield window
            finished(path, count, None)


def clip_config(sampling: Sampling, *, min_frames: int) -> ClipConfig:
    """The stage ``shard``'s idea of a clip that gives such frames; how long its segments are shows in nothing."""
    return ClipConfig(
        num_frames=max(_SEGMENT_FRAMES, min_frames),
        min_frames=min_frames,
        size_px=sampling.short_side_px,
        fps=sampling.fps,
        frame_stride=sampling.frame_stride,
        motion_vectors=False,
    )


def window_starts(num_frames: int, window_frames: int, stride_frames: int) -> list[int]:
    """First frames of the windows over a video; the last window ends with the last frame, if there are enough."""
    starts = list(range(0, max(1, num_frames - window_frames + 1), stride_frames))
    last = max(0, num_frames - window_frames)
    return starts if starts[-1] == last else [*starts, last]


def windows_of(path: Path, made: video.Cut, described: Description, *, stride_frames: int) -> Iterator[Window]:
    """The windows of a video that was cut, in order; no more of it is in memory than a window and a segment."""
    side, length = described.size_px, described.num_frames
    box = Crop((made.height_px - side) // 2, (made.width_px - side) // 2, side, side)
    total = sum(segment.num_frames for segment in made.segments)
    waiting = iter(made.segments)
    held, first = np.empty((0, side, side, 3), dtype=np.uint8), 0
    for start in window_starts(total, length, stride_frames):
        stop = min(start + length, total)
        while first + len(held) < stop:
            segment = next(waiting)
            held = held[max(0, start - first) :]
            first = segment.start_frame - len(held)
            held = np.concatenate([held, decode(segment.video.read_bytes(), box=box)])
        frames = held[start - first : stop - first]
        yield Window(
            path=path,
            frames=frames if len(frames) == length else frames[np.arange(length) % len(frames)],
            start_frame=start,
            start_s=_shown_s(made, start),
            end_s=round(_shown_s(made, stop - 1) + 1 / made.fps, 6),
            num_frames=len(frames),
        )


def _shown_s(made: video.Cut, frame: int) -> float:
    """When a frame is shown in the source; exact for the first of a segment, by the rate for those behind it."""
    segment = max((one for one in made.segments if one.start_frame <= frame), key=lambda one: one.start_frame)
    return round(segment.start_s + (frame - segment.start_frame) / made.fps, 6)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """An empty folder on the disk of the output, gone afterwards."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=".embed-") as folder:
        yield Path(folder)
