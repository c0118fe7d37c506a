"""The tokenizer stage on a few clips: trained, given as a file, refused."""

import dataclasses
import functools
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pydantic import ValidationError

from models.perceptual import PerceptualDistance, ResNet, Size
from models.tokenizers.linear import Config as Linear
from stages import rebuilding, tokenizer
from stages.errors import ConfigError, TokenizerCollapsed
from stages.networks import load_tokenizer
from stages.progress import Monitor, Silent
from stages.storage.artifact import Artifact
from stages.storage.workspace import Workspace
from tests.stages import toy

NETWORK = {
    "name": "adaptive", "top_k": 0.5, "base_channels": 8, "channel_multipliers": [1, 1], "stem_patch_px": 8,
    "scorer_channels": 8, "num_res_blocks": 1, "quantizer": {"name": "fsq", "levels": [5, 4, 3]},
}  # fmt: skip
STEPS = {"num_steps": 4, "batch_clips": 2, "learning_rate": 1e-3, "log_every_steps": 1, "checkpoint_every_steps": 2}
OPPONENT = {"start_step": 1, "discriminator": {"base_channels": 4, "channel_multipliers": [1, 1]}, "r1_every_steps": 2}


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return toy.snapshot(Workspace(tmp_path_factory.mktemp("clips")), num_shards=1, per_shard=6)


def config(**changes: Any) -> tokenizer.Config:
    values = {
        "model": NETWORK,
        "size_px": toy.SIZE_PX,
        "optimization": STEPS,
        "num_preview_windows": 2,
        "health": toy.NO_HEALTH,
    }
    return tokenizer.Config.model_validate({**values, "adversarial": OPPONENT, **changes})


def run(snapshot: Artifact, root: Path, monitor: Monitor | None = None, **changes: Any) -> Artifact:
    folder = root / snapshot.folder.relative_to(snapshot.folder.parents[1])
    if not folder.exists():
        shutil.copytree(snapshot.folder, folder)
    moved = dataclasses.replace(snapshot, folder=folder, manifest_path=folder / "snapshots" / snapshot.manifest_path.name)
    workspace = Workspace(root, monitor=monitor or Silent())
    return tokenizer.run(config(**changes), {"shard": moved}, workspace).artifact


def metrics(made: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.verified("metrics.json").read_bytes())
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adversarial": None},
        {
            "adversarial": {**OPPONENT, "lecam_weight": 0.1},
            "optimization": {**STEPS, "ema_decay": 0.9, "accumulation_steps": 2},
        },
        {"optimization": {**STEPS, "precision": "bf16"}},
        {"model": {**NETWORK, "quantizer": {"name": "lfq", "bits": 6}}},
        {"model": {**NETWORK, "selection": "gumbel"}},
        {"model": {**NETWORK, "selection": {"name": "perturbed", "num_samples": 4}}},
    ],
    ids=["plain", "pixels alone", "everything", "bf16", "lfq", "gumbel", "perturbed"],
)
def test_every_way_of_training_gives_a_tokenizer_that_loads(
    snapshot: Artifact, tmp_path: Path, changes: dict[str, Any]
) -> None:
    made = run(snapshot, tmp_path, **changes)
    found, module = metrics(made), load_tokenizer(made)
    codes, priority = module.tokenize(torch.rand(1, 3, 32, 32, 32))
    assert codes.shape == priority.shape == (1, 16, 2, 2)
    assert codes.max() < module.quantizer.codebook_size
    assert [row["step"] for row in found["history"]] == [1, 2, 3, 4]
    assert ("discriminator_loss" in found["history"][-1]) == (changes.get("adversarial", 0) is not None)
    assert "discriminator_loss" not in found["history"][0]
    assert len(found["sample_digest"]) == 64
    assert found["quality"]["psnr_all_tokens_db"] > 5


def test_quality_is_measured_on_clips_that_were_not_trained_on_if_there_are_any(snapshot: Artifact, tmp_path: Path) -> None:
    assert metrics(run(snapshot, tmp_path, exclude={"split": "test"}))["quality"]["measured_on_held_out_clips"] == 1
    assert metrics(run(snapshot, tmp_path))["quality"]["measured_on_held_out_clips"] == 0


