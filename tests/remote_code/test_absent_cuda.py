"""Constructors that ask for CUDA, on a machine without: what they make is on the CPU."""

from __future__ import annotations

import pytest
import torch

import shardload
from shardload.errors import RemoteCodeError
from tests.remote_code.repos import MODEL, build, tiny

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")

FORMS = {
    "a device": "torch.arange(4.0, device=torch.device('cuda'))",
    "its name": "torch.arange(4.0, device='cuda:0')",
    "to": "torch.arange(4.0).to('cuda', torch.float32)",
    "to a device": "torch.arange(4.0).to(device=torch.device('cuda', 0))",
    "cuda": "torch.arange(4.0).cuda()",
    "a new tensor": "torch.zeros(4).new_tensor([0.0, 1.0, 2.0, 3.0], device='cuda')",
}


def with_table(expression):
    lines = f"super().__init__(config)\n        self.register_buffer('table', {expression}, persistent=False)"
    return MODEL.replace("super().__init__(config)", lines)


@pytest.mark.parametrize("form", FORMS)
def test_a_table_on_cuda_is_on_the_cpu(tmp_path, form):
    source, config = tiny(tmp_path, model=with_table(FORMS[form]))
    weights = {"linear.weight": torch.ones(4, 4), "linear.bias": torch.zeros(4)}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    model = shardload.from_pretrained(tmp_path, trust_remote_code=True)
    assert model.table.tolist() == [0, 1, 2, 3]
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    assert build(source, config).table.tolist() == [0, 1, 2, 3]  # and where it is built with memory


def test_a_shell_counts_the_parameters_of_one_constructor(tmp_path):
    last = MODEL.replace(
        "config.hidden_size)\n\n", "config.hidden_size)\n        torch.ones(2, device='cuda')\n\n"
    )
    assert last != MODEL
    tiny(tmp_path, model=last)
    config = shardload.load_config(tmp_path, trust_remote_code=True)
    make = shardload.resolve_class(tmp_path, trust_remote_code=True)
    shell = shardload.build_shell(lambda: make(config), at_most=2)
    assert [id(value) for value in shell.created] == [id(value) for value in shell.model.parameters()]
    assert all(value.is_meta for value in shell.model.parameters())


def test_another_failure_is_the_codes_own(tmp_path):
    with pytest.raises(RemoteCodeError, match="ZeroDivisionError"):
        build(*tiny(tmp_path, model=with_table("1 / 0")))
    with pytest.raises(RemoteCodeError, match=r"device='cuda' \+ 1|can only concatenate"):
        build(*tiny(tmp_path / "late", model=with_table("(torch.ones(1, device='cuda'), 'x' + 1)")))
