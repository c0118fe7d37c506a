"""Encoders of others from local files: folders of transformers' own making, original checkpoints, and what is refused."""

import argparse
import hashlib
import json
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from models.vit import PIXEL_MEAN, PIXEL_STD
from stages.encoders import VideoEncoder
from stages.errors import ConfigError
from stages.foreign import ForeignConfig
from stages.foreign_encoder import windows
from tests.models.test_foreign_weights import CASES, original, published_names

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
CASE = CASES["patches of 16"]
FRAMES, SIZE_PX = CASE.num_frames, CASE.size_px


def videomae(architecture="VideoMAEModel", **changed):
    torch.manual_seed(0)
    return getattr(transformers, architecture)(CASE.peer_config(**{"use_mean_pooling": False, **changed})).eval()


def vjepa2(architecture="VJEPA2Model"):
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=24,
        frames_per_clip=6,
        hidden_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        pred_num_mask_tokens=1,
        num_pooler_layers=1,
    )
    return getattr(transformers, architecture)(config).eval()


def saved(module, folder, **options):
    module.save_pretrained(folder, **options)
    return folder


def loaded(path, form="videomae", **fields):
    return ForeignConfig(name="theirs", form=form, path=str(path), **fields).load(CPU)


def frames_of(num_frames, size_px=SIZE_PX, seed=0):
    shape = (2, num_frames, size_px, size_px, 3)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pixel_values(frames, mean=PIXEL_MEAN, deviation=PIXEL_STD):
    """As the peer's processor gives frames of its own size."""
    return ((frames / 255 - torch.tensor(mean)) / torch.tensor(deviation)).permute(0, 1, 4, 2, 3)


@torch.no_grad()
def theirs(backbone, frames, **statistics):
    if isinstance(backbone, transformers.VJEPA2Model):
        return backbone(pixel_values(frames, **statistics), skip_predictor=True).last_hidden_state
    return backbone(pixel_values(frames, **statistics)).last_hidden_state


