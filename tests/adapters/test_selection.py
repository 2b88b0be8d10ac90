"""Which adapters run: for the model, for a `with` block, for each row of a batch, in one thread and in several."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shardload import (
    UsageError,
    active_adapters,
    adapter_batch,
    delete_adapter,
    disable_adapter,
    load_adapter,
    set_adapter,
)
from tests.adapters.tiny import (
    PREFIX,
    TOKENS,
    Tiny,
    assert_unchanged,
    by_hand,
    config,
    lora_tensors,
    snapshot,
    write,
)

BATCH = torch.tensor([[1, 2, 3], [5, 6, 7], [8, 9, 10], [2, 2, 4], [7, 1, 0]])


def head(seed):
    random = torch.Generator().manual_seed(seed)
    return {
        f"{PREFIX}score.weight": torch.randn(3, 8, generator=random),
        f"{PREFIX}score.bias": torch.randn(3, generator=random),
    }


@pytest.fixture
def model(tmp_path):
    """Adapters "a" and "b" of different ranks on different layers, scale 3 and 2."""
    model = Tiny()
    load_adapter(model, write(tmp_path / "a", lora_tensors(model)), name="a")
    b = lora_tensors(model, names=("q", "down"), rank=3, seed=5)
    load_adapter(model, write(tmp_path / "b", b, config(r=3)), name="b")
    return model


@pytest.fixture
def saving(tmp_path):
    """Adapter "plain", and "whole" that replaces the head."""
    model = Tiny()
    load_adapter(model, write(tmp_path / "plain", lora_tensors(model)), name="plain")
    tensors = {**lora_tensors(model, seed=1), **head(2)}
    load_adapter(model, write(tmp_path / "whole", tensors, config(modules_to_save=["score"])), name="whole")
    return model


def logits(model, which, tokens=TOKENS):
    set_adapter(model, which)
    with torch.no_grad():
        return model(tokens)


def test_a_name_names_weights_and_the_plain_base(model):
    tensors = lora_tensors(model)
    assert torch.allclose(logits(model, "a"), by_hand(Tiny(), tensors, 3.0), atol=1e-5)
    assert active_adapters(model) == {"a": 1.0}
    other = lora_tensors(Tiny(), names=("q", "down"), rank=3, seed=5)
    weighted = {key: value * (0.7 if "lora_B" in key else 1) for key, value in tensors.items()}
    assert torch.allclose(logits(model, {"a": 0.7}), by_hand(Tiny(), weighted, 3.0), atol=1e-5)
    joined = {}
    for key, value in tensors.items():
        joined[key] = value
        if key in other:
            dim, factor = (0, 1.0) if "lora_A" in key else (1, -0.5 * 2.0 / 3.0)
            joined[key] = torch.cat([value, other[key] * factor], dim)
    assert torch.allclose(logits(model, {"a": 1, "b": -0.5}), by_hand(Tiny(), joined, 3.0), atol=1e-5)
    assert torch.equal(logits(model, ["a", "b"]), logits(model, {"a": 1.0, "b": 1.0}))
    assert torch.equal(logits(model, {}), Tiny()(TOKENS))
    assert active_adapters(model) == {}


@pytest.mark.parametrize(
    ("which", "said"),
    [
        ("c", "'c' is attached"),
        (["a", "c", "d"], "'c', 'd' is attached"),
        ({"a": float("nan")}, "finite number"),
        ({"a": float("inf")}, "finite number"),
        ({"a": True}, "finite number"),
        ({"a": "1"}, "finite number"),
        (3, "not a int"),
        (None, "not a NoneType"),
    ],
)
def test_what_can_not_be_set(model, which, said):
    before = logits(model, {"b": 2})
    with pytest.raises(UsageError, match=said):
        set_adapter(model, which)
    assert active_adapters(model) == {"b": 2.0}
    assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize(
    "call", [lambda m: set_adapter(m, {}), disable_adapter, lambda m: delete_adapter(m, "a")]
)
def test_the_module_that_adapters_were_attached_to(model, call):
    for other in (Tiny(), model.layers):
        with pytest.raises(UsageError, match="no adapter is attached to this"):
            call(other)


def test_disabled_inside_the_block_alone(model):
    wanted, base = logits(model, {"a": 0.5, "b": 1}), Tiny()(TOKENS)
    scope = disable_adapter(model)
    for _ in range(2):
        with scope:
            assert torch.equal(model(TOKENS), base)
            assert active_adapters(model) == {}
            with scope, adapter_batch(model, ["a", "a"]):
                assert active_adapters(model) == {"a": 1.0}
                assert torch.allclose(model(TOKENS), by_hand(Tiny(), lora_tensors(model), 3.0), atol=1e-5)
            assert torch.equal(model(TOKENS), base)
        assert torch.equal(model(TOKENS), wanted)


def test_an_exception_inside_the_block(saving):
    wanted = logits(saving, "whole")
    before = snapshot(saving)

    def fail():
        with disable_adapter(saving):
            assert torch.equal(saving(TOKENS), Tiny()(TOKENS))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert_unchanged(saving, before)
    assert torch.equal(saving(TOKENS), wanted)


def test_inside_a_block_the_model_is_not_switched(model):
    with disable_adapter(model), pytest.raises(UsageError, match="inside disable_adapter"):
        set_adapter(model, "b")
    with adapter_batch(model, ["b", None]):
        with pytest.raises(UsageError, match="runs with the adapter 'b'"):
            delete_adapter(model, "b")
        delete_adapter(model, "a")
        assert model(TOKENS).isfinite().all()
    assert active_adapters(model) == {}
    with disable_adapter(model):
        delete_adapter(model, "b")
    with pytest.raises(UsageError, match="no adapter is attached"):
        disable_adapter(model)


def test_an_active_adapter_is_deleted(model):
    wanted = logits(model, "b")
    set_adapter(model, ["a", "b"])
    delete_adapter(model, "a")
    assert active_adapters(model) == {"b": 1.0}
    assert torch.equal(model(TOKENS), wanted)
    with pytest.raises(UsageError, match="'a' is attached\n  where: attached: b"):
        delete_adapter(model, "a")
    delete_adapter(model, "b")
    plain = Tiny()
    assert torch.equal(model(TOKENS), plain(TOKENS))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", None, "a", "b"],
        ["b"] * 5,
        [None] * 5,
        ["a", "a", "b", None, None],
        ["b", "a", "a", "a", "b"],
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_as_if_it_were_alone(model, names, dtype):
    model.to(dtype)
    rows = [logits(model, {} if name is None else name, BATCH[[row]]) for row, name in enumerate(names)]
    set_adapter(model, {"a": 0.3})
    with torch.no_grad(), adapter_batch(model, names):
        ours = model(BATCH)
    assert ours.dtype == dtype
    assert torch.allclose(
        ours.float(), torch.cat(rows).float(), atol=1e-5 if dtype == torch.float32 else 0.05
    )


def test_gradients_of_a_mixed_batch(model):
    for adapter in ("a", "b"):
        set_adapter(model, adapter)
    factors = [parameter.requires_grad_() for name, parameter in model.named_parameters() if "lora_" in name]
    alone = 0.0
    for row, name in enumerate(["a", "b", None, "a", "b"]):
        with adapter_batch(model, [name]):
            alone = alone + model(BATCH[[row]]).square().sum()
    wanted = torch.autograd.grad(alone, factors)
    with adapter_batch(model, ["a", "b", None, "a", "b"]):
        ours = torch.autograd.grad(model(BATCH).square().sum(), factors)
    assert all(torch.allclose(one, other, atol=1e-4) for one, other in zip(ours, wanted, strict=True))


@pytest.mark.parametrize("names", ["ab", [], None, {"a": 1}])
def test_what_is_no_list_of_rows(model, names):
    with pytest.raises(UsageError, match="adapter_batch takes"):
        adapter_batch(model, names)


def test_a_batch_of_another_length(model):
    before = logits(model, "a", BATCH)
    said = r"has 4 rows, and a layer's input has the shape \(5, 3, 8\)"
    with adapter_batch(model, ["a", "b", None, "a"]), pytest.raises(UsageError, match=said):
        model(BATCH)
    assert torch.equal(model(BATCH), before)
    with pytest.raises(UsageError, match="no adapter called c is attached\n  where: attached: a, b"):
        adapter_batch(model, ["a", "c"])


def test_a_model_that_has_the_sequence_first(model):
    class SequenceFirst(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, tokens):
            x = self.inner.embed(tokens).transpose(0, 1)
            for layer in self.inner.layers:
                x = layer(x)
            return self.inner.score(x).transpose(0, 1)

    sequence_first = SequenceFirst(model)
    names = ["b", None, "a"]
    rows = [logits(model, name or {}, BATCH[[row]]) for row, name in enumerate(names)]
    with adapter_batch(model, names):
        assert torch.allclose(sequence_first(BATCH[:3, :2]), torch.cat(rows)[:, :2], atol=1e-5)
    with adapter_batch(model, names, batch_dim=1):
        assert torch.allclose(sequence_first(BATCH[:3]), torch.cat(rows), atol=1e-5)
    model.config = type("Config", (), {"model_type": "chatglm"})
    with adapter_batch(model, names), pytest.raises(UsageError, match="3 rows either way"):
        sequence_first(BATCH[:3])
    with pytest.raises(UsageError, match="batch_dim=2"):
        adapter_batch(model, names, batch_dim=2)


def test_an_adapter_with_a_head_of_its_own(saving):
    whole, plain, base = logits(saving, "whole"), logits(saving, "plain"), Tiny()(TOKENS)
    with adapter_batch(saving, ["whole", "whole"]):
        assert torch.equal(saving(TOKENS), whole)
    assert torch.equal(saving(TOKENS), plain)
    with adapter_batch(saving, ["plain", None]):
        assert torch.allclose(saving(TOKENS), torch.stack([plain[0], base[1]]), atol=1e-5)
    with pytest.raises(UsageError, match="can't be one row's alone"):
        adapter_batch(saving, ["whole", "plain"])
    with pytest.raises(UsageError, match="no weight but 1"):
        set_adapter(saving, {"whole": 0.5})
    set_adapter(saving, "whole")
    with disable_adapter(saving):
        assert torch.equal(saving(TOKENS), base)
        inside = copy.deepcopy(saving)
    assert torch.equal(inside(TOKENS), base)
    assert torch.equal(logits(inside, "whole"), whole)
    assert torch.equal(saving(TOKENS), whole)


def test_threads_do_not_see_each_others_blocks(model):
    wanted = {name: logits(model, name or {}) for name in ("a", "b", None)}
    set_adapter(model, {"a": 0.25})
    outside = model(TOKENS)
    wrong, barrier = [], threading.Barrier(4)

    def run(name):
        barrier.wait()
        for _ in range(60):
            with torch.no_grad():
                if name == "outside":
                    right = torch.equal(model(TOKENS), outside)
                else:
                    with adapter_batch(model, [name, name]):
                        right = torch.allclose(model(TOKENS), wanted[name], atol=1e-6)
            if not right:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a", "b", None, "outside")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(model(TOKENS), outside)


def test_tasks_do_not_see_each_others_blocks(model):
    wanted = {name: logits(model, name) for name in ("a", "b")}

    async def run(name):
        for _ in range(5):
            with adapter_batch(model, [name, name]):
                await asyncio.sleep(0)
                assert torch.allclose(model(TOKENS), wanted[name], atol=1e-6)
            await asyncio.sleep(0)

    async def both():
        await asyncio.gather(run("a"), run("b"), run("a"))

    asyncio.run(both())


def test_a_thread_can_not_exchange_the_tensors_under_another(saving):
    set_adapter(saving, "whole")
    said = []

    def other():
        try:
            with disable_adapter(saving):
                pass
        except UsageError as error:
            said.append(str(error))

    with adapter_batch(saving, ["whole", "whole"]):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert "another thread is inside a block" in said[0]
    other()
    assert len(said) == 1


def test_switching_while_others_run_mixes_no_layer(model):
    """A layer sees one choice or the other: every output of it is that of one of them."""
    layer = model.layers[0].q
    x = torch.randn(3, 8)
    outputs = []
    for which in ("a", "b"):
        set_adapter(model, which)
        outputs.append(layer(x).detach())
    done, wrong = threading.Event(), []

    def run():
        while not done.is_set():
            out = layer(x)
            if not any(torch.equal(out, one) for one in outputs):
                wrong.append(out)

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(200):
        set_adapter(model, "a")
        set_adapter(model, "b")
    done.set()
    thread.join()
    assert wrong == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_recomputing_inside_a_block(model, use_reentrant):
    names = ["b", None]
    x = torch.randn(2, 8, requires_grad=True)
    set_adapter(model, "a")
    with adapter_batch(model, names):
        wanted = torch.autograd.grad(model.layers[1](model.layers[0](x)).square().sum(), x)[0]
        y = checkpoint(model.layers[0], x, use_reentrant=use_reentrant)
        y = checkpoint(model.layers[1], y, use_reentrant=use_reentrant)
        y.square().sum().backward()
    assert torch.allclose(x.grad, wanted, atol=1e-5)


def test_recomputing_in_a_thread_of_autograd(model):
    """Deep in nested recomputations autograd goes on in another thread, as it always does on a GPU."""
    layer, seen = model.layers[0].q, set()
    set_adapter(model, "a")
    x = torch.randn(2, 8, requires_grad=True)

    def nest(depth, y):
        if depth == 0:
            seen.add(threading.get_ident())
            return layer(y)
        return checkpoint(lambda z: nest(depth - 1, z), y, use_reentrant=True)

    with adapter_batch(model, ["b", None]):
        wanted = torch.autograd.grad(layer(x).square().sum(), x)[0]
        nest(70, x).square().sum().backward()
    assert len(seen) == 2
    assert torch.allclose(x.grad, wanted, atol=1e-5)


def test_a_module_that_reads_its_weights_itself(tmp_path):
    model = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True)).eval()
    tensors = {f"{PREFIX}0.lora_A.weight": torch.ones(2, 4), f"{PREFIX}0.lora_B.weight": torch.ones(12, 2)}
    load_adapter(model, write(tmp_path, tensors), name="a")
    x = torch.randn(2, 3, 4)
    wanted = model[0](x, x, x)[0]
    with adapter_batch(model, ["a", "a"]):
        assert torch.equal(model[0](x, x, x)[0], wanted)
    with adapter_batch(model, ["a", None]), pytest.raises(UsageError, match="reads its weights itself"):
        model[0](x, x, x)
