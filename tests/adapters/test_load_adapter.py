from __future__ import annotations

import json
import math
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from shardload import fill, open_checkpoint
from shardload.adapters import activate, active_adapters, detach, load_adapter
from shardload.adapters.layers.linear import LoraLinear
from shardload.errors import MismatchError, UnsupportedError, UsageError
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Scaled,
    Tiny,
    assert_unchanged,
    by_hand,
    config,
    lora_tensors,
    save_file,
    snapshot,
    write,
)
from tests.tiny import write_checkpoint


def error(ours, wanted):
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adds_scale_times_b_a(tmp_path, dtype, limit):
    model = Tiny(dtype)
    tensors = lora_tensors(model, dtype=dtype)
    wanted = by_hand(Tiny(dtype), tensors, scale=3.0)
    assert error(Tiny(dtype)(TOKENS), wanted) > 0.1
    load_adapter(model, write(tmp_path, tensors))
    assert error(model(TOKENS), wanted) <= limit


@pytest.mark.parametrize("form", ["bin", "legacy"])
def test_pickled_files(tmp_path, form):
    model = Tiny()
    tensors = lora_tensors(model)
    write(tmp_path, tensors, form="bin")
    if form == "legacy":
        torch.save(tensors, tmp_path / "adapter_model.bin", _use_new_zipfile_serialization=False)
    load_adapter(model, tmp_path)
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_with_its_config_beside_it(tmp_path, name):
    model = Tiny()
    tensors = lora_tensors(model)
    report = load_adapter(model, write(tmp_path, tensors) / name)
    assert report.modules == 6
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_an_adapter_in_a_subfolder(tmp_path):
    tensors = lora_tensors(Tiny())
    write(tmp_path / "second", tensors)
    with pytest.raises(Exception, match="subfolder= one of second"):
        load_adapter(Tiny(), tmp_path)
    assert load_adapter(Tiny(), tmp_path, subfolder="second").modules == 6


def test_paths_names_and_objects_stay(tmp_path):
    model = Tiny()
    paths = [path for path, _ in model.named_modules()]
    objects = dict(model.named_modules())
    keys = set(model.state_dict())
    tensors = lora_tensors(model)
    load_adapter(model, write(tmp_path, tensors), name="mine")
    assert [path for path, _ in model.named_modules() if ".lora_" not in path] == paths
    assert all(model.get_submodule(path) is module for path, module in objects.items())
    added = {key.removeprefix(PREFIX).replace(".weight", ".mine.weight") for key in tensors}
    assert set(model.state_dict()) == keys | added
    layer = model.layers[0].down
    assert isinstance(layer, Scaled)
    assert isinstance(layer, nn.Linear)
    assert torch.equal(layer.lora_A["mine"].weight, tensors[f"{PREFIX}layers.0.down.lora_A.weight"])


def test_gradients_flow_to_a_and_b_only(tmp_path):
    model = Tiny()
    load_adapter(model, write(tmp_path, lora_tensors(model)), trainable=True)
    model(TOKENS).sum().backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert all(not p.requires_grad for name, p in model.named_parameters() if ".lora_" not in name)


def test_not_trainable_unless_said(tmp_path):
    model = Tiny()
    load_adapter(model, write(tmp_path, lora_tensors(model)))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_one_training_step_changes_the_adapter_and_not_the_file(tmp_path):
    model = Tiny()
    folder = write(tmp_path, lora_tensors(model))
    before = (folder / "adapter_model.safetensors").read_bytes()
    load_adapter(model, folder, trainable=True)
    base = model.layers[0].q.weight.detach().clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    old = model(TOKENS).detach()
    model(TOKENS).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model(TOKENS), old)
    assert torch.equal(model.layers[0].q.weight, base)
    assert (folder / "adapter_model.safetensors").read_bytes() == before


