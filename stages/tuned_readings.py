"""Fine-tuning as one more reader of an evaluation: what the pretrained encoder says, and the same untrained, after training.

Source: arXiv 2411.13683 reports fine-tuned accuracies, as the mean of three seeds; verb and noun of EPIC-KITCHENS-100 are
learned by one network.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from stages.features import PRETRAINED
from stages.fine_tuning import Asked, Config, Lesson, fine_tuned, unit_name
from stages.multi_view import Footage, MultiViewConfig
from stages.networks import geometry, load_encoder, untrained_encoder
from stages.progress import Monitor
from stages.protocol import Question, Split
from stages.reading import Readings
from stages.storage.artifact import Artifact

NAME = "fine_tuning"
"""The reader's name in tables and files."""
TITLE = "fine-tuning"
UNTRAINED = "untrained"


def pretrained_runs(config: Config | None) -> list[str]:
    """The names of the pretrained encoder's runs, the first of which every probe has too."""
    return [PRETRAINED, *(f"{PRETRAINED}-{seed}" for seed in (config.seeds[1:] if config else ()))]


def untrained_run(seed: int) -> str:
    """The name of an untrained encoder's run."""
    return f"{UNTRAINED}-{seed}"


def read_fine_tuned(
    config: Config,
    questions: Sequence[Question],
    pretrain: Artifact,
    *,
    footage: Footage,
    views: MultiViewConfig,
    folder: Path,
    monitor: Monitor,
) -> Readings:
    """The probability of every class for every tested clip, by label and run.

    Args:
        config: how to train.
        questions: the labels.
        pretrain: whose encoder is fine-tuned, and its architecture untrained.
        footage: what clips show.
        views: how many views of a tested clip are averaged over.
        folder: the evaluation's.
        monitor: told of every step.
    """
    readings: Readings = {}
    made = geometry(pretrain)
    for run, seed in zip(pretrained_runs(config), config.seeds, strict=True):
        for name, encoder in ((run, load_encoder(pretrain)), (untrained_run(seed), untrained_encoder(pretrain, seed))):
            for asked in _together(questions):
                found = [
                    fine_tuned(
                        config,
                        _lesson(asked, split, number, name, seed, footage, views),
                        encoder=encoder,
                        geometry=made,
                        frames=footage.frames,
                        folder=folder,
                        seed=seed,
                        monitor=monitor,
                    )
                    for number, split in enumerate(asked[0].splits)
                ]
                for one in asked:
                    readings[one.label, NAME, name] = np.concatenate([answer[one.label] for answer in found])
    return readings


def _together(questions: Sequence[Question]) -> list[list[Question]]:
    """The questions that one network learns: the parts of a joint one, where the same clips carry all of them."""
    left = {one.label: one for one in questions if not one.asking.parts}
    found = []
    for joint in questions:
        parts = [left[label] for label in joint.asking.parts if label in left]
        if parts and all(np.array_equal(one.rows, joint.rows) for one in parts):
            found.append(parts)
            left = {label: one for label, one in left.items() if label not in joint.asking.parts}
    return [*found, *([one] for one in left.values())]


def _lesson(
    asked: Sequence[Question], split: Split, number: int, run: str, seed: int, footage: Footage, views: MultiViewConfig
) -> Lesson:
    clips = asked[0].clips
    tested = [clips[place] for place in split.test]
    return Lesson(
        name=unit_name("+".join(one.label for one in asked), run, split=number, seed=seed),
        train=[clips[place] for place in split.train],
        test=tested,
        asked=tuple(Asked(one.label, one.truth[split.train], not one.asking.is_multi_label) for one in asked),
        views={clip.clip_id: footage.views(clip, views) for clip in tested},
    )