def agree(found, expected):
    assert expected.std() > 0.1, "numbers near zero would agree anyway"
    torch.testing.assert_close(found.flatten(1, 3), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"])
def test_a_folder_of_videomae_gives_the_peers_tokens(architecture, tmp_path):
    peer = videomae(architecture)
    encoder: VideoEncoder = loaded(saved(peer, tmp_path))
    frames = frames_of(FRAMES)
    tokens = encoder.tokens(frames, layer=None)
    assert tokens.shape == (2, 2, 3, 3, 32)
    assert encoder.tubelet_frames == 2
    agree(tokens, theirs(getattr(peer, "videomae", peer), frames))


def test_a_folder_of_a_fine_tuned_videomae_gives_tokens_under_its_norm(tmp_path):
    peer = videomae("VideoMAEForVideoClassification", use_mean_pooling=True)
    with torch.no_grad():
        peer.fc_norm.weight += torch.linspace(0, 1, 32)
    encoder, frames = loaded(saved(peer, tmp_path)), frames_of(FRAMES)
    raw = theirs(peer.videomae, frames)
    agree(encoder.tokens(frames, layer=2), raw)
    agree(encoder.tokens(frames, layer=None), peer.fc_norm(raw).detach())


@pytest.mark.parametrize("architecture", ["VJEPA2Model", "VJEPA2ForVideoClassification"])
def test_a_folder_of_vjepa2_gives_the_peers_tokens(architecture, tmp_path):
    peer, frames = vjepa2(architecture), frames_of(6, size_px=24)
    encoder = loaded(saved(peer, tmp_path), "vjepa2")
    assert (encoder.num_frames, encoder.size_px) == (6, 24)
    agree(encoder.tokens(frames, layer=None), theirs(getattr(peer, "vjepa2", peer), frames))


def test_weights_in_several_files_are_the_weights_in_one(tmp_path):
    peer = videomae()
    several = saved(peer, tmp_path / "several", max_shard_size="20KB")
    files = sorted(several.glob("*.safetensors"))
    assert len(files) > 2
    assert not (several / "model.safetensors").exists()
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    encoder = loaded(several, sha256=digest)
    agree(encoder.tokens(frames_of(FRAMES), layer=None), theirs(peer, frames_of(FRAMES)))
    files[1].unlink()
    with pytest.raises(
        ConfigError, match=rf"index\.json: names {files[1].name}, which is no \.safetensors file .*fetch the folder"
    ):
        loaded(several)


def test_an_index_leads_nowhere_else(tmp_path):
    outside = saved(videomae(), tmp_path / "outside") / "model.safetensors"
    (tmp_path / "folder").mkdir()
    index = {"weight_map": {"layernorm.weight": "../outside/model.safetensors"}}
    (tmp_path / "folder" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert outside.is_file()
    with pytest.raises(ConfigError, match=r"which is no \.safetensors file in"):
        loaded(tmp_path / "folder")


SIZES = {"num_frames": FRAMES, "size_px": SIZE_PX, "num_heads": CASE.num_heads}


@pytest.fixture
def pretrained():
    return videomae("VideoMAEForPreTraining", layer_norm_eps=1e-6)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("wrapper", ["model", "module", None])
def test_an_original_checkpoint_with_the_arguments_of_its_training_gives_the_same_tokens(pretrained, wrapper, is_zip, tmp_path):
    tensors = original(published_names(pretrained), "encoder.")
    whole = {wrapper: tensors, "epoch": 3, "args": argparse.Namespace(lr=0.1, betas=[0.9, 0.95])} if wrapper else tensors
    torch.save(whole, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=is_zip)
    encoder = loaded(tmp_path / "checkpoint.pth", **SIZES)
    agree(encoder.tokens(frames_of(FRAMES), layer=None), theirs(pretrained.videomae, frames_of(FRAMES)))


def test_a_folder_of_videomae_v2_says_its_size_in_its_own_way(tmp_path):
    peer = videomae("VideoMAEForVideoClassification", use_mean_pooling=True, layer_norm_eps=1e-6)
    peer.fc_norm.eps = 1e-6
    tensors = original(published_names(peer), "model.")
    save_file({name: value.clone() for name, value in tensors.items() if "head." not in name}, tmp_path / "model.safetensors")
    described = {"num_heads": 4, "num_frames": FRAMES, "img_size": SIZE_PX, "layer_norm_eps": 1e-6, "cos_attn": False}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "VideoMAEv2_Base", "model_config": described}))
    encoder = loaded(tmp_path, "videomae_v2")
    raw = theirs(peer.videomae, frames_of(FRAMES))
    agree(encoder.tokens(frames_of(FRAMES), layer=None), peer.fc_norm(raw).detach())
    (tmp_path / "config.json").write_text(json.dumps({"model_config": described | {"cos_attn": True}}))
    with pytest.raises(ConfigError, match="cos_attn True; only GELU and plain attention"):
        loaded(tmp_path, "videomae_v2")


@pytest.mark.parametrize("num_frames", [2, 4, 6, 16, 18, 30, 32, 50])
@pytest.mark.parametrize("window_frames", [4, 16])
def test_every_frame_is_kept_once_and_every_window_is_whole(num_frames, window_frames):
    found = windows(num_frames, window_frames)
    kept = [frame for window in found for frame in range(window.start + window.num_seen, window.stop)]
    assert kept == list(range(num_frames))
    assert {window.stop - window.start for window in found} == {min(num_frames, window_frames)}


def test_a_long_clip_is_seen_window_by_window_and_its_rest_by_the_last_frames(tmp_path):
    peer = videomae()
    encoder, frames = loaded(saved(peer, tmp_path)), frames_of(2 * FRAMES + 2)
    rest = theirs(peer, frames[:, -FRAMES:])[:, -9:]
    expected = torch.cat([theirs(peer, frames[:, :FRAMES]), theirs(peer, frames[:, FRAMES : 2 * FRAMES]), rest], dim=1)
    tokens = encoder.tokens(frames, layer=None)
    assert tokens.shape[1] == 5
    agree(tokens, expected)
    alone = theirs(videomae(num_frames=2), frames[:, -2:])
    assert not torch.allclose(rest, alone, atol=1e-3), "the rest must have seen what is before it"


def test_a_clip_shorter_than_the_window_is_seen_as_long_as_it_is(tmp_path):
    encoder, shorter = loaded(saved(videomae(), tmp_path)), videomae(num_frames=2)
    agree(encoder.tokens(frames_of(2), layer=None), theirs(shorter, frames_of(2)))