def test_a_and_b_are_the_mapped_file(tmp_path):
    model = Tiny()
    folder = write(tmp_path, lora_tensors(model))
    load_adapter(model, folder)
    spans = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(folder / "adapter_model.safetensors")):
            low, high = line.split()[0].split("-")
            spans.append((int(low, 16), int(high, 16)))
    address = model.layers[1].up.lora_B["default"].weight.data_ptr()
    assert any(low <= address < high for low, high in spans)


def test_rank_stabilised_scale(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model)
    load_adapter(model, write(tmp_path, tensors, config(use_rslora=True)))
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 6 / math.sqrt(2))) <= 1e-5


def test_rank_and_alpha_patterns(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, names=("q",)) | lora_tensors(model, names=("up",), rank=3)
    settings = config(
        rank_pattern={"up": 3},
        alpha_pattern={"layers.1.q": 10, r"layers\.\d+\.q": 4, "q": 99},
    )
    scales = {"layers.0.q": 4 / 2, "layers.1.q": 10 / 2, "layers.0.up": 6 / 3, "layers.1.up": 6 / 3}
    report = load_adapter(model, write(tmp_path, tensors, settings))
    assert error(model(TOKENS), by_hand(Tiny(), tensors, scales.__getitem__)) <= 1e-5
    assert report.ranks == {2: 2, 3: 2}
    assert report.warnings == ("rank or alpha patterns that match no layer: q",)


def test_the_rank_is_the_file_s_where_the_config_has_none(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, rank=4)
    settings = config()
    del settings["r"]
    assert load_adapter(model, write(tmp_path, tensors, settings)).scales == {1.5: 6}


def test_dropout_only_while_training(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model)
    load_adapter(model, write(tmp_path, tensors, config(lora_dropout=0.5)))
    wanted = by_hand(Tiny(), tensors, 3.0)
    assert error(model(TOKENS), wanted) <= 1e-5
    model.train()
    torch.manual_seed(0)
    assert error(model(TOKENS), wanted) > 0.01


def test_lora_bias(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model, names=("q",))
    extra = {
        key.replace("lora_B.weight", "lora_B.bias"): torch.full((8,), 0.5)
        for key in tensors
        if "lora_B" in key
    }
    load_adapter(model, write(tmp_path, tensors | extra, config(lora_bias=True)))
    reference = Tiny()
    for layer in reference.layers:
        layer.q.bias = nn.Parameter(torch.full((8,), 1.5))
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5


@pytest.mark.parametrize("form", ["{}.base_layer.bias", "{}.bias"])
@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases(tmp_path, form, bias):
    model = Tiny()
    tensors = lora_tensors(model, names=("up",))
    keys = {f"layers.{n}.up": form.format(f"layers.{n}.up") for n in (0, 1)}
    if bias == "all":
        others = ("layers.{}.down", "layers.{}.norm")
        keys |= {other.format(n): other.format(n) + ".bias" for n in (0, 1) for other in others}
        keys["score"] = "score.bias"
    reference = Tiny()
    biases = {}
    for number, (path, key) in enumerate(keys.items()):
        value = torch.full_like(reference.get_submodule(path).bias, 0.1 * number)
        biases[PREFIX + key] = value
        reference.get_submodule(path).bias = nn.Parameter(value)
    report = load_adapter(model, write(tmp_path, tensors | biases, config(bias=bias)))
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5
    assert len(report.rows) == len(tensors) + len(biases)
    assert model.score.bias is not reference.score.bias
    assert model.state_dict().keys() - {
        row.target for row in report.rows
    } == Tiny().state_dict().keys() - keys.keys() - {f"{path}.bias" for path in keys}


def test_lora_only_biases_that_peft_never_saved_are_a_warning(tmp_path):
    report = load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), config(bias="lora_only")))
    assert any("PEFT 0.7 to 0.20 did not save them" in warning for warning in report.warnings)