def test_quality_on_the_way_joins_the_curve_and_changes_no_weight(snapshot: Artifact, tmp_path: Path) -> None:
    plain, watched = run(snapshot, tmp_path), run(snapshot, tmp_path, quality_every_steps=2)
    assert ["psnr_all_tokens_db" in row for row in metrics(watched)["history"]] == [False, True, False, True]
    files = [made.manifest.files["model.safetensors"].sha256 for made in (plain, watched)]
    assert files[0] == files[1]


def test_after_quality_on_the_way_the_first_windows_are_shown(snapshot: Artifact, tmp_path: Path) -> None:
    class Shown(Silent):
        """The pictures."""

        def __init__(self) -> None:
            self.pictures: list[tuple[int, str, bytes]] = []

        def show(self, step: int, name: str, png: bytes) -> None:
            self.pictures.append((step, name, png))

    shown = Shown()
    made = run(snapshot, tmp_path, quality_every_steps=2, monitor=shown)
    assert [(step, name) for step, name, _ in shown.pictures] == [(2, "tokenizer"), (4, "tokenizer")]
    early, last = (png for _, _, png in shown.pictures)
    assert early != last
    assert last == made.verified("preview.png").read_bytes(), "the windows of the picture that is published"


def test_a_tokenizer_that_needs_no_training_is_measured_and_published(snapshot: Artifact, tmp_path: Path) -> None:
    made = run(snapshot, tmp_path, model={"name": "linear"})
    assert metrics(made)["history"] == []
    assert metrics(made)["quality"]["psnr_all_tokens_db"] > 15
    assert load_tokenizer(made).config == Linear()


