"""Choices of threads, tasks and recomputed layers stay apart."""

from __future__ import annotations

import asyncio
import copy
import sys
import threading
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from shardload import (
    UsageError,
    adapter_batch,
    disable_adapter,
    set_adapter,
)
from shardload.adapters import switch as module
from shardload.adapters.switch import Choice, Switch, close_scope, open_scope
from tests.adapters.tiny import (
    TOKENS,
    logits,
)


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


def test_the_innermost_block_chooses_for_its_own_thread_alone():
    switch = Switch(Choice({"model": 1.0}))
    outer, inner = Choice({"outer": 1.0}), Choice({"inner": 1.0})
    seen = []
    before = open_scope(switch, outer)
    within = open_scope(switch, inner)
    thread = threading.Thread(target=lambda: seen.append(dict(switch.active)))
    thread.start()
    thread.join()
    assert seen == [{"model": 1.0}]
    assert switch.active == {"inner": 1.0}
    assert copy.deepcopy(switch).chosen.weights == {"inner": 1.0}  # a copy is in no block
    close_scope(switch, inner, within)
    assert switch.active == {"outer": 1.0}
    close_scope(switch, outer, before)
    assert (switch.active, switch.live) == ({"model": 1.0}, ())


def test_torch_holds_one_reference_to_what_it_carries_over():
    """Some releases of torch take none and give one back all the same, which frees an object in use."""
    switch, alone = Switch(), object()
    outer, inner = Choice({"outer": 1.0}), Choice({"inner": 1.0})
    before = open_scope(switch, outer)
    within = open_scope(switch, inner)
    mark = torch._C._get_obj_in_tls(module._KEY)
    assert mark == (threading.get_ident(), {switch: inner})
    assert sys.getrefcount(mark) == sys.getrefcount(alone) + 1
    close_scope(switch, inner, within)  # torch lets go of it
    assert sys.getrefcount(mark) == sys.getrefcount(alone)
    close_scope(switch, outer, before)
    seen = weakref.ref(inner)
    del mark, inner
    assert seen() is None