@pytest.mark.parametrize("form", ["score.{}", "score.modules_to_save.{}", "score.modules_to_save.default.{}"])
def test_modules_to_save(tmp_path, form):
    model = Tiny()
    tensors = lora_tensors(model)
    head = {"weight": torch.ones(3, 8), "bias": torch.arange(3.0)}
    stored = {PREFIX + form.format(name): value for name, value in head.items()}
    folder = write(tmp_path, tensors | stored, config(modules_to_save=["score"]))
    load_adapter(model, folder, trainable=True)
    reference = Tiny()
    reference.score.load_state_dict(head)
    assert error(model(TOKENS), by_hand(reference, tensors, 3.0)) <= 1e-5
    assert type(model.score) is nn.Linear
    assert model.score.weight.requires_grad


def test_a_saved_embedding_of_the_same_size_is_loaded_and_said(tmp_path):
    model = Tiny()
    value = torch.randn(11, 8)
    tensors = lora_tensors(model) | {f"{PREFIX}embed.weight": value}
    report = load_adapter(model, write(tmp_path, tensors))
    assert torch.equal(model.embed.weight, value)
    assert any("saved embedding" in warning for warning in report.warnings)


def test_a_resized_vocabulary_comes_and_goes_with_the_adapter(tmp_path):
    model = tied()
    model.config = types.SimpleNamespace(vocab_size=11)
    value = torch.randn(14, 8)
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": value}
    report = load_adapter(model, write(tmp_path, tensors))
    assert any("resized from 11 to 14" in warning for warning in report.warnings)
    assert (model.embed.num_embeddings, model.head.out_features, model.config.vocab_size) == (14, 14, 14)
    assert torch.equal(model.embed(torch.tensor([13])), value[13:])
    assert model.head(torch.ones(1, 8)).shape == (1, 14)
    activate(model, {})
    assert (model.embed.num_embeddings, model.head.out_features, model.config.vocab_size) == (11, 11, 11)
    activate(model, {"default": 1.0})
    assert len(model.head.weight) == 14
    detach(model, "default")
    assert (len(model.embed.weight), model.head.out_features, model.config.vocab_size) == (11, 11, 11)
    tensors[f"{PREFIX}embed.weight"] = torch.randn(14, 9)
    with pytest.raises(MismatchError, match="does not fit"):
        load_adapter(model, write(tmp_path / "other", tensors))


def tied():
    model = Tiny()
    model.head = nn.Linear(8, 11, bias=False)
    model.head.weight = model.embed.weight
    return model


