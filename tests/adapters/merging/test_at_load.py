"""from_pretrained(merge=True): the same bits as a merge on disk; the adapter is judged before the base is read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    CorruptError,
    MemoryLimitError,
    MismatchError,
    OnDevice,
    UnsupportedError,
    UsageError,
    from_pretrained,
    load_adapter,
    merge,
    merge_to_disk,
    open_checkpoint,
    report_of,
    unmerge,
)
from shardload.adapters.layers.linear import LinearTerm
from shardload.adapters.layers.term import Factors
from shardload.adapters.merging.at_load import MergingTarget
from shardload.adapters.merging.change import Addition, Change
from shardload.checkpoint.shard import Shard
from shardload.cli import commands
from shardload.cli.wording import options_of
from shardload.errors import said
from tests.adapters import tiny
from tests.adapters.tiny import TOKENS, Tiny
from tests.tiny import write_checkpoint


@pytest.fixture
def base(tmp_path):
    return write_checkpoint(tmp_path / "base", Tiny(torch.bfloat16).state_dict(), config={})


@pytest.fixture
def adapter(tmp_path):
    return tiny.write(tmp_path / "lora", tiny.lora_tensors(Tiny()))


def loaded(base, make=Tiny, **options):
    return from_pretrained(base, model_class=lambda config: make(), progress=False, **options)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
def test_the_bits_are_those_of_a_merge_on_disk(tmp_path, base, adapter, dtype, copy):
    """Cast once: from fp32 to the wanted dtype, not over the stored one."""
    model = loaded(base, adapter=adapter, merge=True, dtype=dtype, copy=copy)
    out = {} if dtype == "auto" else {"dtype": dtype}
    merge_to_disk(base, adapter, tmp_path / "out", **out)
    stored = open_checkpoint(tmp_path / "out")
    assert model.state_dict().keys() == stored.tensors.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == stored.read(name).dtype
        assert torch.equal(tensor, stored.read(name)), name
    assert type(model.layers[0].q) is nn.Linear
    [report] = report_of(model).adapters
    assert report.merged
    assert 0.9 < report.least_share < 1.1
    assert "merged, at least" in str(report)


def changed_bytes(model):
    ends = ("q.weight", "up.weight", "down.weight")
    return sum(tensor.nbytes for name, tensor in model.named_parameters() if name.endswith(ends))


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_spilled_results_are_the_same_bits(tmp_path, base, adapter, dtype):
    """Merged while loading, and merged and unmerged after it, with the results in an evictable file."""
    wanted = loaded(base, adapter=adapter, merge=True, dtype=dtype)
    (tmp_path / "spill").mkdir()
    model = loaded(base, adapter=adapter, merge=True, dtype=dtype, spill=tmp_path / "spill")
    stated = report_of(model).stated
    changed = sum(
        p.nbytes
        for name, p in model.named_parameters()
        if name.endswith(("q.weight", "up.weight", "down.weight"))
    )
    assert stated.spilled >= changed
    plain = loaded(base, dtype=dtype, spill=tmp_path / "spill")
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    load_adapter(plain, adapter)
    merge(plain, keep_copies=False)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(plain.state_dict()[name], tensor), name
    unmerge(plain)
    for name, tensor in before.items():
        assert torch.equal(plain.state_dict()[name], tensor), name


def test_the_memory_is_stated_and_held_to(base, adapter):
    model = loaded(base, adapter=adapter, merge=True)
    changed = sum(
        p.nbytes
        for name, p in model.named_parameters()
        if name.endswith(("q.weight", "up.weight", "down.weight"))
    )
    assert report_of(model).stated.anonymous == changed
    with pytest.raises(MemoryLimitError):
        loaded(base, adapter=adapter, merge=True, max_memory=changed - 1)


class Own(Tiny):
    """A model that loads itself, and renames what it loads."""

    def _load_from_state_dict(self, state, prefix, *args):
        super()._load_from_state_dict(state, prefix, *args)


class OwnLinear(nn.Linear):
    def _load_from_state_dict(self, state, prefix, *args):
        state[f"{prefix}weight"] = state[f"{prefix}weight"].clone()
        super()._load_from_state_dict(state, prefix, *args)


class WithOwnLinear(Tiny):
    def __init__(self):
        super().__init__()
        self.layers[0].q = OwnLinear(tiny.WIDTH, tiny.WIDTH, bias=False)


@pytest.mark.parametrize("make", [Own, WithOwnLinear])
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_modules_that_load_themselves(base, adapter, make, dtype):
    model = loaded(base, make, adapter=adapter, merge=True, dtype=dtype)
    wanted = loaded(base, adapter=adapter, merge=True, dtype=dtype)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_it_equals_merge_of_the_loaded_model(base, adapter):
    model = loaded(base)
    load_adapter(model, adapter)
    merge(model)
    merged = loaded(base, adapter=adapter, merge=True)
    assert torch.equal(merged(TOKENS), model(TOKENS))


def test_through_a_key_map(tmp_path, adapter):
    state = {f"old.{key}": value for key, value in Tiny(torch.bfloat16).state_dict().items()}
    base = write_checkpoint(tmp_path / "renamed", state, config={})
    plain = write_checkpoint(tmp_path / "plain", Tiny(torch.bfloat16).state_dict(), config={})
    model = loaded(base, adapter=adapter, merge=True, key_map={"old.{...}": "{...}"})
    wanted = loaded(plain, adapter=adapter, merge=True)
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_what_the_base_lacks_and_the_adapter_brings(tmp_path):
    """A classifier's head: the base may lack it, the adapter has it in modules_to_save."""
    state = {key: value for key, value in Tiny().state_dict().items() if "score" not in key}
    base = write_checkpoint(tmp_path / "headless", state, config={})
    own = {"score.weight": torch.randn(tiny.CLASSES, tiny.WIDTH), "score.bias": torch.randn(tiny.CLASSES)}
    tensors = {
        **tiny.lora_tensors(Tiny(), ("q",)),
        **{tiny.PREFIX + name: value for name, value in own.items()},
    }
    adapter = tiny.write(tmp_path / "lora", tensors, tiny.config(modules_to_save=["score"]))
    model = loaded(base, adapter=adapter, merge=True, allow_missing=["score.*"])
    for name, value in own.items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("merged", [True, False])
