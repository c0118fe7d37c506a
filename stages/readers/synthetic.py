"""Videos of our own making: rendered scenes as real H.264 files, with their labels and the boxes of their objects.

The files are made once and kept below the workspace; what they show is the business of ``stages/readers/_scenes.py``.
"""

import csv
import io
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages import video
from stages.listing import in_order
from stages.places import place_of
from stages.readers import ReaderConfig, Source, _scenes
from stages.readers.folder import LABELS_NAME, read_labels
from stages.scratch import clear_scratch, scratch_folder
from stages.storage.artifact import byte_config
from stages.storage.boxes import write_boxes
from stages.storage.publish import canonical_json, make_folder, publish_bytes, sha256_bytes, sweep
from stages.storage.workspace import Workspace

BOXES_NAME = "boxes.parquet"
VERSION = 2
"""Raised by hand when the same parameters give other pictures."""

_NAME_CHARS = 8
_FIRST_TEST_SCENE = 1_000_000
"""Number of the first test scene: growing the training set never moves a scene from one split to the other."""


class Config(ReaderConfig):
    """A set of rendered videos, any number of them from one seed."""

    EXECUTION: ClassVar[frozenset[str]] = frozenset({"num_workers"})

    name: Literal["synthetic"] = "synthetic"
    """The name in a recipe."""

    scenes: _scenes.Config = _scenes.Config()
    """How scenes look and move, and the seed."""

    num_train: int = Field(default=768, ge=0, le=_FIRST_TEST_SCENE)
    """Videos of the split ``train``."""

    num_test: int = Field(default=256, ge=0)
    """Videos of the split ``test``."""

    fps: float = Field(default=25.0, gt=0)
    """Frames per second that the files state."""

    crf: int = Field(default=16, ge=0, le=51)
    """Quality of H.264, lower is better; low, because the shard stage encodes once more."""

    preset: str = "ultrafast"
    """The encoder's effort, one of x264's presets: the least costs half of the next one's time and a few more bytes."""

    num_workers: int | None = Field(default=None, gt=0)
    """Videos made at a time; null takes the processor cores that this process may use."""

    def dataset_name(self) -> str:
        """The reader's name."""
        return self.name

    def num_to_make(self, workspace: Workspace) -> int:
        """All of them, until the whole set is there."""
        return 0 if (self._folder(workspace) / LABELS_NAME).exists() else self.num_train + self.num_test

    def sources(self, workspace: Workspace) -> Iterable[Source]:
        """The videos, made first where they are missing."""
        folder = self._folder(workspace)
        if not (folder / LABELS_NAME).exists():
            with workspace.hold(folder):
                _make(self, folder, workspace)
        labels = read_labels(folder / LABELS_NAME)
        return [Source(key=key, place=place_of(folder / key), labels=columns) for key, columns in labels.items()]

    def _folder(self, workspace: Workspace) -> Path:
        identity = sha256_bytes(canonical_json({"version": VERSION, "config": byte_config(self)}))
        return workspace.sources_folder(f"{self.name}-{identity[:_NAME_CHARS]}")


class Video(NamedTuple):
    """What is to be made of one scene."""

    key: str
    """Its file below the set's folder."""
    scene: _scenes.Scene
    split: str


def videos(config: Config) -> list[Video]:
    """The videos of a set, in the order of their names."""
    numbers = [("test", number) for number in range(config.num_test)] + [
        ("train", number) for number in range(config.num_train)
    ]
    first = {"train": 0, "test": _FIRST_TEST_SCENE}
    return [
        Video(key=f"videos/{split}-{number:06d}.mp4", scene=_scenes.scene(config.scenes, first[split] + number), split=split)
        for split, number in numbers
    ]


def labels(video: Video, config: _scenes.Config) -> dict[str, str]:
    """The columns of one video: ``class`` needs both ends of the video, the others show learning earlier."""
    drawn = _scenes.labels(video.scene, config.num_motions)
    first, last, marked = (_scenes.MOTIONS[drawn[name]] for name in ("first", "last", "marked"))
    return {
        "path": video.key,
        "class": f"{first}-{last}",
        "split": video.split,
        "group": Path(video.key).stem,
        "first": first,
        "last": last,
        "marked": marked,
        "shape": _scenes.SHAPES[drawn["shape"]],
    }


def _make(config: Config, folder: Path, workspace: Workspace) -> None:
    """Make what is missing of a set; its labels come last and say that it is complete."""
    wanted = videos(config)
    sweep(make_folder(folder))
    workspace.monitor.begin("render videos", total=len(wanted))
    boxes = {}
    clear_scratch(workspace, folder.name)
    with scratch_folder(workspace, folder.name) as scratch:

        def make(wish: Video) -> npt.NDArray[np.float32]:
            return _make_video(wish, config, folder=folder, scratch=scratch)

        num_workers = config.num_workers or len(os.sched_getaffinity(0))
        for wish, box in zip(wanted, in_order(make, wanted, num_workers=num_workers), strict=True):
            boxes[wish.key] = box
            workspace.monitor.advance()
    clear_scratch(workspace, folder.name)
    write_boxes(folder / BOXES_NAME, boxes)
    publish_bytes(folder / LABELS_NAME, _table([labels(wish, config.scenes) for wish in wanted]))


def _make_video(wish: Video, config: Config, *, folder: Path, scratch: Path) -> npt.NDArray[np.float32]:
    """Make the file of one scene unless it lies there; the boxes [T 4] of its object."""
    rendering = _scenes.render(wish.scene, config.scenes)
    path = folder / wish.key
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=scratch) as place:
            data = video.encode(rendering.clip, fps=config.fps, crf=config.crf, preset=config.preset, scratch=Path(place))
        publish_bytes(path, data)
    return rendering.boxes


def _table(rows: list[dict[str, str]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["path"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
