"""Every cell of the matrix: attached logits equal the tool's attached, merged logits the tool's merged."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter, set_adapter
from shardload.adapters.attach import record_of
from shardload.errors import UnsupportedError
from tests.adapters.cells import DECLINABLE, Cell, ImpossibleError, cells
from tests.adapters.models import TOKENS

pytest.importorskip("peft")
pytest.importorskip("loralib")

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
CELLS = dict(cells())


@dataclass
class Outcome:
    """What became of a cell: "passed", "impossible" or "declined", why, and the relative errors of the logits."""

    status: str
    why: str = ""
    attached: float | None = None
    merged: float | None = None
    no_merge: str = ""


def error(ours, wanted):
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


def logits_of(case):
    with torch.no_grad():
        out = case.model(case.tokens)
        return getattr(out, "logits", out)


def fold(model):
    """Fold the active adapter into the base by the terms' own maths, each weight once; return why not, or ""."""
    record = record_of(model)
    changes = [c for layer in record.attached["default"].layers for c in layer.lora_changes("default")]
    for module, term, _ in changes:
        from shardload.adapters.layers import kind_of

        kind = kind_of(module)
        reason = kind.unmergeable(module, term) if kind is not None else None
        if reason:
            return reason
    done = set()
    with torch.no_grad():
        for module, term, factors in changes:
            base = module._parameters[term.attribute]
            if not term.rank and id(base) in done:
                continue
            done.add(id(base))
            value = term.changed(base, factors)
            blocks = [
                term.changed(base[n : n + 3], factors, rows=slice(n, n + 3), shape=tuple(base.shape))
                for n in range(0, len(base), 3)
                if factors.magnitude is None or term.dora_axis == 0
            ]
            if blocks:
                assert torch.allclose(torch.cat(blocks), value, rtol=1e-5, atol=1e-6)
            if term.replicated:
                module._parameters[term.attribute] = nn.Parameter(value)
            else:
                base.copy_(value)
            if factors.bias is not None and term.adds_bias:
                module.bias = nn.Parameter(module.bias + term.scale * factors.bias)
    for layer in record.attached["default"].layers:
        layer.lora_switch.chosen.weights.clear()
    return ""


def outcome(cell: Cell, dtype, folder) -> Outcome:
    """Run one cell."""
    form = {"form": "bin"} if CELLS[cell].__name__ == "peft_case" and dtype == torch.float64 else {}
    try:
        case = CELLS[cell](cell, dtype, folder, **form)
    except ImpossibleError as reason:
        return Outcome("impossible", str(reason))
    plain = logits_of(case)
    try:
        report = load_adapter(case.model, case.where, **case.options)
    except UnsupportedError as refused:
        return Outcome("declined", str(refused))
    with torch.no_grad():
        logits = logits_of(case)
        assert plain.shape != logits.shape or error(plain, case.attached) > 1e-3, "the adapter does nothing"
        result = Outcome("passed", attached=error(logits, case.attached), no_merge=case.no_merge)
        assert report.rows
        set_adapter(case.model, {})
        assert torch.equal(logits_of(case), plain), "the base is not what it was"
        set_adapter(case.model, "default")
        if case.merged is not None:
            assert fold(case.model) == ""
            result.merged = error(logits_of(case), case.merged)
    return result


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(cell, dtype, tmp_path):
    found = outcome(cell, dtype, tmp_path / "adapter")
    if found.status == "declined":
        assert cell.variant in DECLINABLE or cell.format in DECLINABLE, found.why
        return
    if found.status == "impossible":
        assert found.why.startswith(("PEFT: ", "loralib: "))
        return
    assert cell.variant not in DECLINABLE
    assert found.attached <= LIMITS[dtype]
    assert found.merged is None or found.merged <= LIMITS[dtype]
    assert found.merged is not None or found.no_merge


def test_the_tokens_are_those_of_the_models():
    assert int(TOKENS.max()) < 12
