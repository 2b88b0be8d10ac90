"""Training with adapters: checkpointing both ways, loralib's habits, copies, half precision."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload import (
    UsageError,
    attach_lora,
    delete_adapter,
    disable_adapter,
    load_adapter,
    lora_state_dict,
    mark_only_lora_as_trainable,
    save_adapter,
    set_adapter,
    trainable_parameters,
)
from shardload.adapters.input_gradients import InputGradients
from tests.adapters.tiny import TOKENS, Tiny


class Checkpointed(Tiny):
    """Recomputes its blocks while `gradient_checkpointing` says so, as models of transformers do."""

    def __init__(self, *, reentrant):
        super().__init__()
        self.gradient_checkpointing = False
        self.reentrant = reentrant

    def get_input_embeddings(self):
        return self.embed

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, use_reentrant=self.reentrant)
            else:
                x = layer(x)
        return self.score(x)


def randomised(model):
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=random) / 3)
    return model


def gradients(model):
    model.zero_grad(set_to_none=True)
    model(TOKENS).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("targets", [["q"], ["q", "up", "down"]])
def test_checkpointing_gives_the_same_gradients(reentrant, targets):
    model = Checkpointed(reentrant=reentrant).train()
    attach_lora(model, 2, 4, targets, dropout=0.0)
    randomised(model)
    wanted = gradients(model)
    model.gradient_checkpointing = True
    ours = gradients(model)
    assert ours.keys() == wanted.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert all(torch.allclose(ours[name], wanted[name], atol=1e-5) for name in wanted)
    other = copy.deepcopy(model)
    assert gradients(other).keys() == wanted.keys()
    delete_adapter(model, "default")
    assert not any(model.embed._forward_hooks.values())
    # The copy's hook looks at the copy's own modules.
    (hook,) = other.embed._forward_hooks.values()
    assert isinstance(hook, InputGradients)
    assert hook.flags == [other]


def test_an_adapter_that_is_only_run_gets_no_hook(tmp_path):
    model = Checkpointed(reentrant=True)
    attach_lora(model, 2, 4, ["q"])
    save_adapter(model, tmp_path)
    other = Checkpointed(reentrant=True)
    load_adapter(other, tmp_path)
    assert not other.embed._forward_hooks


def test_marks_as_loralib_does():
    model = Tiny()
    attach_lora(model, 2, 4, ["q", "up"])
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    mark_only_lora_as_trainable(model)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }
    mark_only_lora_as_trainable(model, "lora_only")
    marked = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert marked == {"layers.0.up.bias", "layers.1.up.bias"}
    mark_only_lora_as_trainable(model, bias="all")
    marked = {n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n}
    assert marked == {n for n, _ in Tiny().named_parameters() if n.endswith("bias")}
    with pytest.raises(UsageError, match="bias must be one of"):
        mark_only_lora_as_trainable(model, "some")
    set_adapter(model, {})
    with pytest.raises(UsageError, match="no adapter is active"):
        mark_only_lora_as_trainable(model)


def test_biases_that_were_marked_are_the_adapters_own(tmp_path):
    model = Tiny()
    attach_lora(model, 2, 4, ["up"])
    mark_only_lora_as_trainable(model, "all")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5)
    wanted = model(TOKENS)
    with disable_adapter(model):
        assert torch.equal(model(TOKENS), Tiny()(TOKENS))
    save_adapter(model, tmp_path)
    other = Tiny()
    load_adapter(other, tmp_path)
    assert torch.equal(other(TOKENS), wanted)


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_a_state_dict_of_what_was_trained_goes_back(bias):
    model = Tiny()
    attach_lora(model, 2, 4, ["q", "up"], bias=bias)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape))
    state = lora_state_dict(model, bias)
    assert state.keys() >= {n for n, p in model.named_parameters() if p.requires_grad}
    assert state.keys() <= model.state_dict().keys()
    assert "layers.0.q.weight" not in state
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = Tiny()
    attach_lora(other, 2, 4, ["q", "up"], bias=bias)
    assert not other.load_state_dict(torch.load(file), strict=False).unexpected_keys
    assert torch.equal(other(TOKENS), model(TOKENS))
    with pytest.raises(UsageError, match="bias must be one of"):
        lora_state_dict(model, "some")


def test_the_same_names_as_loralibs():
    loralib = pytest.importorskip("loralib")
    theirs = nn.Sequential(loralib.Linear(4, 6, r=2), nn.Linear(6, 3))
    loralib.mark_only_lora_as_trainable(theirs, "lora_only")
    ours = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    attach_lora(ours, 2, targets=["0"])
    mark_only_lora_as_trainable(ours, "lora_only")
    spelled = {name.replace(".default.weight", "") for name, p in ours.named_parameters() if p.requires_grad}
    assert spelled == {name for name, p in theirs.named_parameters() if p.requires_grad}
    for bias in ("none", "lora_only", "all"):
        mine = {name.replace(".default.weight", "") for name in lora_state_dict(ours, bias)}
        assert mine == loralib.lora_state_dict(theirs, bias).keys()


def test_train_and_eval_do_not_touch_the_base():
    """loralib subtracts the delta from whatever weights are there when train() is called after eval()."""
    model = Tiny()
    attach_lora(model, 2, 4, ["q"])
    randomised(model)
    base = model.layers[0].q.weight.clone()
    for _ in range(3):
        model.eval()
        assert torch.equal(model.layers[0].q.weight, base)
        model.train()
        assert torch.equal(model.layers[0].q.weight, base)


@pytest.mark.filterwarnings("ignore:.*copies.*:UserWarning")
@pytest.mark.filterwarnings("ignore:.*copy.*:UserWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_eval_merges_on_request_and_train_takes_it_back(dtype):
    model = Tiny(dtype)
    attach_lora(model, 2, 4, ["q", "up"], merge_on_eval=True)
    randomised(model).train()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    separate = model(TOKENS)
    for _ in range(20):
        model.eval()
        assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])
        assert torch.allclose(
            model(TOKENS).float(), separate.float(), atol=1e-4 if dtype == torch.float32 else 0.2
        )
        model.layers[0].eval()
        model.layers[0].train()
        assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])
        model.train()
        assert all(torch.equal(value, base[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(TOKENS), separate)
    model.eval()
    other = copy.deepcopy(model)
    other.train()
    assert torch.equal(other.layers[0].q.weight, base["layers.0.q.weight"])
    assert not torch.equal(model.layers[0].q.weight, base["layers.0.q.weight"])


def dumped(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, dumped, saved])
def test_a_copy_trains_apart(again):
    model = Checkpointed(reentrant=True).train()
    attach_lora(model, 2, 4, ["q", "up"], modules_to_save=["score"], merge_on_eval=True)
    attach_lora(model, 3, 4, ["down"], name="second")
    other = again(model)
    assert trainable_parameters(other) == trainable_parameters(model)
    wanted = model(TOKENS)
    optimizer = torch.optim.SGD([p for p in other.parameters() if p.requires_grad], lr=0.5)
    other.gradient_checkpointing = True
    other(TOKENS).square().sum().backward()
    optimizer.step()
    assert not torch.allclose(other(TOKENS), wanted)
    assert torch.equal(model(TOKENS), wanted)
    with disable_adapter(other):
        assert torch.equal(other(TOKENS), Tiny()(TOKENS))
    set_adapter(other, "second")
    delete_adapter(other, "default")
    delete_adapter(other, "second")
    assert torch.equal(other(TOKENS), Tiny()(TOKENS))


def test_autocast_trains_factors_in_float32():
    model = Tiny(torch.bfloat16).train()
    attach_lora(model, 2, 4, ["q", "up"])
    randomised(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(TOKENS).float().square().sum()
    loss.backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
    assert all(p.grad.isfinite().all() for p in trained)
