"""Devices and casts of a load, which leave torch's settings as they were."""

from __future__ import annotations

import pytest
import torch

from shardload import OnDevice, UsageError, build_shell, fill, from_pretrained, open_checkpoint
from tests.tiny import Net, random_state, write_checkpoint


def test_a_cast_does_not_change_torchs_thread_count_or_default_dtype(tmp_path):
    threads = torch.get_num_threads()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    fill(build_shell(Net), checkpoint, target=OnDevice(dtype=torch.bfloat16))
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize(
    "device", ["nope", "auto", "meta", {"": 0}, None, "cuda:99", "xpu", "mps", "privateuseone", "balanced"]
)
def test_a_device_that_is_none_here_is_an_error_before_anything_is_opened(tmp_path, device):
    if isinstance(device, str) and device == torch.get_default_device().type:
        pytest.skip("this machine has one")
    with pytest.raises(UsageError) as caught:
        OnDevice(device)
    assert "device" in str(caught.value)
    with pytest.raises(UsageError):
        from_pretrained(tmp_path / "not there", device=device)
