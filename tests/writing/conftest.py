from __future__ import annotations

import pytest
import torch

from tests.tiny import Net, random_state, write_checkpoint


@pytest.fixture
def base(tmp_path):
    state = random_state(Net(), torch.bfloat16)
    return write_checkpoint(tmp_path / "base", state, shards=3, config={"a": 1})