def test_what_is_tied_to_a_saved_embedding_follows_it(tmp_path):
    model = tied()
    base = model.embed.weight
    value = torch.randn(11, 8)
    load_adapter(model, write(tmp_path, lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": value}))
    assert torch.equal(model.head.weight, value)
    assert model.head.weight is model.embed.weight
    model.double()
    detach(model, "default")
    assert model.head.weight is model.embed.weight is base


def test_what_is_tied_to_a_module_to_save_stays(tmp_path):
    model = tied()
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.weight": torch.randn(11, 8)}
    load_adapter(model, write(tmp_path, tensors, config(modules_to_save=["embed"])))
    assert torch.equal(model.head.weight, Tiny().embed.weight)


def test_an_adapter_that_changes_nothing_says_so(tmp_path):
    tensors = {key: value * ("lora_A" in key) for key, value in lora_tensors(Tiny()).items()}
    report = load_adapter(Tiny(), write(tmp_path, tensors))
    assert any("every B is zero" in warning for warning in report.warnings)
    report = load_adapter(Tiny(), write(tmp_path / "alpha", lora_tensors(Tiny()), config(lora_alpha=0)))
    assert any("lora_alpha is 0" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    ("base", "stored", "computes"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_dtypes(tmp_path, base, stored, computes):
    model = Tiny(base)
    tensors = lora_tensors(model, dtype=stored)
    load_adapter(model, write(tmp_path, tensors))
    assert model.layers[0].q.lora_A["default"].weight.dtype == computes
    logits = model(TOKENS)
    assert logits.dtype == base
    wide = {key: value.to(computes) for key, value in tensors.items()}
    limit = {torch.float64: 1e-12, torch.float32: 1e-5}.get(base, 0.05)
    assert error(logits.double(), by_hand(Tiny(base), wide, 3.0).double()) <= limit


def test_a_base_on_meta_keeps_the_adapter_real(tmp_path):
    model = Tiny().to("meta")
    load_adapter(model, write(tmp_path, lora_tensors(Tiny())))
    assert model.layers[0].q.weight.device.type == "meta"
    assert model.layers[0].q.lora_A["default"].weight.device.type == "cpu"


def test_hooks_on_a_layer_see_the_adapted_output(tmp_path):
    model = Tiny()
    seen = []
    model.layers[0].q.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    model(TOKENS)
    load_adapter(model, write(tmp_path, lora_tensors(model, names=("q",))))
    model(TOKENS)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


def test_a_second_adapter_is_attached_and_not_active(tmp_path):
    model = Tiny()
    one, two = lora_tensors(model), lora_tensors(model, names=("q",), seed=1)
    load_adapter(model, write(tmp_path / "one", one), trainable=True)
    logits = model(TOKENS)
    report = load_adapter(model, write(tmp_path / "two", two), name="two", trainable=True)
    assert not report.active
    assert active_adapters(model) == {"default": 1.0}
    assert torch.equal(model(TOKENS), logits)
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".two." in name)

    activate(model, {"two": 0.5})
    assert error(model(TOKENS), by_hand(Tiny(), two, 1.5)) <= 1e-5
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {"two"}
    activate(model, {})
    assert torch.equal(model(TOKENS), Tiny()(TOKENS))
    activate(model, {"default": 1.0, "two": 0.0})
    assert error(model(TOKENS), logits) <= 1e-6
    with pytest.raises(UsageError, match="three"):
        activate(model, {"three": 1.0})
    with pytest.raises(UsageError, match="attached to this model already"):
        load_adapter(model, tmp_path / "two", name="two")


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_detaching_restores_everything(tmp_path, order):
    model = Tiny()
    model.embed.weight.requires_grad_(False)
    model.layers[0].q.register_forward_hook(lambda *_: None)
    before = snapshot(model)
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    settings = config(modules_to_save=["score"])
    load_adapter(model, write(tmp_path / "a", lora_tensors(model) | head, settings), name="a")
    load_adapter(model, write(tmp_path / "b", lora_tensors(model, names=("up",)) | head, settings), name="b")
    for name in order:
        detach(model, name)
    assert_unchanged(model, before)
    assert type(model.layers[0].down) is Scaled
    with pytest.raises(UsageError, match="attached"):
        detach(model, "a")


def test_a_base_that_was_filled_again_is_trainable_after_the_last_adapter(tmp_path):
    model = Tiny()
    base = write_checkpoint(tmp_path / "base", model.state_dict())
    load_adapter(model, write(tmp_path / "lora", lora_tensors(model)))
    fill(model, open_checkpoint(base), allow_missing=["*lora_*"])
    assert not any(parameter.requires_grad for parameter in model.embed.parameters())
    detach(model, "default")
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_two_adapters_can_not_replace_one_tensor_at_once(tmp_path):
    model = Tiny()
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    for name in ("a", "b"):
        folder = write(tmp_path / name, lora_tensors(model) | head, config(modules_to_save=["score"]))
        load_adapter(model, folder, name=name)
    with pytest.raises(UsageError, match="replace the same tensor"):
        activate(model, {"a": 1.0, "b": 1.0})
    assert active_adapters(model) == {"a": 1.0}


def test_the_base_s_tensors_follow_the_model_when_it_was_cast(tmp_path):
    model = Tiny()
    head = {f"{PREFIX}score.weight": torch.ones(3, 8), f"{PREFIX}score.bias": torch.ones(3)}
    load_adapter(model, write(tmp_path, lora_tensors(model) | head, config(modules_to_save=["score"])))
    model.double()
    detach(model, "default")
    assert model.score.weight.dtype == torch.float64
    assert torch.equal(model(TOKENS), Tiny().double()(TOKENS))


@pytest.mark.parametrize("name", ["", "a.b", "type", "keys", "training", "forward"])
def test_names_that_can_not_be(tmp_path, name):
    with pytest.raises(UsageError, match="name of an adapter"):
        load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny())), name=name)


