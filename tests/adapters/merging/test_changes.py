"""What adapters change in a checkpoint, planned from the headers of both."""

from __future__ import annotations

import pytest
import torch

from shardload import UnsupportedError, UsageError, open_checkpoint
from shardload.adapters.adapter import ReadOptions
from shardload.adapters.merging.changes import changes_on_disk
from shardload.where import Where
from tests.adapters.merging.disk import base_of
from tests.adapters.tiny import PREFIX, Tiny, config, head, lora_tensors, write


def changes(base, *adapters, **options):
    return changes_on_disk(open_checkpoint(base), adapters, ReadOptions(**options), Where(base))


@pytest.fixture
def base(tmp_path):
    return base_of(tmp_path / "base", torch.float32)


def test_every_factor_pair_is_an_addition_under_the_base_s_name(tmp_path, base):
    tensors = lora_tensors(Tiny(), ("q", "up"))
    found, reports, files = changes(base, write(tmp_path / "a", tensors))
    assert set(found) == {f"layers.{n}.{name}.weight" for n in (0, 1) for name in ("q", "up")}
    change = found["layers.1.up.weight"]
    (addition,) = change.additions
    assert torch.equal(addition.factors.a, tensors[f"{PREFIX}layers.1.up.lora_A.weight"])
    assert torch.equal(addition.factors.b, tensors[f"{PREFIX}layers.1.up.lora_B.weight"])
    assert (addition.term.scale, addition.weight) == (3.0, 1.0)
    assert (change.adapters, change.apart, change.replacement) == (1, True, None)
    assert len(reports) == len(files) == 1


def test_adapters_add_up_at_their_weights(tmp_path, base):
    folders = [write(tmp_path / str(n), lora_tensors(Tiny(), ("q",), seed=n)) for n in range(2)]
    found, _, _ = changes(base, folders[0], (folders[1], -0.5))
    change = found["layers.0.q.weight"]
    assert [addition.weight for addition in change.additions] == [1.0, -0.5]
    assert change.adapters == 2


def test_a_bias_of_b_goes_to_the_base_s_bias_or_nowhere(tmp_path, base):
    tensors = lora_tensors(Tiny(), ("up",))
    tensors |= {f"{PREFIX}layers.{n}.up.lora_B.bias": torch.full((12,), 2.0) for n in (0, 1)}
    found, _, _ = changes(base, write(tmp_path / "a", tensors, config(lora_bias=True)))
    (addition,) = found["layers.0.up.bias"].additions
    assert torch.equal(addition.term.delta(addition.factors, (12,)), torch.full((12,), 6.0))
    tensors = lora_tensors(Tiny(), ("q",)) | {
        f"{PREFIX}layers.{n}.q.lora_B.bias": torch.ones(8) for n in (0, 1)
    }
    with pytest.raises(UnsupportedError, match="2 layers can't be merged") as caught:
        changes(base, write(tmp_path / "b", tensors, config(lora_bias=True)))
    assert "has no bias, which lora_bias could be added to" in caught.value.where


def test_saved_modules_replace_and_two_of_them_clash(tmp_path, base):
    settings = config(modules_to_save=["score"])
    folders = [write(tmp_path / str(n), lora_tensors(Tiny(), ("q",)) | head(n), settings) for n in range(2)]
    found, _, _ = changes(base, folders[0])
    assert torch.equal(found["score.weight"].replacement, head(0)[f"{PREFIX}score.weight"])
    assert found["score.weight"].additions == []
    with pytest.raises(UsageError, match="two adapters replace the same tensor") as caught:
        changes(base, *folders)
    assert caught.value.where.startswith("score.")


def test_nothing_to_merge_and_what_headers_do_not_tell(tmp_path, base):
    with pytest.raises(UsageError, match="no adapter to merge"):
        changes(base)
    repeated = config(layer_replication=[[0, 2], [0, 2]], target_modules=["q"])
    with pytest.raises(UnsupportedError, match="layer_replication"):
        changes(base, write(tmp_path / "a", lora_tensors(Tiny(), ("q",)), repeated))


@pytest.mark.parametrize("kind", ["modules_to_save", "bias"])
def test_what_replaces_a_tensor_has_no_weight(tmp_path, base, kind):
    """There is no half of a replacement: PEFT, and `set_adapter` here, take it whole or not at all."""
    tensors = lora_tensors(Tiny(), ("q",))
    if kind == "bias":
        settings = config(bias="all")
        state = Tiny().state_dict()
        tensors |= {
            f"{PREFIX}{name}": torch.ones_like(t) for name, t in state.items() if name.endswith("bias")
        }
    else:
        settings = config(modules_to_save=["score"])
        tensors |= head(0)
    folder = write(tmp_path / "a", tensors, settings)
    for weight in (0.5, 0.0, -1.0):
        with pytest.raises(UsageError, match="no weight but 1") as caught:
            changes(base, (folder, weight))
        assert str(weight) in caught.value.where
    assert changes(base, (folder, 1))[0]