def weights(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    safetensors.torch.save_file(tensors, path)
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_frozen_tokenizer_is_published_with_the_weights_that_were_given(snapshot: Artifact, tmp_path: Path) -> None:
    trained = run(snapshot, tmp_path)
    given = trained.path("model.safetensors")
    pinned = {"path": str(given), "sha256": hashlib.sha256(given.read_bytes()).hexdigest()}
    frozen = run(snapshot, tmp_path, weights=pinned)
    assert frozen.fingerprint != trained.fingerprint
    assert frozen.path("model.safetensors").read_bytes() == given.read_bytes()
    assert metrics(frozen)["history"] == []
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(given.read_bytes())
    assert run(snapshot, tmp_path, weights={**pinned, "path": str(moved)}).fingerprint == frozen.fingerprint


def test_weights_that_are_not_the_pinned_ones_are_refused(snapshot: Artifact, tmp_path: Path) -> None:
    pinned = weights(tmp_path / "a.safetensors", Linear().build().state_dict())
    with pytest.raises(ConfigError, match=rf"sha256 is {pinned['sha256']}, the recipe says 00"):
        run(snapshot, tmp_path, model="linear", weights={**pinned, "sha256": "0" * 64})
    with pytest.raises(ConfigError, match=r"b.pth: weights must be a local .safetensors file"):
        run(snapshot, tmp_path, model="linear", weights={**pinned, "path": str(tmp_path / "b.pth")})
    with pytest.raises(ConfigError, match=r"(?s)not the weights of tokenizer.model.*basis"):
        run(snapshot, tmp_path, model="linear", weights=weights(tmp_path / "c.safetensors", {"bases": torch.zeros(2)}))
    wrong_shape = Linear().build().state_dict() | {"basis": torch.zeros(6, 9)}
    with pytest.raises(ConfigError, match=r"(?s)d.safetensors: not the weights of tokenizer.model.*size mismatch for basis"):
        run(snapshot, tmp_path, model="linear", weights=weights(tmp_path / "d.safetensors", wrong_shape))


@pytest.mark.parametrize("name", ["missing.safetensors", "folder.safetensors", "weights.pth"])
def test_what_is_no_safetensors_file_by_its_name_is_never_opened(snapshot: Artifact, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "weights.pth").write_bytes(b"a pickle")
    given = {"path": str(tmp_path / name), "sha256": hashlib.sha256(b"a pickle").hexdigest()}
    with pytest.raises(
        ConfigError, match=rf"{name}: weights must be a local .safetensors file; convert them, or correct the path"
    ):
        run(snapshot, tmp_path, model="linear", weights=given)


def test_what_is_no_safetensors_file_inside_is_refused(snapshot: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "renamed.safetensors"
    path.write_bytes(b"a pickle under another name")
    given = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    with pytest.raises(ConfigError, match=r"renamed.safetensors: not a safetensors file .*; convert the weights"):
        run(snapshot, tmp_path, model="linear", weights=given)
    assert not list(tmp_path.glob("tokenizers/*/*"))


SMALL_CLASSIFIER = Size(depths=(1, 1), width=4, num_classes=5)


@pytest.fixture
def small_classifier(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, torch.Tensor]:
    """Random weights of a small classifier, which stands for the ResNet-50 of 100 MB."""
    monkeypatch.setattr(rebuilding, "PerceptualDistance", functools.partial(PerceptualDistance, size=SMALL_CLASSIFIER))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ResNet(SMALL_CLASSIFIER).state_dict()


def test_a_perceptual_loss_is_part_of_what_is_trained(
    snapshot: Artifact, tmp_path: Path, small_classifier: Mapping[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    pinned = weights(tmp_path / "classifier.safetensors", dict(small_classifier))
    perceptual = {"weight": 0.5, "weights": pinned, "side_px": None, "num_frames": 4}
    plain = run(snapshot, tmp_path, adversarial=None)
    caplog.clear()
    made = run(snapshot, tmp_path, adversarial=None, perceptual=perceptual)
    assert not caplog.records, "nothing is off"
    first, plain_first = metrics(made)["history"][0], metrics(plain)["history"][0]
    assert first["perceptual"] > 0
    assert first["loss"] == pytest.approx(plain_first["loss"] + 0.5 * first["perceptual"], rel=1e-5)
    assert metrics(made)["history"][-1]["psnr_db"] != metrics(plain)["history"][-1]["psnr_db"], "another gradient"
    assert not [name for name in safetensors.torch.load_file(made.path("model.safetensors")) if "layer1" in name]
    copied = tmp_path / "copied.safetensors"
    copied.write_bytes(Path(pinned["path"]).read_bytes())
    moved = {**perceptual, "weights": {**pinned, "path": str(copied)}}
    assert run(snapshot, tmp_path, adversarial=None, perceptual=moved).fingerprint == made.fingerprint


def test_perceptual_weights_of_another_network_are_refused(
    snapshot: Artifact, tmp_path: Path, small_classifier: Mapping[str, torch.Tensor]
) -> None:
    lacking = {name: value for name, value in small_classifier.items() if name != "fc.bias"}
    with pytest.raises(ConfigError, match=r"lacking.safetensors: .*missing: fc.bias"):
        run(snapshot, tmp_path, perceptual={"weights": weights(tmp_path / "lacking.safetensors", lacking)})
    wrong = {"path": str(tmp_path / "lacking.safetensors"), "sha256": "0" * 64}
    with pytest.raises(ConfigError, match="the recipe says 0000"):
        run(snapshot, tmp_path, perceptual={"weights": wrong})


def test_without_perceptual_weights_the_loss_is_off_and_said_to_be(
    snapshot: Artifact, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="stages.rebuilding"):
        made = run(snapshot, tmp_path)
    assert "perceptual loss off" in caplog.text
    assert "perceptual" not in metrics(made)["history"][-1]


def test_a_collapsed_tokenizer_is_refused_with_numbers_and_a_remedy(snapshot: Artifact, tmp_path: Path) -> None:
    module = Linear().build()
    module.scale.fill_(1e9)  # every latent is zero: one code for everything
    pinned = weights(tmp_path / "flat.safetensors", module.state_dict())
    with pytest.raises(TokenizerCollapsed, match=r"the 1 codes in use have 0.00 bits.*Train longer") as caught:
        run(snapshot, tmp_path, model="linear", weights=pinned, health={})
    assert "least used channel" in str(caught.value)
    assert not list(tmp_path.glob("tokenizers/*/manifest.json"))
    assert run(snapshot, tmp_path, model="linear", weights=pinned).manifest.stage == "tokenizer"


def test_sizes_that_do_not_fit_are_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"size_px 40 is no multiple of model.patching.patch_px 16"):
        config(size_px=40)
    with pytest.raises(ValidationError, match="top_k 768 keeps 768 tokens; a window has 32"):
        config(model={**NETWORK, "top_k": 768})
    with pytest.raises(ValidationError, match=r"quality_every_steps 3 must be a multiple of optimization.log_every_steps 2"):
        config(quality_every_steps=3, optimization={**STEPS, "log_every_steps": 2})
