"""merge and unmerge: the bits before and after, what is kept for it, and what is refused."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from shardload import (
    CorruptError,
    UnsupportedError,
    UsageError,
    delete_adapter,
    disable_adapter,
    load_adapter,
    merge,
    merge_to_disk,
    open_checkpoint,
    save,
    set_adapter,
    unmerge,
)
from shardload.adapters import active_adapters
from shardload.adapters.merging import in_memory
from shardload.adapters.merging.merged_weight import Way
from tests.adapters import tiny
from tests.adapters.merging.merged_models import bits, loaded, ways
from tests.adapters.tiny import TOKENS, Tiny

NAMES = ("q", "up")  # `down` doubles what it computes: merged, the delta is doubled too, here as in PEFT


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
@pytest.mark.parametrize("copy", [True, False])
def test_a_hundred_cycles(base, adapter, dtype, copy):
    """Mapped, read into memory, cast: bit for bit the same after a hundred cycles, and after each of the first."""
    model = loaded(base, dtype=dtype, copy=copy)
    load_adapter(model, adapter)
    before, plain = bits(model), None
    wanted = model(TOKENS)
    for cycle in range(100):
        report = merge(model, keep_copies=False)
        assert report.copied_bytes == 0
        if cycle == 0:
            assert ways(model) == {Way.MAPPED if dtype == "auto" and not copy else Way.REREAD}
            plain = {name: tensor.clone() for name, tensor in model.named_parameters()}
            merged = model(TOKENS)
        elif cycle == 99:
            assert all(torch.equal(plain[name], tensor) for name, tensor in model.named_parameters())
        unmerge(model)
        if cycle in {0, 1, 99}:
            assert bits(model) == before
    assert torch.equal(model(TOKENS), wanted)
    assert tiny_error(merged, wanted) < (1e-5 if dtype == "float32" else 0.05)


def tiny_error(found, wanted):
    return ((found.float() - wanted.float()).abs().max() / wanted.float().abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_hundred_cycles_of_a_model_that_no_shard_holds(adapter, dtype):
    model = Tiny(dtype)
    load_adapter(model, adapter)
    before = bits(model)
    for _ in range(100):
        merge(model, keep_copies=True)
        unmerge(model)
    assert bits(model) == before


def test_the_weights_are_those_of_merge_to_disk(tmp_path, base, adapter):
    merge_to_disk(base, adapter, tmp_path / "out")
    model = loaded(base)
    load_adapter(model, adapter)
    merge(model)
    stored = open_checkpoint(tmp_path / "out")
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            assert torch.equal(parameter, stored.read(name)), name


@pytest.mark.parametrize("weights", [{"one": 1.0, "two": 0.5}, {"two": -0.3}])
def test_several_adapters_at_their_weights(tmp_path, adapter, weights):
    model = Tiny(torch.float64)
    load_adapter(model, adapter, name="one")
    load_adapter(
        model, tiny.write(tmp_path / "2", tiny.lora_tensors(Tiny(), ("q", "up"), seed=4)), name="two"
    )
    set_adapter(model, weights)
    wanted = model(TOKENS)
    merge(model, keep_copies=True)
    assert active_adapters(model) == {}
    assert tiny_error(model(TOKENS), wanted) < 1e-6
    unmerge(model)
    assert active_adapters(model) == weights
    assert torch.equal(model(TOKENS), wanted)


def test_what_a_merged_model_refuses(base, adapter):
    model = loaded(base)
    with pytest.raises(UsageError, match="no adapter is attached"):
        merge(model)
    load_adapter(model, adapter)
    with pytest.raises(UsageError, match="no adapter is merged"):
        unmerge(model)
    set_adapter(model, {})
    with pytest.raises(UsageError, match="no adapter is active"):
        merge(model)
    set_adapter(model, "default")
    with disable_adapter(model), pytest.raises(UsageError, match="block"):
        merge(model)
    merge(model)
    for call in (
        lambda: merge(model),
        lambda: set_adapter(model, {}),
        lambda: delete_adapter(model, "default"),
        lambda: load_adapter(model, adapter, name="more"),
        lambda: disable_adapter(model).__enter__(),
    ):
        with pytest.raises(UsageError, match="merged into the weights"):
            call()
    unmerge(model)
    delete_adapter(model, "default")
    assert type(model.layers[0].q) is nn.Linear


def test_a_merge_that_fails_changes_nothing(base, tmp_path):
    tensors = tiny.lora_tensors(Tiny())
    large = {key: value * 1e4 if "layers.1.down" in key else value for key, value in tensors.items()}
    model = loaded(base, dtype="float16")
    load_adapter(model, tiny.write(tmp_path / "large", large))
    before = bits(model)
    with pytest.raises(CorruptError, match="NaN or Inf in float16") as failed:
        merge(model)
    assert failed.value.where == "layers.1.down.weight"
    assert bits(model) == before
    assert active_adapters(model) == {"default": 1.0}


def test_an_interrupt_changes_nothing(base, adapter, monkeypatch):
    model = loaded(base, dtype="float16")
    load_adapter(model, adapter)
    before = bits(model)
    blocks = in_memory.merged_blocks

    def interrupted(tensor, change, *args):
        yield from blocks(tensor, change, *args)
        if change.name == "layers.1.up.weight":
            raise KeyboardInterrupt

    monkeypatch.setattr(in_memory, "merged_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge(model)
    assert bits(model) == before


class Tied(Tiny):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(tiny.WIDTH, tiny.VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.mark.parametrize("which", ["head", "embed"])
def test_tied_embeddings_are_taken_apart(tmp_path, which):
    model = Tied().eval()
    random = torch.Generator().manual_seed(3)
    shapes = {"A": (2, tiny.WIDTH), "B": (tiny.VOCABULARY, 2)}
    name = "head.lora_{}.weight"
    if which == "embed":
        shapes = {"A": (2, tiny.VOCABULARY), "B": (tiny.WIDTH, 2)}
        name = "embed.lora_embedding_{}"
    tensors = {
        tiny.PREFIX + name.format(part): torch.randn(shape, generator=random)
        for part, shape in shapes.items()
    }
    load_adapter(model, tiny.write(tmp_path / "lora", tensors))
    before, wanted = bits(model), model(TOKENS)
    report = merge(model, keep_copies=False)
    assert report.copied_bytes == 0
    assert model.head.weight is not model.embed.weight
    assert tiny_error(model(TOKENS), wanted) < 1e-6
    other = model.embed if which == "head" else model.head
    assert id(other.weight) == before["embed.weight"][0]
    unmerge(model)
    assert model.head.weight is model.embed.weight
    assert bits(model) == before


def test_save_writes_the_merged_weights(tmp_path, base, adapter):
    model = loaded(base)
    load_adapter(model, adapter)
    merge(model)
    save(model, tmp_path / "saved")
    merge_to_disk(base, adapter, tmp_path / "out")
    saved, out = open_checkpoint(tmp_path / "saved"), open_checkpoint(tmp_path / "out")
    assert saved.tensors.keys() == out.tensors.keys()
    assert all(torch.equal(saved.read(name), out.read(name)) for name in saved.tensors)


def test_biases_and_saved_modules_stay_in_place_while_merged(tmp_path, base):
    tensors = tiny.lora_tensors(Tiny(), ("q",))
    own = torch.randn(tiny.CLASSES, tiny.WIDTH)
    tensors |= {f"{tiny.PREFIX}score.weight": own, f"{tiny.PREFIX}score.bias": torch.zeros(tiny.CLASSES)}
    model = loaded(base)
    plain = model.score.weight
    load_adapter(model, tiny.write(tmp_path / "lora", tensors, tiny.config(modules_to_save=["score"])))
    wanted = model(TOKENS)
    merge(model)
    assert torch.equal(model.score.weight, own.bfloat16())
    assert tiny_error(model(TOKENS), wanted) < 0.05
    save(model, tmp_path / "saved")
    assert torch.equal(open_checkpoint(tmp_path / "saved").read("score.weight"), own.bfloat16())
    unmerge(model)
    delete_adapter(model, "default")
    assert model.score.weight is plain


def test_a_model_that_is_cast_while_it_is_merged(base, adapter):
    model = loaded(base)
    exact = {name: tensor.float() for name, tensor in model.state_dict().items()}
    load_adapter(model, adapter)
    merge(model)
    model.float()
    unmerge(model)
    for name, tensor in exact.items():
        assert torch.equal(model.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_a_copy_of_a_merged_model_is_unmerged_too(base, adapter, dtype):
    model = loaded(base, dtype=dtype)
    load_adapter(model, adapter)
    before = {name: bits_of[1:] for name, bits_of in bits(model).items()}
    merge(model)
    twin = copy.deepcopy(model)
    for each in (twin, model):
        unmerge(each)
        assert {name: bits_of[1:] for name, bits_of in bits(each).items()} == before


def test_a_pickled_merged_model_says_what_it_can_not_undo(base, adapter):
    mapped, cast = loaded(base), loaded(base, dtype="float32")
    for model in (mapped, cast):
        load_adapter(model, adapter)
    before = {name: bits_of[1:] for name, bits_of in bits(mapped).items()}
    for model in (mapped, cast):
        merge(model)
    again = pickle.loads(pickle.dumps(mapped))
    unmerge(again)
    assert {name: bits_of[1:] for name, bits_of in bits(again).items()} == before
    lost = pickle.loads(pickle.dumps(cast))
    with pytest.raises(CorruptError, match="not known"):
        unmerge(lost)
    assert torch.equal(lost(TOKENS), cast(TOKENS))


def test_what_can_not_be_merged_says_why(tmp_path):
    tensors = {
        f"{tiny.PREFIX}0.lora_A.weight": torch.randn(2, 4, 3, 3),
        f"{tiny.PREFIX}0.lora_B.weight": torch.randn(6, 1, 1, 1),
    }
    grouped = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2))
    load_adapter(grouped, tiny.write(tmp_path / "groups", tensors))
    with pytest.raises(UnsupportedError, match="can't be merged") as refused:
        merge(grouped)
    assert "groups" in str(refused.value)
    tensors[f"{tiny.PREFIX}0.lora_B.weight"] = torch.randn(6, 2, 1, 1)
    padded = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    load_adapter(padded, tiny.write(tmp_path / "padding", tensors))
    with pytest.raises(UnsupportedError, match="can't be merged") as refused:
        merge(padded)
    assert "padding" in str(refused.value)


def test_a_quantised_layer_is_declined(tmp_path):
    class Packed(nn.Linear):
        def __init__(self):
            super().__init__(4, 4, bias=False)
            self.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)

        def forward(self, x):
            return x @ self.weight.to(x.dtype).T

    model = nn.Sequential(Packed())
    tensors = {
        f"{tiny.PREFIX}0.lora_{part}.weight": torch.randn(shape)
        for part, shape in (("A", (2, 4)), ("B", (4, 2)))
    }
    load_adapter(model, tiny.write(tmp_path / "lora", tensors))
    model(torch.ones(1, 4))
    with pytest.raises(UnsupportedError, match="can't be merged") as refused:
        merge(model)
    assert "quantised" in str(refused.value)


def test_the_share_that_survived_is_reported(tmp_path, base):
    tensors = tiny.lora_tensors(Tiny(), ("up", "down"))
    small = {k: v * 3e-4 if "lora_B" in k else v for k, v in tensors.items()}
    model = loaded(base)
    load_adapter(model, tiny.write(tmp_path / "lora", small))
    report = merge(model)
    assert len(report.tensors) == 4
    assert report.least_share < 0.9
    assert any("survived the rounding to bfloat16" in warning for warning in report.warnings)
