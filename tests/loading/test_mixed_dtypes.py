"""A note on mixed dtypes is there where the forward pass fails, and not where it runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import build_shell, fill, from_pretrained, open_checkpoint, report_of, save
from shardload.loading.mixed_dtypes import mixed_notes

WIDTH = 8


class Promoting(nn.Module):
    """Casts its result down before it multiplies with the weight, which promotes it again."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class PromotingNorm(Promoting): ...


class CastingNorm(Promoting):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).to(x.dtype)


class StrangeNorm(Promoting):
    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        if residual is None:
            raise LookupError("it wants a residual")
        return x


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)))


class Model(nn.Module):
    def __init__(self, norm: type[nn.Module]) -> None:
        super().__init__()
        made = [norm(WIDTH) if norm in (nn.LayerNorm, nn.RMSNorm) else norm() for _ in range(2)]
        self.layers = nn.ModuleList(map(Block, made))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def norms_in(dtype: torch.dtype):
    def change(model: Model) -> None:
        for layer in model.layers:
            layer.norm.to(dtype)

    return change


def a_linear_in(dtype: torch.dtype):
    return lambda model: model.layers[1].down.to(dtype)


def a_bias_in(dtype: torch.dtype):
    def change(model: Model) -> None:
        model.layers[1].down.bias = nn.Parameter(model.layers[1].down.bias.detach().to(dtype))

    return change


NORMS = [PromotingNorm, CastingNorm, nn.LayerNorm, nn.RMSNorm]
CHANGES = {"norms": norms_in, "a Linear": a_linear_in, "a bias": a_bias_in, "none": lambda _: lambda _: None}


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.__name__)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("most", [torch.bfloat16, torch.float16, torch.float32])
def test_a_note_stands_for_a_forward_that_fails(tmp_path, norm, change, most):
    source = Model(norm).to(most)
    CHANGES[change](torch.float32 if most != torch.float32 else torch.bfloat16)(source)
    save(source, tmp_path)
    shell = build_shell(lambda: Model(norm))
    notes = [note for note in fill(shell, open_checkpoint(tmp_path)).notes if "mixed dtypes" in note]
    try:
        with torch.no_grad():
            runs = shell.model(torch.ones(1, 3, WIDTH, dtype=most)).dtype == most
    except RuntimeError:
        runs = False
    assert bool(notes) == (not runs)
    for note in notes:
        plain = str(most).removeprefix("torch.")
        assert f"dtype='{plain}'" in note
        model = from_pretrained(tmp_path, model_class=lambda _config: Model(norm), dtype=plain)
        assert model(torch.ones(1, 3, WIDTH, dtype=most)).dtype == most
        assert not any("mixed" in note for note in report_of(model).notes)


def test_the_note_names_the_weights_and_both_dtypes(tmp_path):
    source = Model(PromotingNorm).bfloat16()
    norms_in(torch.float32)(source)
    save(source, tmp_path)
    shell = build_shell(lambda: Model(PromotingNorm))
    before = [layer.norm for layer in shell.model.layers]
    (note,) = fill(shell, open_checkpoint(tmp_path)).notes
    assert note.startswith("layers.{0-1}.norm.weight: stored as float32, most others as bfloat16")
    assert all(layer.norm is norm for layer, norm in zip(shell.model.layers, before, strict=True))
    assert torch.equal(shell.model.layers[0].norm.weight, torch.ones(WIDTH))


def test_nothing_is_said_of_what_is_not_known(tmp_path):
    source = Model(StrangeNorm).bfloat16()
    norms_in(torch.float32)(source)
    assert mixed_notes(source, ()) == []


def test_nothing_is_said_of_what_the_class_keeps(tmp_path):
    source = Model(PromotingNorm).bfloat16()
    norms_in(torch.float32)(source)
    assert mixed_notes(source, {f"layers.{n}.norm.weight" for n in (0, 1)}) == []
    assert mixed_notes(source, ()) != []
