"""Module paths of a file under other prefixes, and models that are wrapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload.adapters import load_adapter
from shardload.errors import MismatchError
from tests.adapters.tiny import PREFIX, TOKENS, Tiny, by_hand, lora_tensors, write

REWRITES = {
    "bare": lambda key: key.removeprefix(PREFIX),
    "compiled": lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
    "compiled blocks": lambda key: key.replace(".layers.0.", ".layers.0._orig_mod."),
    "parallel": lambda key: "module." + key,
    "parallel inside": lambda key: key.replace(".layers.0.", ".layers.0.module."),
    "sharded": lambda key: key.replace(".layers.0.", "._fsdp_wrapped_module.layers.0._fsdp_wrapped_module."),
    "named": lambda key: key.replace(".weight", ".default.weight"),
    "named otherwise": lambda key: key.replace(".weight", ".my_adapter.weight"),
    "of a larger model": lambda key: key.replace(PREFIX, f"{PREFIX}language_model."),
}


@pytest.mark.parametrize("rewrite", REWRITES)
def test_the_same_file_under_other_prefixes(tmp_path, rewrite):
    tensors = lora_tensors(Tiny())
    wanted = by_hand(Tiny(), tensors, 3.0)
    model = Tiny()
    report = load_adapter(
        model, write(tmp_path, {REWRITES[rewrite](key): value for key, value in tensors.items()})
    )
    assert report.modules == 6
    assert torch.allclose(model(TOKENS), wanted, atol=1e-5)
    assert bool(report.warnings) == (rewrite in {"parallel inside", "of a larger model"})


class Wrapper(nn.Module):
    def __init__(self, **inner):
        super().__init__()
        for name, module in inner.items():
            self.add_module(name, module)


def test_a_model_that_is_wrapped(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    for name in ("module", "_orig_mod", "transformer"):
        model = Wrapper(**{name: Tiny()})
        report = load_adapter(model, folder)
        assert {row.target.partition(".")[0] for row in report.rows} == {name}
        assert bool(report.warnings) == (name == "transformer")


def test_a_compiled_model(tmp_path):
    model = Tiny()
    compiled = torch.compile(model, backend="eager")
    report = load_adapter(compiled, write(tmp_path, lora_tensors(Tiny())))
    assert report.modules == 6
    assert torch.allclose(compiled(TOKENS), by_hand(Tiny(), lora_tensors(Tiny()), 3.0), atol=1e-5)


def test_two_places_that_fit_are_ambiguous(tmp_path):
    model = Wrapper(text=Tiny(), vision=Tiny())
    with pytest.raises(MismatchError, match=r"several ways: .*text.*vision"):
        load_adapter(model, write(tmp_path, lora_tensors(Tiny())))


def test_one_rule_for_the_whole_file(tmp_path):
    """A file made for the larger model, of which one path happens to exist outside it as well."""
    model = Wrapper(inner=Tiny(), score=nn.Linear(8, 3))
    tensors = lora_tensors(Tiny(), names=("q", "score"))
    report = load_adapter(model, write(tmp_path, tensors))
    assert {row.target.partition(".")[0] for row in report.rows} == {"inner"}


def test_the_nearest_module_is_named(tmp_path):
    tensors = {
        key.replace("layers.1.down", "layers.1.dwn"): value for key, value in lora_tensors(Tiny()).items()
    }
    with pytest.raises(MismatchError, match=r"no module 'layers\.1\.dwn'; nearest module: layers\.1\.down"):
        load_adapter(Tiny(), write(tmp_path, tensors))


def test_a_second_adapter_does_not_land_on_the_first_one_s_factors(tmp_path):
    model = Tiny()
    load_adapter(model, write(tmp_path / "a", lora_tensors(model)), name="q")
    report = load_adapter(model, write(tmp_path / "b", lora_tensors(Tiny(), names=("q",))), name="b")
    assert {row.target for row in report.rows} == {
        f"layers.{n}.q.lora_{f}.b.weight" for n in (0, 1) for f in "AB"
    }