def test_a_recipe_may_ask_for_another_length_and_size_than_the_folder_says(tmp_path):
    larger = videomae(num_frames=2 * FRAMES, image_size=2 * SIZE_PX)
    encoder = loaded(saved(videomae(), tmp_path), num_frames=2 * FRAMES, size_px=2 * SIZE_PX)
    frames = frames_of(2 * FRAMES, size_px=2 * SIZE_PX)
    agree(encoder.tokens(frames, layer=None), theirs(larger, frames))


def test_frames_of_another_size_are_resized_before_they_are_seen(tmp_path):
    peer, frames = videomae(), frames_of(FRAMES, size_px=80)
    flat = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    smaller = functional.interpolate(flat, size=(SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
    seen = smaller.permute(0, 2, 3, 1).unflatten(0, (2, FRAMES))
    agree(loaded(saved(peer, tmp_path)).tokens(frames, layer=None), theirs(peer, seen))


@pytest.mark.parametrize("shape", [(1, 3, 48, 48, 3), (1, 4, 48, 32, 3), (1, 0, 48, 48, 3)])
def test_frames_that_fill_no_slots_or_are_not_square_are_refused(shape, tmp_path):
    encoder = loaded(saved(videomae(), tmp_path))
    with pytest.raises(
        ValueError, match=rf"{shape[1]} frames of {shape[2]}x{shape[3]} px; expected square frames, in slots of 2"
    ):
        encoder.tokens(torch.zeros(shape, dtype=torch.uint8), layer=None)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "video_preprocessor_config.json"])
def test_pixels_are_normalised_as_the_preprocessor_says(name, tmp_path):
    peer, frames = videomae(), frames_of(FRAMES)
    saved(peer, tmp_path)
    described = {"image_mean": [0.5, 0.4, 0.3], "image_std": 0.25}
    (tmp_path / name).write_text(json.dumps(described))
    expected = theirs(peer, frames, mean=[0.5, 0.4, 0.3], deviation=[0.25] * 3)
    agree(loaded(tmp_path).tokens(frames, layer=None), expected)
    (tmp_path / name).write_text(json.dumps(described | {"do_normalize": False}))
    agree(loaded(tmp_path).tokens(frames, layer=None), theirs(peer, frames, mean=[0.0] * 3, deviation=[1.0] * 3))
    (tmp_path / name).write_text(json.dumps({"image_mean": [0.5, 0.5]}))
    with pytest.raises(ConfigError, match=rf"{name}: image_mean and image_std must be a number or three, found \[0\.5, 0\.5\]"):
        loaded(tmp_path)


