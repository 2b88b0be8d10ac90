"""Quantised: what comes out is what bitsandbytes itself makes of the whole weight, and memory is as stated."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shardload
from shardload.placement import quantiser
from shardload.placement.quantised import Quantised
from tests.tiny import Net, random_state, run_python, save_safetensors

MISSING = """
import os, sys, tempfile, torch, shardload
os.chdir(tempfile.mkdtemp())
sys.modules["bitsandbytes"] = None
shardload.save(torch.nn.Linear(4, 2), "tiny")
try:
    shardload.from_pretrained("tiny", model_class=lambda _: torch.nn.Linear(4, 2), load_in_8bit=True)
except shardload.UnsupportedError as error:
    print(error.cure)
"""
MISSING_TORCHAO = """
import sys, shardload
sys.modules["torchao"] = None
class AOBaseConfig: pass
class Int8WeightOnlyConfig(AOBaseConfig): pass
try:
    shardload.QuantisedByTorchao(Int8WeightOnlyConfig())
except shardload.UnsupportedError as error:
    print(error.cure)
"""
FETCHING = """
import sys, shardload
shardload.Quantised(load_in_8bit=True)
print("kernels" in sys.modules, hasattr(sys.modules["bitsandbytes"].nn, "Linear8bitLt"))
"""
MEMORY = """
import json, sys
from torch import nn
import shardload
make = lambda _: nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(5)))
model = shardload.from_pretrained(sys.argv[1], model_class=make, quantization_config=json.loads(sys.argv[2]))
report = shardload.report_of(model)
now, before = report.memory, report.memory.before.anon
kept, peak = now.after.anon - before, now.peak.anon - before
print(json.dumps({"anonymous": report.stated.anonymous, "stated": report.stated.peak, "kept": kept, "peak": peak}))
"""
KINDS = {
    "int8": {"load_in_8bit": True},
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True},
    "nf4 in bfloat16": {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": "bfloat16",
    },
}  # fmt: skip


@pytest.fixture
def bnb():
    return pytest.importorskip("bitsandbytes")


def made_by(bnb, weight, bias, kind):
    """Return the state of bitsandbytes' own layer with a weight that it quantised."""
    options, (out, into) = KINDS[kind], weight.shape
    if kind == "int8":
        layer = bnb.nn.Linear8bitLt(into, out, has_fp16_weights=False)
        parameter = bnb.nn.Int8Params(weight.clone(), requires_grad=False, has_fp16_weights=False)
    else:
        four = {
            "quant_type": options["bnb_4bit_quant_type"],
            "compress_statistics": options.get("bnb_4bit_use_double_quant", False),
            "quant_storage": getattr(torch, options.get("bnb_4bit_quant_storage", "uint8")),
        }
        layer = bnb.nn.Linear4bit(into, out, **four)
        parameter = bnb.nn.Params4bit(weight.clone(), requires_grad=False, **four)
    layer.weight, layer.bias = parameter._quantize("cpu"), nn.Parameter(bias)
    return layer.state_dict()


def same(state, expected):
    """Compare bytes: packed numbers may be NaN as what they are stored in."""
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8)), (
            name
        )


