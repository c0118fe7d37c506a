"""The rate of a training in operations is that of its clips, and a share only of a peak that is known."""

import pytest
import torch

from stages.pace import model_rates


def test_clips_of_a_gigaflop_at_a_thousand_per_second_are_a_teraflop_per_second() -> None:
    rates = model_rates(10**9, 1000.0, precision="fp32", place=torch.device("cpu"), num_devices=1)
    assert rates == {"model_tflop_per_s": 1.0}


@pytest.mark.parametrize(("name", "share"), [("NVIDIA H100 80GB HBM3", 0.5), ("NVIDIA H200", 0.5), ("NVIDIA H100 PCIe", None)])
def test_a_device_with_a_known_peak_has_a_share_of_it(name: str, share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: name)
    rates = model_rates(989 * 10**9, 1000.0, precision="bf16", place=torch.device("cuda"), num_devices=2)
    assert rates.get("mfu") == share
