"""Other weights for an adapter that stays attached."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from shardload import (
    MismatchError,
    UsageError,
    active_adapters,
    adapter_batch,
    attach_lora,
    delete_adapter,
    load_adapter,
    save_adapter,
    set_adapter,
    swap_adapter,
)
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Tiny,
    assert_unchanged,
    config,
    lora_tensors,
    snapshot,
    write,
)


@pytest.fixture
def files(tmp_path):
    """Adapters that differ in rank, layers, alpha, patterns and variant; "whole" replaces the head."""
    model = Tiny()
    random = torch.Generator().manual_seed(4)
    head = {
        f"{PREFIX}score.weight": torch.randn(3, 8, generator=random),
        f"{PREFIX}score.bias": torch.randn(3, generator=random),
    }
    made = {
        "first": (lora_tensors(model), config()),
        "same shapes": (lora_tensors(model, seed=3), config(lora_alpha=9)),
        "other ranks": (lora_tensors(model, rank=5, seed=4), config(r=5, use_rslora=True)),
        "other layers": (lora_tensors(model, names=("q", "score"), seed=5), config(alpha_pattern={"q": 2})),
        "whole": ({**lora_tensors(model, names=("q",), seed=6), **head}, config(modules_to_save=["score"])),
    }
    dora = Tiny()
    attach_lora(dora, 3, 4, ["q", "up"], use_dora=True, seed=2)
    with torch.no_grad():
        for name, parameter in dora.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=random) / 4)
    save_adapter(dora, tmp_path / "dora")
    folders = {name: write(tmp_path / name, *content) for name, content in made.items()}
    return {**folders, "dora": tmp_path / "dora"}


def fresh(files, name):
    model = Tiny()
    load_adapter(model, files[name])
    return model(TOKENS)


def test_every_one_after_every_other(files):
    model = Tiny()
    load_adapter(model, files["first"])
    q = model.layers[0].q
    kind = type(q)
    calls = []
    q.register_forward_hook(lambda *_: calls.append(1))
    order = [one for first in files for second in files for one in (first, second)]
    wanted = {name: fresh(files, name) for name in files}
    for name in order:
        report = swap_adapter(model, "default", files[name])
        assert report.active
        assert torch.equal(model(TOKENS), wanted[name]), name
        assert (model.layers[0].q is q, type(q) is kind) == (True, True)
    assert len(calls) == len(order)
    delete_adapter(model, "default")
    q._forward_hooks.clear()
    plain = Tiny()
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weight_order_and_trainability_stay(files):
    model = Tiny()
    load_adapter(model, files["first"], trainable=True)
    load_adapter(model, files["other ranks"], name="second")
    set_adapter(model, {"second": 0.5, "default": 2.0})
    swap_adapter(model, "default", files["same shapes"])
    assert list(active_adapters(model).items()) == [("second", 0.5), ("default", 2.0)]
    assert {name.split(".")[4] for name, p in model.named_parameters() if p.requires_grad} == {"default"}
    other = Tiny()
    load_adapter(other, files["same shapes"])
    load_adapter(other, files["other ranks"], name="second")
    set_adapter(other, {"second": 0.5, "default": 2.0})
    assert torch.equal(model(TOKENS), other(TOKENS))


def test_one_that_is_not_active(files):
    model = Tiny()
    load_adapter(model, files["first"])
    load_adapter(model, files["whole"], name="second")
    wanted = model(TOKENS)
    assert not swap_adapter(model, "second", files["dora"]).active
    assert torch.equal(model(TOKENS), wanted)
    set_adapter(model, "second")
    assert torch.equal(model(TOKENS), fresh(files, "dora"))


@pytest.mark.parametrize("start", ["first", "whole", "dora"])
def test_a_file_that_does_not_fit_changes_nothing(files, tmp_path, start):
    model = Tiny()
    load_adapter(model, files[start])
    wanted = model(TOKENS)
    broken = lora_tensors(model)
    broken[f"{PREFIX}layers.0.q.lora_A.weight"] = torch.ones(2, 9)
    write(tmp_path / "broken", broken)
    before = snapshot(model)
    with pytest.raises(MismatchError, match=r"layers\.0\.q"):
        swap_adapter(model, "default", tmp_path / "broken")
    with pytest.raises(UsageError, match="'other' is attached"):
        swap_adapter(model, "other", files["first"])
    assert_unchanged(model, before)
    assert torch.equal(model(TOKENS), wanted)


def test_what_can_not_be_active_so(files):
    model = Tiny()
    load_adapter(model, files["first"])
    set_adapter(model, {"default": 0.5})
    wanted = model(TOKENS)
    with pytest.raises(UsageError, match="no weight but 1"):
        swap_adapter(model, "default", files["whole"])
    assert torch.equal(model(TOKENS), wanted)
    load_adapter(model, files["whole"], name="second")
    with adapter_batch(model, ["default", None]):
        with pytest.raises(UsageError, match="runs with the adapter 'default'"):
            swap_adapter(model, "default", files["dora"])
        swap_adapter(model, "second", files["dora"])
    set_adapter(model, "second")
    assert torch.equal(model(TOKENS), fresh(files, "dora"))


def test_while_another_thread_runs_the_other_adapter(files):
    model = Tiny()
    load_adapter(model, files["first"], name="a")
    load_adapter(model, files["same shapes"], name="b")
    wanted, wrong, done = model(TOKENS), [], threading.Event()

    def run():
        while not done.is_set():
            with adapter_batch(model, ["a", "a"]):
                if not torch.allclose(model(TOKENS), wanted, atol=1e-6):
                    wrong.append(1)

    thread = threading.Thread(target=run)
    thread.start()
    for name in ("other ranks", "dora", "other layers") * 4:
        swap_adapter(model, "b", files[name])
    done.set()
    thread.join()
    assert wrong == []
    assert isinstance(model.layers[0].q, nn.Linear)
