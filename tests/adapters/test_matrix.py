"""Every cell of the matrix: attached logits equal the tool's attached, merged logits the tool's merged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from shardload import merge, merge_to_disk, unmerge
from shardload.adapters import load_adapter, set_adapter
from shardload.adapters.attach import record_of
from shardload.errors import UnsupportedError
from tests.adapters.cells import DECLINABLE, Cell, ImpossibleError, cells
from tests.adapters.models import TOKENS
from tests.adapters.tiny import error
from tests.tiny import write_checkpoint

load_file = pytest.importorskip("safetensors.torch").load_file
pytest.importorskip("peft")
pytest.importorskip("loralib")

LIMITS = {torch.float32: 1e-5, torch.float64: 1e-10}
CELLS = dict(cells())

NOT_ON_DISK = (
    "PiSSA",
    "OLoRA",
    "layer_replication",
    "Conv1D of transformers",
    "Conv1D of the stand-in",
)
"""What needs the weights of the base, or its modules: headers do not tell which way round a square weight lies when no
other layer of its name is stored transposed. Refused on disk, merged in memory."""


@dataclass
class Outcome:
    """What became of a cell: "passed", "impossible" or "declined", why, and the relative errors of the logits.

    `no_merge` and `no_disk` say why there is no merge in memory or on disk.
    """

    status: str
    why: str = ""
    attached: float | None = None
    merged: float | None = None
    on_disk: float | None = None
    no_merge: str = ""
    no_disk: str = ""


def logits_of(case):
    with torch.no_grad():
        out = case.model(case.tokens)
        return getattr(out, "logits", out)


def check_blocks(model):
    """The delta of some rows is those rows of the whole delta, whatever the kind of layer: merging on disk needs it."""
    for layer in record_of(model).attached["default"].layers:
        for module, term, factors in layer.lora_changes("default"):
            base = module._parameters[term.attribute]
            if factors.magnitude is not None and term.dora_axis != 0:
                continue
            shape = tuple(base.shape)
            blocks = [slice(n, n + 3) for n in range(0, len(base), 3)]
            pieces = [term.changed(base[rows], factors, rows=rows, shape=shape) for rows in blocks]
            assert torch.allclose(torch.cat(pieces), term.changed(base, factors), rtol=1e-5, atol=1e-6)


def merge_in_memory(case):
    """Return the error of the merged logits, or why there are none; then the adapter runs again, bit for bit."""
    attached = logits_of(case)
    try:
        merge(case.model, keep_copies=True)
    except UnsupportedError as refused:
        return None, reason_of(refused)
    result = logits_of(case)
    unmerge(case.model)
    assert torch.equal(logits_of(case), attached)
    return (None if case.merged is None else error(result, case.merged)), ""


def merge_on_disk(cell, case, base, state, folder):
    """Return the error of the logits of what merge_to_disk writes, or why there are none."""
    tied = cell.variant.endswith("tied head")
    if tied:
        state = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}
    write_checkpoint(folder / "base", state, shards=1, config={"tie_word_embeddings": tied})
    where = case.where if "subfolder" not in case.options else case.where / case.options["subfolder"]
    options = {name: value for name, value in case.options.items() if name != "subfolder"}
    try:
        merge_to_disk(folder / "base", where, folder / "out", progress=False, **options)
    except UnsupportedError as refused:
        return None, reason_of(refused)
    for name, tensor in load_file(folder / "out" / "model.safetensors").items():
        path, _, attribute = name.rpartition(".")
        base.get_submodule(path)._parameters[attribute] = nn.Parameter(tensor)
    if tied:
        base.lm_head.weight = base.model.embed_tokens.weight
    return error(logits_of(replace(case, model=base)), case.merged), ""


def reason_of(refused):
    return " ".join(str(refused.where or refused.what).split()).partition(": ")[2] or refused.what


def outcome(cell: Cell, dtype, folder) -> Outcome:
    """Run one cell."""
    form = {"form": "bin"} if CELLS[cell].__name__ == "peft_case" and dtype == torch.float64 else {}
    try:
        case = CELLS[cell](cell, dtype, folder, **form)
    except ImpossibleError as reason:
        return Outcome("impossible", str(reason))
    plain = None if not len(case.attached) else logits_of(case)
    base = copy.deepcopy(case.model)
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    try:
        report = load_adapter(case.model, case.where, **case.options)
    except UnsupportedError as refused:
        return Outcome("declined", str(refused))
    assert report.rows
    with torch.no_grad():
        logits = logits_of(case)
        assert plain.shape != logits.shape or error(plain, case.attached) > 1e-3, "the adapter does nothing"
        result = Outcome("passed", attached=error(logits, case.attached), no_merge=case.no_merge)
        set_adapter(case.model, {})
        assert torch.equal(logits_of(case), plain), "the base is not what it was"
        set_adapter(case.model, "default")
        check_blocks(case.model)
        result.merged, refused = merge_in_memory(case)
        assert bool(refused) == bool(case.no_merge), (refused, case.no_merge)
        if case.merged is not None:
            result.on_disk, result.no_disk = merge_on_disk(cell, case, base, state, folder.parent)
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
    assert found.on_disk is None or found.on_disk <= LIMITS[dtype]
    assert found.on_disk is not None or found.no_merge or {cell.variant, cell.layer} & set(NOT_ON_DISK), (
        found.no_disk
    )


def test_the_tokens_are_those_of_the_models():
    assert int(TOKENS.max()) < 12
