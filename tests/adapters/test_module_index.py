"""Module paths of a file under other prefixes, and models that are wrapped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import shardload
from shardload.adapters import load_adapter
from shardload.adapters.module_index import ModuleIndex, Resolution, tensor_of
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


def resolved(paths, model=None):
    return ModuleIndex(model or Tiny()).resolve(paths)


def test_paths_are_found_by_one_rule_for_all_of_them():
    paths = ["layers.0.q", "layers.1.up", "score"]
    assert resolved(paths) == Resolution({path: path for path in paths})
    assert resolved([f"module.{path}" for path in paths]).note == "without `module` segments"
    moved = resolved([f"net.{path}" for path in paths])
    assert moved.found == {f"net.{path}": path for path in paths}
    assert moved.note == "without `net.` before every path"
    inside = resolved(paths, nn.ModuleDict({"base": Tiny()}))
    assert inside.found == {path: f"base.{path}" for path in paths}
    assert inside.note == "with `base.` before every path"
    two = resolved(paths, nn.ModuleDict({"one": Tiny(), "two": Tiny()}))
    assert two.found == {}
    assert "one." in two.ambiguous
    assert "two." in two.ambiguous


def test_a_path_that_the_model_lacks_is_left_out():
    assert resolved(["layers.0.q", "no.such"]).found == {"layers.0.q": "layers.0.q"}
    assert ModuleIndex(Tiny()).nearest("layers.0.qq") == "layers.0.q"


def test_parts_of_adapters_are_no_modules_of_the_model():
    model = Tiny()
    before = set(ModuleIndex(model).modules)
    shardload.attach_lora(model, 2, 6, ["q"])
    assert set(ModuleIndex(model).modules) == before
    assert tensor_of(model.score, "bias") is model.score.bias
    assert tensor_of(model.score, "no_such") is None
