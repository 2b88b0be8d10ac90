"""load_adapter: what it changes of a model and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.adapters.layers.linear import LoraLinear
from shardload.errors import MismatchError, UnsupportedError
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Scaled,
    Tiny,
    assert_unchanged,
    by_hand,
    config,
    error,
    lora_tensors,
    snapshot,
    write,
)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_adds_scale_times_b_a(tmp_path, dtype, limit):
    model = Tiny(dtype)
    tensors = lora_tensors(model, dtype=dtype)
    wanted = by_hand(Tiny(dtype), tensors, scale=3.0)
    assert error(Tiny(dtype)(TOKENS), wanted) > 0.1
    load_adapter(model, write(tmp_path, tensors))
    assert error(model(TOKENS), wanted) <= limit


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


def test_hooks_on_a_layer_see_the_adapted_output(tmp_path):
    model = Tiny()
    seen = []
    model.layers[0].q.register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    model(TOKENS)
    load_adapter(model, write(tmp_path, lora_tensors(model, names=("q",))))
    model(TOKENS)
    assert len(seen) == 2
    assert not torch.equal(seen[0], seen[1])


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
