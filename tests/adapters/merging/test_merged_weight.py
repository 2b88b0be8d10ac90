"""The way in which a merged weight is restored: judged before the merge, and true to the bit after it."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from shardload import CorruptError, UsageError, load_adapter, merge, unmerge
from shardload._system.file_mapping import PrivateMappings
from shardload.adapters.merging.merged_weight import MergedWeight, Way
from tests.adapters.merging.merged_models import bits, loaded, ways


def test_a_weight_that_was_changed_is_kept_as_a_copy(base, adapter):
    model = loaded(base)
    load_adapter(model, adapter)
    with torch.no_grad():
        model.layers[0].q.weight.data[3, 3] += 1  # past autograd's own counter of changes
    before = bits(model)
    nbytes = model.layers[0].q.weight.nbytes
    with pytest.raises(UsageError, match=f"{nbytes} B") as refused:
        merge(model, keep_copies=False)
    assert "layers.0.q.weight" in str(refused.value)
    assert bits(model) == before
    with pytest.warns(UserWarning, match=f"copies of 1 weights, {nbytes} B"):
        report = merge(model)
    assert report.copied_bytes == nbytes
    assert ways(model) == {Way.MAPPED, Way.COPY}
    unmerge(model)
    assert bits(model) == before


def test_a_shard_that_changes(base, adapter):
    """Before the merge: a copy is kept. After it: the model stays merged, and says why."""
    model = loaded(base, dtype="float32")
    load_adapter(model, adapter)
    before = bits(model)
    merge(model)
    merged = bits(model)
    shards = [base / name for name in os.listdir(base) if name.endswith(".safetensors")]
    times = {path: path.stat().st_mtime_ns for path in shards}
    for path in shards:
        os.utime(path)
    with pytest.raises(CorruptError, match="have changed since"):
        unmerge(model)
    assert bits(model) == merged
    for path, stamp in times.items():
        os.utime(path, ns=(stamp, stamp))
    unmerge(model)
    assert bits(model) == before
    os.utime(shards[0])
    with pytest.warns(UserWarning, match="takes copies"):
        merge(model)
    assert Way.COPY in ways(model)
    unmerge(model)
    assert bits(model) == before


def judged(module, *, shared=False):
    return MergedWeight.judge(
        "w", module, "weight", shared=shared, origin=None, stored_name="w", mappings=PrivateMappings()
    )


@pytest.mark.parametrize("cast", [None, torch.float16])
def test_a_copy_is_put_back_and_follows_a_cast(cast):
    module = nn.Linear(3, 2)
    parameter, before = module.weight, module.weight.detach().clone()
    weight = judged(module)
    assert (weight.way, weight.nbytes) == (Way.COPY, 24)
    base, room = weight.begin()
    assert torch.equal(base, before)
    assert room.data_ptr() != base.data_ptr()
    weight.put(base + 1)
    assert module.weight is parameter
    assert torch.equal(module.weight, before + 1)
    module.to(cast)
    assert weight.can_be_undone()
    weight.undo()
    assert module.weight is parameter
    assert torch.equal(module.weight, before.to(cast or torch.float32))


def test_a_shared_weight_becomes_the_module_s_own_and_is_shared_again():
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.weight = module.weight
    module.weight.requires_grad_(False)
    weight, before = judged(module, shared=True), module.weight.detach().clone()
    base, _ = weight.begin()
    weight.put(base + 1)
    assert torch.equal(other.weight, before)
    assert torch.equal(module.weight, before + 1)
    assert module.weight.requires_grad is False
    weight.undo()
    assert module.weight is other.weight


def test_what_was_kept_nowhere_can_not_be_undone():
    weight = judged(nn.Linear(3, 2))
    weight.original = None
    assert not weight.can_be_undone()
