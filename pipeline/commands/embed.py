"""What ``lvmae embed`` does and prints: embeddings of videos in one Parquet file, a bar, and what is wrong with bad ones."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from stages.embedding import Backend, Failure, Pooling, Windowing, embed, open_encoder
from stages.errors import ConfigError
from stages.video_command import Limits


def show_embeddings(
    videos: Sequence[Path],
    *,
    encoder: Path,
    out: Path,
    backend: Backend,
    window_frames: int | None,
    stride_frames: int | None,
    pooling: Pooling,
    batch_clips: int,
    timeout_s: float,
    as_json: bool,
) -> bool:
    """Embed some videos; whether all of them could be.

    Raises:
        ConfigError: the encoder cannot be opened like this, or the output is a folder.
        ArtifactMissing: there is no such encoder.
        ArtifactDamaged: its files are not those that were written.
    """
    if out.is_dir():
        raise ConfigError(f"--out {out} is a folder; name a file in it, such as {out / 'embeddings.parquet'}")
    opened = open_encoder(encoder, backend, num_frames=window_frames)
    stride = stride_frames or opened.description.num_frames
    windowing = Windowing(stride, pooling, batch_clips, Limits(timeout_s=timeout_s))
    lines = sys.stderr if as_json else sys.stdout
    failures: list[Failure] = []
    with Progress(*_columns(), console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("embed", total=len(videos))

        def finished(path: Path, num_windows: int, failure: Failure | None) -> None:
            progress.advance(task)
            failures.extend([failure] if failure else [])
            if as_json:
                _write(sys.stdout, json.dumps(_record(path, num_windows, failure)))
            if failure:
                _write(sys.stderr, f"error: {path}: {failure.error}; {failure.remedy}")

        num_rows = embed(videos, opened, windowing, out=out, finished=finished)
    num_done = len(videos) - len(failures)
    if as_json:
        summary = {"rows": num_rows, "videos": num_done, "failed": len(failures), "out": str(out) if num_rows else None}
        _write(sys.stdout, json.dumps(summary))
    wrote = f"in {out}" if num_rows else "nothing was written"
    _write(
        lines,
        f"{num_rows} windows of {opened.description.num_frames} frames from {num_done} videos, {wrote}"
        + (f"; {len(failures)} videos failed" if failures else ""),
    )
    return not failures


def _record(path: Path, num_windows: int, failure: Failure | None) -> dict[str, Any]:
    error = {"reason": failure.error.reason, "detail": failure.error.detail, "remedy": failure.remedy} if failure else None
    return {"path": str(path), "windows": num_windows, "error": error}


def _columns() -> list[SpinnerColumn | TextColumn | BarColumn | MofNCompleteColumn | TimeRemainingColumn]:
    return [
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    ]


def _write(stream: Any, text: str) -> None:
    stream.write(text + "\n")
    stream.flush()