def test_the_adapter_is_judged_before_a_weight_is_read(tmp_path, base, monkeypatch, merged):
    tensors = tiny.lora_tensors(Tiny())
    broken = {
        key: value * torch.nan if "layers.1.q.lora_A" in key else value for key, value in tensors.items()
    }
    cases = [
        (
            tiny.write(tmp_path / "other", {k.replace("layers.1", "x.7"): v for k, v in tensors.items()}),
            MismatchError,
        ),
        (tiny.write(tmp_path / "nan", broken), CorruptError),
        (tiny.write(tmp_path / "variant", tensors, tiny.config(use_qalora=True)), UnsupportedError),
    ]
    read = []
    enter = Shard.__enter__

    def entered(self):
        read.append(self.path.parent.name)
        return enter(self)

    monkeypatch.setattr(Shard, "__enter__", entered)
    for adapter, error in cases:
        with pytest.raises(error):
            loaded(base, adapter=adapter, merge=merged)
    assert "base" not in read
    loaded(base, adapter=tiny.write(tmp_path / "good", tensors), merge=merged)
    assert "base" in read


def test_a_tied_embedding_is_refused_with_the_way_out(tmp_path):
    class Tied(Tiny):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(tiny.WIDTH, tiny.VOCABULARY, bias=False)
            self.head.weight = self.embed.weight

    state = Tied().state_dict()
    del state["head.weight"]
    base = write_checkpoint(tmp_path / "tied", state, config={})
    tensors = {
        f"{tiny.PREFIX}embed.lora_embedding_A": torch.randn(2, tiny.VOCABULARY),
        f"{tiny.PREFIX}embed.lora_embedding_B": torch.randn(tiny.WIDTH, 2),
    }
    adapter = tiny.write(tmp_path / "lora", tensors)
    with pytest.raises(UnsupportedError, match="tied weights") as refused:
        loaded(base, Tied, adapter=adapter, merge=True)
    assert "merge(model)" in refused.value.cure
    shown = said(refused.value.cure, options_of(commands.get_command(None, "load")))
    assert shown == "leave out --merge: the adapter is attached, and works unmerged"
    model = loaded(base, Tied, adapter=adapter)
    merge(model)
    assert model.head.weight is not model.embed.weight


def test_merge_needs_an_adapter_and_finite_values(tmp_path, base):
    with pytest.raises(UsageError, match="there is none"):
        loaded(base, merge=True)
    large = {key: value * 1e20 for key, value in tiny.lora_tensors(Tiny()).items()}
    with pytest.raises(CorruptError, match="NaN or Inf"):
        loaded(base, adapter=tiny.write(tmp_path / "large", large), merge=True, dtype="float16")


def test_a_small_delta_is_warned_of(tmp_path, base):
    tensors = tiny.lora_tensors(Tiny(), ("up", "down"))
    small = {k: v * 3e-4 if "lora_B" in k else v for k, v in tensors.items()}
    model = loaded(base, adapter=tiny.write(tmp_path / "lora", small), merge=True)
    [report] = report_of(model).adapters
    assert report.least_share < 0.9
    assert any("survived" in warning for warning in report.warnings)
    exact = loaded(base, adapter=tmp_path / "lora", merge=True, dtype="float32")
    assert report_of(exact).adapters[0].least_share > 0.999


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_only_what_changes_is_computed_and_rounded_once(dtype):
    torch.manual_seed(0)
    stored, plain = torch.randn(6, 5).half(), torch.randn(3).half()
    a, b = torch.randn(2, 5), torch.randn(6, 2)
    change = Change("w", [Addition(LinearTerm(2, 3.0), Factors(a, b))])
    target = MergingTarget(OnDevice(dtype=dtype), dtype, {"w": change})
    wanted = (stored.float() + (b @ a) * 3.0).to(dtype or torch.float16)
    assert torch.equal(target.place("w", stored), wanted)
    assert torch.equal(target.place("plain", plain), plain.to(dtype or torch.float16))
    target.close()
