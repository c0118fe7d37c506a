"""The benchmark of predicted memory runs on a small network, and its prediction is of the right size."""

from pathlib import Path

from tests.benchmarks.test_benchmarks import run


def test_plan_predicts_the_memory_of_real_steps(tmp_path: Path) -> None:
    result = run("plan", "--frames", "16", "--size", "64", "--steps", "2", out=tmp_path)
    assert result["setting"]["model"] == "ViT-S"
    parts = result["predicted_parts"]
    assert parts["moments"] == 2 * parts["weights"] > 180e6
    assert result["measured_bytes"] > parts["weights"] + parts["moments"] + parts["gradients"]
    assert 0.75 < result["ratios"]["memory_predicted_over_measured"] < 1.33