def test_the_digest_is_checked_before_anything_is_read(tmp_path):
    folder = saved(videomae(), tmp_path)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    loaded(folder, sha256=digest)
    (folder / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(
        ConfigError, match=rf"{folder}: the sha256 of its weights is [0-9a-f]{{64}}, the recipe says {digest}; if"
    ):
        loaded(folder, sha256=digest)


def test_what_was_left_open_is_filled_in_from_the_files(tmp_path):
    folder = saved(videomae(), tmp_path)
    found = ForeignConfig(name="theirs", form="videomae", path=str(folder)).resolved()
    assert found.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (found.num_frames, found.size_px, found.num_heads) == (FRAMES, SIZE_PX, CASE.num_heads)
    assert found.resolved() == found
    kept = ForeignConfig(name="theirs", form="vjepa2", path=str(folder / "model.safetensors"), num_frames=8).resolved()
    assert (kept.num_frames, kept.size_px, kept.num_heads) == (8, 256, None)


class Touch:
    """What an attacker hides in a pickle: something that is called when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("hidden", ["beside the weights", "among the weights", "in the arguments", "instead of the weights"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(pretrained, hidden, is_zip, tmp_path):
    canary = tmp_path / "canary"
    touch = Touch(canary)
    pickle.loads(pickle.dumps(touch))
    assert canary.exists(), "the pickle must be one that runs code"
    canary.unlink()
    tensors = original(published_names(pretrained), "encoder.")
    whole = {
        "beside the weights": {"model": tensors, "optimizer": touch},
        "among the weights": {"model": {**tensors, "encoder.extra": touch}},
        "in the arguments": {"model": tensors, "args": argparse.Namespace(hook=touch)},
        "instead of the weights": touch,
    }[hidden]
    path = tmp_path / "checkpoint.pth"
    torch.save(whole, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        ConfigError, match=rf"{path}: refused, .*more than tensors and plain values \(.*convert it to safetensors"
    ):
        loaded(path, **SIZES)
    assert not canary.exists()


def test_after_a_refusal_nothing_more_is_allowed_than_before(tmp_path):
    torch.save({"model": Touch(tmp_path / "canary")}, tmp_path / "checkpoint.pth")
    before = set(torch.serialization.get_safe_globals())
    with pytest.raises(ConfigError):
        loaded(tmp_path / "checkpoint.pth", **SIZES)
    assert set(torch.serialization.get_safe_globals()) == before
    assert argparse.Namespace not in before


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
@pytest.mark.parametrize("damage", ["cut short", "text", "empty"])
def test_a_file_that_is_not_whole_is_named(suffix, damage, tmp_path):
    path = tmp_path / f"weights{suffix}"
    tensors = {"encoder.norm.weight": torch.ones(4000)}
    if suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)
    content = path.read_bytes()
    path.write_bytes({"cut short": content[: len(content) // 2], "text": b"not weights, a web page", "empty": b""}[damage])
    with pytest.raises(ConfigError, match=re.escape(f"{path}: ")):
        loaded(path, **SIZES)


def test_what_is_not_there_or_no_weights_is_named_with_what_was_expected(tmp_path):
    with pytest.raises(
        ConfigError, match=r"missing: not there; give a folder of Hugging Face or one local file .*nothing is down"
    ):
        loaded(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(ConfigError, match=r"notes\.txt: not a file of weights"):
        loaded(tmp_path / "notes.txt")
    with pytest.raises(ConfigError, match=r"no model\.safetensors, .* in this folder; it has notes\.txt; correct the path"):
        loaded(tmp_path)
    torch.save({"epoch": 3, "loss": 0.5}, tmp_path / "numbers.pth")
    with pytest.raises(ConfigError, match=r"numbers\.pth: no weights; expected a dictionary of tensors, .*; found epoch, loss"):
        loaded(tmp_path / "numbers.pth")


def test_weights_of_another_form_are_refused_with_the_form_that_they_have(tmp_path):
    theirs_folder, other_folder = saved(vjepa2(), tmp_path / "vjepa2"), saved(videomae(), tmp_path / "videomae")
    with pytest.raises(
        ConfigError, match=r"no name ends in .*; the names look like those of form vjepa2, the recipe says videomae:"
    ):
        loaded(theirs_folder, "videomae")
    with pytest.raises(
        ConfigError, match=r"the names look like those of form videomae \(or videomae_v2\), the recipe says vjepa2"
    ):
        loaded(other_folder, "vjepa2")
    loaded(other_folder, "videomae_v2")
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"found fc\.weight; form videomae was asked for; correct path or form"):
        loaded(tmp_path / "other.safetensors")


def test_heads_that_nothing_tells_must_be_said(tmp_path):
    for form, peer in (("videomae", videomae()), ("vjepa2", vjepa2())):
        file = saved(peer, tmp_path / form) / "model.safetensors"
        with pytest.raises(ConfigError, match=r"no tensor tells how many attention heads share the width.*set num_heads"):
            loaded(file, form)
        with pytest.raises(ConfigError, match="does not divide into num_heads 5"):
            loaded(file, form, num_heads=5)


def test_lengths_and_sizes_that_do_not_fit_are_refused(tmp_path):
    folder = saved(videomae(), tmp_path)
    with pytest.raises(ConfigError, match="5 frames do not divide into tubelets of 2 frames"):
        loaded(folder, num_frames=5)
    with pytest.raises(ConfigError, match="a side of 50 px does not divide into patches of 16 px"):
        loaded(folder, size_px=50)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"image_size": [48, 32]}))
    with pytest.raises(ConfigError, match=r"config\.json: size_px: Input should be a valid integer; correct it"):
        loaded(folder)
    (folder / "config.json").write_text(json.dumps(described | {"image_size": [48, 48]}))
    assert loaded(folder).size_px == 48
    (folder / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json: not JSON"):
        loaded(folder)


def test_an_activation_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json: hidden_act 'relu'"):
        loaded(saved(videomae(hidden_act="relu"), tmp_path))


def test_an_older_folder_with_a_pickle_alone_is_read_as_tensors(tmp_path):
    peer = videomae()
    tensors = load_file(saved(peer, tmp_path) / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    agree(loaded(tmp_path).tokens(frames_of(FRAMES), layer=None), theirs(peer, frames_of(FRAMES)))
