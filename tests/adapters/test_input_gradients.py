"""Gradient checkpointing, reentrant and not, over a frozen base."""

from __future__ import annotations

import copy

import pytest
import torch

from shardload import (
    attach_lora,
    delete_adapter,
    load_adapter,
    save_adapter,
)
from shardload.adapters.input_gradients import InputGradients
from tests.adapters.tiny import Checkpointed, gradients, randomised


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
