from __future__ import annotations

import pytest
import torch

from tests.adapters import tiny
from tests.adapters.tiny import Tiny
from tests.tiny import write_checkpoint


@pytest.fixture
def adapter(tmp_path):
    return tiny.write(tmp_path / "lora", tiny.lora_tensors(Tiny(), ("q", "up")))


@pytest.fixture
def base(tmp_path):
    return write_checkpoint(tmp_path / "base", Tiny(torch.bfloat16).state_dict(), config={})