def test_what_is_no_model(tmp_path):
    with pytest.raises(UsageError, match="not to a dict"):
        load_adapter({}, tmp_path)


def test_another_root_is_refused(tmp_path):
    model = Tiny()
    folder = write(tmp_path, lora_tensors(model))
    load_adapter(model, folder)
    before = snapshot(model)
    with pytest.raises(UsageError, match="larger or smaller part"):
        load_adapter(nn.ModuleDict({"inner": model}), folder, name="other")
    assert_unchanged(model, before)


def test_a_linear_layer_alone(tmp_path):
    layer = nn.Linear(4, 4).eval()
    tensors = {
        f"{PREFIX[:-1]}.lora_A.weight": torch.randn(2, 4),
        f"{PREFIX[:-1]}.lora_B.weight": torch.randn(4, 2),
    }
    x = torch.randn(4)
    plain = layer(x)
    load_adapter(layer, write(tmp_path, tensors))
    a, b = tensors.values()
    assert error(layer(input=x), plain + 3 * (b @ (a @ x))) <= 1e-5
    assert isinstance(layer, LoraLinear)


def test_not_strict_loads_the_rest_and_says_what_it_left(tmp_path):
    model = Tiny()
    tensors = lora_tensors(model)
    folder = write(tmp_path, tensors | {f"{PREFIX}elsewhere.weight": torch.ones(2)}, config(new_knob=1))
    with pytest.raises(UnsupportedError, match="new_knob"):
        load_adapter(Tiny(), folder)
    report = load_adapter(model, folder, strict=False)
    assert report.modules == 6
    assert any("elsewhere" in warning for warning in report.warnings)
    assert any("new_knob" in warning for warning in report.warnings)


def test_not_strict_still_refuses_a_file_of_which_nothing_fits(tmp_path):
    tensors = {key.replace("layers", "blocks"): value for key, value in lora_tensors(Tiny()).items()}
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(MismatchError):
        load_adapter(model, write(tmp_path, tensors), strict=False)
    assert_unchanged(model, before)


def test_layers_that_the_adapter_was_made_for_and_the_file_lacks_are_a_warning(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny(), names=("q",)), config(target_modules=["q", "up"]))
    report = load_adapter(Tiny(), folder)
    assert report.warnings == ("target_modules names 2 layers that the file lacks: layers.0.up, layers.1.up",)


def test_the_report(tmp_path):
    settings = config(base_model_name_or_path="org/base\x1b[31m")
    report = load_adapter(Tiny(), write(tmp_path, lora_tensors(Tiny()), settings))
    text = str(report)
    assert "6 layers, rank 2, scale 3" in text
    assert "layers.{0-1}.up.lora_B.default.weight  (12, 2) F32" in text
    assert "\x1b" not in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["modules"] == 6
    assert {
        "key": "base_model.model.layers.0.q.lora_A.weight",
        "target": "layers.0.q.lora_A.default.weight",
        "shape": [2, 8],
        "dtype": "F32",
        "scale": 3.0,
        "note": "",
    } in data["rows"]
    assert report.nbytes == sum(t.nbytes for t in lora_tensors(Tiny()).values())


def test_a_single_file_elsewhere(tmp_path):
    tensors = lora_tensors(Tiny())
    write(tmp_path, tensors)
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file(tensors, tmp_path / "my-lora.safetensors")
    assert load_adapter(Tiny(), tmp_path / "my-lora.safetensors").modules == 6
    assert load_adapter(Tiny(), tmp_path).modules == 6