def two(width=24, out=40):
    return nn.Sequential(nn.Linear(width, out), nn.Linear(out, 8))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_quantised_as_bitsandbytes_does_it_whole(bnb, tmp_path, monkeypatch, kind, dtype):
    monkeypatch.setattr(quantiser, "_BLOCK", 200)  # rows are cut into several blocks, and a last smaller one
    model = two()
    save_safetensors(model.state_dict(), tmp_path / "model.safetensors")
    loaded = shardload.from_pretrained(
        tmp_path, model_class=lambda _: two(), dtype=dtype or "auto", quantization_config=KINDS[kind]
    )
    weight, bias = (
        each.to(getattr(torch, dtype)) if dtype else each for each in model[0].state_dict().values()
    )
    expected = made_by(bnb, weight, bias, kind)
    state = loaded[0].state_dict()
    same(state, expected)
    assert type(loaded[1]) is nn.Linear
    assert not loaded[0].training
    assert loaded(torch.randn(3, 24, dtype=weight.dtype)).isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_again_and_read_again(bnb, tmp_path, kind):
    shardload.save(two(), tmp_path / "plain")
    make = {"model_class": lambda _: two()}
    loaded = shardload.from_pretrained(tmp_path / "plain", **make, quantization_config=KINDS[kind])
    x = torch.randn(3, 24)
    before = loaded(x)
    shardload.save(loaded, tmp_path / "out")  # after a run, which moves bitsandbytes' own parts
    again = shardload.from_pretrained(tmp_path / "out", **make, quantization_config=KINDS[kind])
    same(again.state_dict(), loaded.state_dict())
    assert torch.equal(again(x), before)
    assert shardload.report_of(again).stated.mapped > 0
    told = Quantised(KINDS[kind]).quantisation.to_dict()
    (tmp_path / "out" / "config.json").write_text(json.dumps({"quantization_config": told}))
    as_stored = shardload.from_pretrained(tmp_path / "out", **make)
    assert torch.equal(as_stored(x), before)
    if kind != "nf4 in bfloat16":
        plain = shardload.from_pretrained(tmp_path / "out", **make, dtype="float32")
        assert type(plain[0]) is nn.Linear


def settings(tensors, **told):
    """Change what bitsandbytes says of the first weight."""
    name = next(name for name in tensors if ".quant_state." in name)
    text = {**json.loads(bytes(tensors[name].tolist())), **told}
    tensors[name] = torch.tensor(list(json.dumps(text).encode()), dtype=torch.uint8)


