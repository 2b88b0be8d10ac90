"""E-VOCAB names a vocabulary where tables differ in rows, and nothing where other tensors do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, build_shell, fill, open_checkpoint
from tests.tiny import write_checkpoint


class Rows(nn.Module):
    """One tensor under a name, beside a layer that fits."""

    def __init__(self, path: str, shape: tuple[int, ...]):
        super().__init__()
        module: nn.Module = self
        *parents, leaf = path.split(".")
        for name in parents:
            module.add_module(name, nn.Module())
            module = module.get_submodule(name)
        module.register_parameter(leaf, nn.Parameter(torch.ones(shape)))
        self.norm = nn.LayerNorm(8)


def said(tmp_path, path: str, shape: tuple[int, ...]) -> str:
    folder = write_checkpoint(tmp_path, Rows(path, (3, *shape)).state_dict())
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(lambda: Rows(path, (4, *shape))), open_checkpoint(folder))
    return str(caught.value)


@pytest.mark.parametrize(
    "path", ["model.embed_tokens.weight", "lm_head.weight", "wte.weight", "output.weight"]
)
def test_rows_of_tables_are_a_vocabulary(tmp_path, path):
    assert "vocabulary" in said(tmp_path, path, (8,))


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("mlp.experts.down_proj", (8, 8)),
        ("mlp.gate.weight", (8,)),
        ("mlp.shared_experts.weight", (8,)),
        ("wpe.weight", (8,)),
    ],
)
def test_rows_of_other_tensors_are_none(tmp_path, path, shape):
    assert "vocabulary" not in said(tmp_path, path, shape)
