"""Precisions that a device has are taken without a word; those that it imitates are spoken of."""

import logging

import pytest
import torch

from stages import device
from stages.device import autocast, precisions, warn_of_imitation

CPU = torch.device("cpu")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_precision_that_a_processor_can_only_imitate_is_warned_of(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "precisions", lambda place: ("fp32", "bf16") if has_bf16 else ("fp32",))
    with caplog.at_level(logging.WARNING):
        warn_of_imitation(CPU, "fp32", "pretrain.optimization.precision")
        assert not caplog.records
        warn_of_imitation(CPU, "bf16", "pretrain.optimization.precision")
    assert ("pretrain.optimization.precision=bf16" in caplog.text) is not has_bf16


def test_what_a_device_has_begins_with_fp32_and_is_what_products_take() -> None:
    assert precisions(CPU)[0] == "fp32"
    one = torch.ones(2, 2)
    with autocast(CPU, "fp32"):
        assert (one @ one).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert (one @ one).dtype == torch.bfloat16