CHANGES = {
    "scale": ("int8", "0.SCB", lambda t: t["0.SCB"].__setitem__(3, float("nan"))),
    "scales": ("int8", "0.SCB", lambda t: t.update({"0.SCB": t["0.SCB"][:1].clone()})),
    "order": ("int8", "0.weight_format", lambda t: t["0.weight_format"].fill_(1)),
    "absmax": ("nf4", "0.weight.absmax", lambda t: t["0.weight.absmax"].__setitem__(0, float("inf"))),
    "map": ("nf4", "0.weight.quant_map", lambda t: t["0.weight.quant_map"].__setitem__(0, float("nan"))),
    "absent": ("nf4", "0.weight.absmax", lambda t: t.pop("0.weight.absmax")),
    "turned": ("nf4", "quant_state", lambda t: settings(t, shape=[24, 40])),
    "block": ("nf4", "0.weight.absmax", lambda t: settings(t, blocksize=128)),
    "type": ("nf4", "quant_state", lambda t: settings(t, quant_type="fp4")),
    "outer": ("fp4", "nested_absmax", lambda t: t["0.weight.nested_absmax"].fill_(float("nan"))),
    "offset": ("fp4", "quant_state", lambda t: settings(t, nested_offset=float("nan"))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parts_are_not_taken_as_they_are_stored(bnb, tmp_path, change):
    kind, named, do = CHANGES[change]
    shardload.save(two(), tmp_path / "plain")
    make = {"model_class": lambda _: two(), "quantization_config": KINDS[kind]}
    shardload.save(shardload.from_pretrained(tmp_path / "plain", **make), tmp_path / "out")
    tensors = dict(shardload.open_checkpoint(tmp_path / "out").items(copy=True))
    do(tensors)
    save_safetensors(tensors, tmp_path / "out" / "model.safetensors")
    with pytest.raises((shardload.CorruptError, shardload.UnsupportedError)) as caught:
        shardload.from_pretrained(tmp_path / "out", **make)
    assert named in caught.value.what + str(caught.value.where)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_plan_load_states_what_the_load_states(bnb, tmp_path, kind):
    def make(_=None):
        return nn.Sequential(nn.Linear(640, 512), nn.Linear(512, 256), nn.Linear(256, 8))

    shardload.save(make(), tmp_path)
    options = {"quantization_config": KINDS[kind], "dtype": "bfloat16"}
    forecast = shardload.plan_load(tmp_path, shell=shardload.build_shell(make), **options)
    loaded = shardload.from_pretrained(tmp_path, model_class=make, max_memory=forecast.peak_anon, **options)
    assert forecast.memory == shardload.report_of(loaded).stated
    with pytest.raises(shardload.MemoryLimitError):
        shardload.from_pretrained(tmp_path, model_class=make, max_memory=forecast.peak_anon - 1, **options)
    with pytest.raises(shardload.UsageError) as caught:
        shardload.plan_load(tmp_path, load_in_8bit=True)
    assert "pass shell=" in caught.value.cure


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_an_adapter_is_merged_before_the_sum_is_quantised(bnb, tmp_path, kind):
    model = two()
    shardload.save(model, tmp_path / "base")
    shardload.attach_lora(model, r=4, targets=["0"])
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    shardload.save_adapter(model, tmp_path / "lora")
    merging = {"model_class": lambda _: two(), "adapter": tmp_path / "lora", "merge": True}
    loaded = shardload.from_pretrained(tmp_path / "base", **merging, quantization_config=KINDS[kind])
    plain = shardload.from_pretrained(tmp_path / "base", **merging)
    same(loaded[0].state_dict(), made_by(bnb, plain[0].weight.detach(), plain[0].bias.detach(), kind))
    assert not torch.equal(plain[0].weight, two()[0].weight)


def test_a_packed_weight_of_another_kind_is_made_plain_and_quantised(bnb, tmp_path):
    shardload.save(two(64, 64), tmp_path / "plain")
    make = {"model_class": lambda _: two(64, 64)}
    four = shardload.from_pretrained(tmp_path / "plain", **make, quantization_config=KINDS["nf4"])
    shardload.save(four, tmp_path / "four")
    plain = shardload.from_pretrained(tmp_path / "four", **make, dtype="float32")
    eight = shardload.from_pretrained(tmp_path / "four", **make, dtype="float32", load_in_8bit=True)
    same(eight[0].state_dict(), made_by(bnb, plain[0].weight.detach(), plain[0].bias.detach(), "int8"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_doctor_takes_what_a_load_takes(bnb, tmp_path, kind):
    """A load without a dtype keeps what bitsandbytes packed: there is nothing to cure."""
    shardload.save(two(64, 64), tmp_path / "plain")
    make = {"model_class": lambda _: two(64, 64)}
    made = shardload.from_pretrained(tmp_path / "plain", **make, quantization_config=KINDS[kind])
    shardload.save(made, tmp_path / "packed")
    stated = {"quantization_config": Quantised(KINDS[kind]).quantisation.to_dict()}
    (tmp_path / "packed/config.json").write_text(json.dumps(stated))
    same(shardload.from_pretrained(tmp_path / "packed", **make).state_dict(), made.state_dict())
    checkpoint, shell = (
        shardload.open_checkpoint(tmp_path / "packed"),
        shardload.build_shell(lambda: two(64, 64)),
    )
    found = shardload.examine(tmp_path / "packed", **make)
    assert found.lines() == [f"{checkpoint.label}: fits Sequential ({len(checkpoint.tensors)} keys)"]
    assert [finding.code for finding in shardload.check(shell, checkpoint).findings] == ["E-QUANT"]
    assert shardload.check(shell, checkpoint, target=Quantised(KINDS[kind])).ok
    assert [type(module) for module in shell.model] == [nn.Linear, nn.Linear]


def test_own_loaders_and_missing_parameters(bnb, tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def _load_from_state_dict(self, *arguments):
            super()._load_from_state_dict(*arguments)

    def make(_=None):
        model = Net(8, 1)
        model.own = Own()
        model.own.after = nn.Linear(8, 8)
        model.last = nn.Linear(8, 8)
        return model

    state = random_state(make())
    gone = state.pop("layers.0.up.weight")
    save_safetensors(state, tmp_path / "model.safetensors")
    model = shardload.from_pretrained(
        tmp_path, model_class=make, load_in_8bit=True, allow_missing=["layers.0.up.weight"]
    )
    for name in ("own.inner", "own.after", "layers.0.down"):
        weight = state[f"{name}.weight"]
        expected = bnb.nn.Int8Params(weight.clone(), requires_grad=False)._quantize("cpu")
        module = model.get_submodule(name)
        assert torch.equal(module.weight.data, expected.data)
        assert torch.equal(module.weight.SCB, expected.SCB)
    assert model.layers[0].up.weight.dtype == torch.int8
    assert model.layers[0].up.weight.shape == gone.shape
    assert "Linears are quantised to int8" in shardload.report_of(model).notes[-1]


def test_a_failed_load_leaves_the_model_as_it_was(bnb, tmp_path, monkeypatch):
    model = Net(8, 2)
    save_safetensors(random_state(model), tmp_path / "model.safetensors")
    before, modules = dict(model.state_dict(keep_vars=True)), dict(model.named_modules())
    real = Quantised._module

    def fails(self, linear):
        if linear is modules["layers.1.down"]:
            raise RuntimeError("no more")
        return real(self, linear)

    monkeypatch.setattr(Quantised, "_module", fails)
    with pytest.raises(RuntimeError, match="no more"):
        shardload.fill(model, shardload.open_checkpoint(tmp_path), target=Quantised(load_in_8bit=True))
    assert dict(model.named_modules()) == modules
    assert all(value is before[name] for name, value in model.state_dict(keep_vars=True).items())


@pytest.mark.parametrize("kind", ["int8", "fp4"])
def test_memory_is_as_stated_and_small_in_a_fresh_process(bnb, tmp_path, kind):
    save_safetensors(
        {f"{i}.weight": torch.randn(2048, 2048, dtype=torch.bfloat16) for i in range(5)},
        tmp_path / "model.safetensors",
    )
    options = {**KINDS[kind], "bnb_4bit_compute_dtype": "bfloat16"}
    told = json.loads(run_python(MEMORY, str(tmp_path), json.dumps(options)).stdout)
    made = 4 * (2048 * 2048 + 4 * 2048 if kind == "int8" else 2048 * (1024 + 32) + 4 * (256 + 256))
    assert told["anonymous"] == made
    assert told["stated"] <= made + 4 * 2048**2 + 64e6
    first_calls = 12e6 if kind == "fp4" else 0  # what nested scales bring into a process, once
    assert made <= told["kept"] <= made + 8e6 + first_calls
    assert told["peak"] <= min(told["stated"], made + 16e6 + first_calls)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_scales_that_bitsandbytes_has_rounded_are_not_saved(bnb, tmp_path, kind):
    shardload.save(two(64, 64), tmp_path / "plain")
    model = shardload.from_pretrained(
        tmp_path / "plain", model_class=lambda _: two(64, 64), quantization_config=KINDS[kind]
    )
    shardload.save(model, tmp_path / "out")
    convert = (
        bnb.functional._convert_weight_packed_for_cpu
    )  # what a first run does where there is AVX512-BF16
    weight = model[0].weight
    weight.data, weight.quant_state = convert(weight.data, weight.quant_state)
    for _ in range(2):
        with pytest.raises(
            shardload.UnsupportedError, match="rounded the scales of 1 weights of 4 bits"
        ) as caught:
            shardload.save(model, tmp_path / "again")
        assert caught.value.where == "0"
        model.state_dict()  # bitsandbytes undoes the order, not the rounding
    assert not (tmp_path / "again").exists()


def test_hooks_and_attributes_of_a_module_stay(bnb, tmp_path):
    def make(_=None):
        model = two()
        model[0].marked = "by its class"
        model[0].register_forward_hook(lambda module, args, out: out + 1)
        return model

    shardload.save(two(), tmp_path)
    model = shardload.from_pretrained(tmp_path, model_class=make, load_in_8bit=True)
    plain = shardload.from_pretrained(tmp_path, model_class=lambda _: two(), load_in_8bit=True)
    assert model[0].marked == "by its class"
    x = torch.randn(2, 24)
    assert torch.equal(model[0](x), plain[0](x) + 1)


def test_without_the_package_the_error_says_what_to_install():
    assert run_python(MISSING).stdout.strip() == "pip install bitsandbytes"
    assert run_python(MISSING_TORCHAO).stdout.strip() == "pip install torchao"


def test_nothing_is_fetched_by_the_import(bnb, tmp_path, monkeypatch):
    (tmp_path / "kernels.py").write_text("raise SystemExit('asked the network')")
    monkeypatch.syspath_prepend(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{FETCHING}"
    assert run_python(code).stdout.split() == ["False", "True"]
