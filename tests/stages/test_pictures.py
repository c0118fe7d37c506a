"""A picture shows what it says: real pixels where the encoder saw them, predictions everywhere else."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from einops import rearrange

from stages.batches import ClipFrames
from stages.pictures import RANDOM, TOP, UNUSED, VISIBLE, Painter, Picture, psnr_db
from stages.storage.artifact import Artifact
from stages.storage.index import Index
from stages.storage.targets.reading import TargetReader
from stages.storage.workspace import Workspace
from stages.views import cut, stored_view
from tests.stages import toy

Inputs = Mapping[str, Artifact]


def paint(inputs: Inputs, number: int) -> Picture:
    clip = Index(inputs["shard"])[number]
    targets = TargetReader(inputs["precompute"])
    place = targets.place(clip, 0)
    view, stored = stored_view(place), targets.read(place)
    frames = cut(ClipFrames(inputs["shard"]), clip, view, toy.NUM_FRAMES)
    return Painter.of(inputs, torch.device("cpu")).paint(frames, view, stored)


@pytest.fixture(scope="module")
def picture(toy_inputs: Inputs) -> Picture:
    return paint(toy_inputs, 0)


def blocks(clip: np.ndarray) -> np.ndarray:
    """The pixels of every token, ``[t h w pixels]``."""
    return rearrange(clip, "(t dt) (h dh) (w dw) C -> t h w (dt dh dw C)", dt=2, dh=16, dw=16)


def test_only_the_blocks_that_the_encoder_saw_are_real(picture: Picture) -> None:
    assert picture.predicted is not None
    same = (blocks(picture.predicted) == blocks(picture.original)).all(axis=-1)
    assert (same == (picture.roles == VISIBLE)).all()


def test_the_tokens_are_those_of_a_training_step(picture: Picture) -> None:
    counts = np.bincount(picture.roles.flatten(), minlength=4)
    assert counts[VISIBLE] == 16
    assert (picture.roles == VISIBLE).all(axis=0).sum() == 1, "a tube: the same place in every slot"
    assert 0 < counts[TOP] <= 6
    assert 0 < counts[RANDOM] <= 3
    assert counts[UNUSED] >= 64 - 16 - 9
    chosen = picture.priority[picture.roles == TOP].min()
    assert chosen >= np.sort(picture.priority.flatten())[-6]


def test_a_picture_is_the_same_every_time(toy_inputs: Inputs, picture: Picture) -> None:
    again = paint(toy_inputs, 0)
    assert (again.roles == picture.roles).all()
    assert again.unexplained_share == picture.unexplained_share


def test_a_short_clip_is_chosen_from_where_it_was_recorded(toy_inputs: Inputs) -> None:
    short = paint(toy_inputs, 4)
    assert short.num_recorded_frames == 20
    assert (short.roles[10:] == UNUSED).all()


def test_the_tokenizers_picture_is_rated_on_recorded_frames(picture: Picture) -> None:
    error = np.mean((picture.original / 255 - picture.tokenized / 255) ** 2)
    assert picture.tokenizer_psnr_db == pytest.approx(10 * np.log10(1 / error))
    assert psnr_db(picture.original, picture.original) == 100


def test_a_target_without_codes_has_no_predicted_picture(toy_inputs: Inputs, toy_workspace: Workspace) -> None:
    found = paint({**toy_inputs, "pretrain": toy.pretrained(toy_workspace, toy_inputs, target="pixels")}, 0)
    assert found.predicted is None
    assert found.unexplained_share is None
