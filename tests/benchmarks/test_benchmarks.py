"""Every benchmark runs on a few small files, says what it measured, and nothing of whose machine it was."""

import getpass
import importlib.util
import itertools
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks._objects import coverage
from models.grid import Patching
from stages.device import precisions
from tests.stages.videos import run_ffmpeg

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 40 and 20 frames."""
    folder = tmp_path_factory.mktemp("clips")
    for number, frames in enumerate((40, 20)):
        pattern = f"testsrc2=size=64x64:rate=25,noise=alls=5:all_seed={number}"
        run_ffmpeg("-f", "lavfi", "-i", pattern, "-frames:v", str(frames), "-pix_fmt", "yuv420p", folder / f"{number}.mp4")
    return folder


def run(name: str, *arguments: str | Path, out: Path) -> dict[str, Any]:
    """What a benchmark wrote; its last line says the same of the ratios."""
    argv = [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--quick", "--out", out, *arguments]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    text = (out / f"{name}.json").read_text()
    result: dict[str, Any] = json.loads(text)
    assert json.loads(done.stdout.splitlines()[-1]) == {"benchmark": name, "ratios": result["ratios"]}
    assert result["machine"]["cores"] > 0
    assert not [secret for secret in (str(ROOT), str(out), platform.node(), f'"{getpass.getuser()}"') if secret in text]
    return result


def test_shard_compares_the_stage_with_ffmpeg_doing_the_same(videos: Path, tmp_path: Path) -> None:
    result = run("shard", "--data", videos, "--every", "1", "--workers", "1", out=tmp_path)
    rows = {row["way"]: row for row in result["rows"]}
    assert {row["frames"] for row in rows.values()} == {60}, "every way must do all of the work"
    assert all(row["cpu_s_per_video_minute"] > 0 and row["peak_mb_worker"] > 10 for row in rows.values())
    assert 0.8 < result["ratios"]["bytes_vs_bare_ffmpeg"] < 2, "both sides encode alike"
    assert 0 < result["ratios"]["throughput_vs_bare_ffmpeg_by_cpu"] < 2
    assert result["video2dataset"] is None


def test_listing_writes_nothing_when_nothing_is_new(tmp_path: Path) -> None:
    result = run("listing", "--sources", "300", "--place", tmp_path, out=tmp_path)
    written = {row["case"]: row["written"] for row in result["rows"]}
    assert written["first look"] > 0, "the plan and the cache"
    assert written["look again, one file added"] > 0
    assert written["look again, nothing new"] == written["whole stage, nothing to do"] == 0
    units = {row["case"]: row["units"] for row in result["rows"]}
    assert (units["first look"], units["look again, one file added"]) == (2, 3)
    assert set(result["ratios"]) == {"rerun_vs_first", "one_added_vs_first", "stage_rerun_vs_first"}


def test_targets_compares_making_and_reading_with_what_they_cost_at_least(videos: Path, tmp_path: Path) -> None:
    result = run("targets", "--data", videos, "--frames", "32", "--size", "32", out=tmp_path)
    assert len(result["data"]["clips_by_shard"]) > 1
    ways = ("stage precompute", "limit: tokenize alone")
    expected = set(itertools.product(ways, precisions(torch.device("cpu"))))
    assert {(row["way"], row["precision"]) for row in result["making"]} == expected
    assert all(row["CPU s/clip"] > 0 and row["wall s/clip"] > 0 for row in result["making"])
    sizes = {row["what"]: row for row in result["bytes_per_clip_and_view"]}
    assert sizes["codes"]["as METHOD 1.5"] == 16 * 2 * 2 * 18 / 8
    assert 0 < sizes["priority"]["on disk"] < 1000
    assert result["computed_twice_share"] == 0.01
    assert 0 < result["ratios"]["precompute_vs_forward_by_cpu"] < 3
    assert result["ratios"]["read_vs_zarr"] < 1


def test_tokenizer_trains_and_judges_against_codes_that_learn_nothing(videos: Path, tmp_path: Path) -> None:
    result = run("tokenizer", "--data", videos, "--steps", "4", "--size", "32", out=tmp_path)
    assert set(result["quality"]) == {"learned", "PCA + FSQ", "DCT + FSQ"}
    assert result["curve"][-1]["step"] == 4
    assert result["ratios"]["psnr_topk_gain_db"] is not None


def test_priority_is_judged_by_what_the_boxes_cover(tmp_path: Path) -> None:
    result = run("priority", "--train", "2", "--test", "2", "--steps", "2", out=tmp_path)
    (setting,) = result["settings"]
    lift = {row["score"]: row["lift over area"] for row in setting["rows"]}
    assert {"flow", "EVEREST", "codec motion", "random", "untrained, seed 0", "learned priority, seed 0"} <= set(lift)
    assert lift["bound: the boxes"] == max(lift.values()) > 3, "no order can cover more than the boxes' own"
    assert all(row["low"] <= row["lift over area"] <= row["high"] for row in setting["rows"])
    assert result["ratios"]["priority_lift"] == pytest.approx(lift["learned priority, seed 0"], rel=1e-3)
    assert result["ratios"]["priority_vs_flow"] == pytest.approx(lift["learned priority, seed 0"] / lift["flow"], rel=1e-3)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="the peer is not installed")
def test_pretrain_step_compares_the_same_work_and_less_of_it_with_the_peer(tmp_path: Path) -> None:
    tiny = ("--device", "cpu", "--sizes", "S", "--frames", "4", "--size", "32", "--rounds", "1")
    result = run("pretrain_step", *tiny, out=tmp_path)
    rows = {row["way"]: row for row in result["rows"]}
    assert {way: row["predicted"] for way, row in rows.items()} == {"ours, 15 %": 1, "ours, all hidden": 6, "transformers": 6}
    assert all(row["s/clip"] > 0 for row in rows.values())
    assert result["relative_loss_difference"]["S 4f"] < 1e-4, "both sides must do the same"
    ratios, saved = result["ratios"], result["saved_bytes_per_clip"]
    assert ratios["same_work_s"] == pytest.approx(rows["transformers"]["s/clip"] / rows["ours, all hidden"]["s/clip"], rel=1e-2)
    assert ratios["saved_bytes_b"] <= 0.5, "what 15 % saves does not depend on the machine"
    assert saved["ours, 15 %"] / saved["transformers, attention written out"] <= 0.06
    assert saved["ours, all hidden"] < saved["transformers"]
    assert ratios["speedup_b"] is None, "no such size was asked for"


def test_pretrain_step_needs_no_other_package_than_the_models_and_says_that_the_peer_is_missing() -> None:
    absent = ("stages", "pipeline", "imageio_ffmpeg", "jaxtyping", "safetensors", "transformers")
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({absent})); "
        "from benchmarks import _videomae, pretrain_step; _videomae.peer(_videomae.Case('ViT-S', 4, 32))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert "pip install 'transformers>=5.18'" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is None, reason="onnxruntime is not installed")
def test_export_times_every_form_that_can_be_made_in_turn_with_the_network(tmp_path: Path) -> None:
    result = run("export", "--frames", "4", "--size", "32", "--rounds", "1", out=tmp_path)
    rows = {row["way"]: row for row in result["rows"]}
    assert list(rows) == ["eager fp32", "torch_export", "onnx"]
    assert all(row["s/clip"] > 0 for row in rows.values())
    assert rows["onnx"]["relative error"] < 1e-5
    ratios = result["ratios"]
    assert ratios["onnx_vs_eager"] == pytest.approx(rows["eager fp32"]["s/clip"] / rows["onnx"]["s/clip"], rel=1e-2)
    assert ratios["aoti_freezing_vs_eager"] is None, "what is compiled takes too long"


def test_a_token_is_covered_by_the_share_of_it_that_lies_in_the_box() -> None:
    boxes = np.array([[8, 0, 24, 16], [8, 0, 24, 16], [-99, 0, 8, 8], [0, 0, 0, 0]], np.float32)
    found = coverage(boxes, Patching(), size_px=32)
    np.testing.assert_allclose(found, [[[0.5, 0.5], [0, 0]], [[0.125, 0], [0, 0]]])
