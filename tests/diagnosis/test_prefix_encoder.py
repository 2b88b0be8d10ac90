"""A prefix of P-Tuning v2 that is taken for a model's weights goes on its base."""

from __future__ import annotations

import pytest
import torch

from shardload import UnsupportedError, from_pretrained
from tests.cures import models
from tests.tiny import random_state, write_checkpoint


def test_a_prefix_alone_names_itself_as_the_prefix_of_its_base(tmp_path):
    state = random_state(models.Prefixed({"pre_seq_len": 8}))
    prefix = {key: value for key, value in state.items() if "prefix_encoder" in key}
    base = {key: value for key, value in state.items() if key not in prefix}
    write_checkpoint(tmp_path / "prefix", prefix, shards=1, config={"pre_seq_len": 8})
    write_checkpoint(tmp_path / "base", base, shards=1, config={})
    with pytest.raises(UnsupportedError) as caught:
        from_pretrained(tmp_path / "prefix", model_class=models.Prefixed, progress=False)
    assert caught.value.code == "E-ADAPTER"
    assert caught.value.cure.keywords == {"prefix": str(tmp_path / "prefix")}
    steps = caught.value.cure.keywords
    model = from_pretrained(tmp_path / "base", model_class=models.Prefixed, progress=False, **steps)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(model.state_dict()) == len(state)
