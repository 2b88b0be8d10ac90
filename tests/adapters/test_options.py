"""The options of load_adapter: format, alpha, enable_lora, key_map, dtype; and files that somebody else wrote."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from torch import nn

from shardload import KeyMap
from shardload.adapters import load_adapter
from shardload.errors import (
    CorruptError,
    MismatchError,
    NotFoundError,
    ShardloadError,
    UnsupportedError,
    UsageError,
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


def error(ours, wanted):
    return ((ours - wanted).abs().max() / wanted.abs().max()).item()


def test_a_key_map_renames_tensors_and_modules(tmp_path):
    tensors = lora_tensors(Tiny())
    others = {
        key.replace("layers.", "h.").replace(".q.", ".query.").replace(".up.", ".ffn.up."): value
        for key, value in tensors.items()
    }
    folder = write(tmp_path, others)
    with pytest.raises(MismatchError):
        load_adapter(Tiny(), folder)
    for key_map in (
        {
            "h.{}.query.weight": "layers.{}.q.weight",
            "h.{}.ffn.up": "layers.{}.up",
            "h.{}.down": "layers.{}.down",
        },
        KeyMap()
        .rename("h.{}.{...}", "layers.{}.{...}")
        .rename("{...}.query.weight", "{...}.q.weight")
        .rename("{...}.ffn.up.weight", "{...}.up.weight"),
    ):
        model = Tiny()
        load_adapter(model, folder, key_map=key_map)
        assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_what_a_key_map_drops_is_left_out_and_said(tmp_path):
    tensors = lora_tensors(Tiny())
    model = Tiny()
    report = load_adapter(model, write(tmp_path, tensors), key_map={"layers.1.*": None})
    assert report.modules == 3
    assert any("left out by key_map: layers.1" in warning for warning in report.warnings)
    kept = {key: value for key, value in tensors.items() if "layers.0" in key}
    assert error(model(TOKENS), by_hand(Tiny(), kept, 3.0)) <= 1e-5


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("file", torch.bfloat16), ("base", torch.bfloat16), (torch.float32, torch.float32), ("wide", None)],
)
def test_dtypes(tmp_path, dtype, wanted):
    folder = write(tmp_path, lora_tensors(Tiny(), dtype=torch.bfloat16))
    model = Tiny(torch.bfloat16)
    if wanted is None:
        with pytest.raises(UsageError, match="dtype must be"):
            load_adapter(model, folder, dtype=dtype)
        return
    load_adapter(model, folder, dtype=dtype)
    assert model.layers[0].q.lora_A["default"].weight.dtype == wanted
    assert model(TOKENS).dtype == torch.bfloat16


def test_the_dtype_of_the_base_narrows_the_file_s(tmp_path):
    model = Tiny(torch.float16)
    load_adapter(model, write(tmp_path, lora_tensors(Tiny())), dtype="base")
    assert model.layers[0].q.lora_B["default"].weight.dtype == torch.float16


def test_a_format_that_is_not_the_file_s(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    assert load_adapter(Tiny(), folder, format="peft").modules == 6
    with pytest.raises(UsageError, match="not in the format loralib: its keys are those of PEFT LoRA"):
        load_adapter(Tiny(), folder, format="loralib")
    with pytest.raises(UsageError, match="is none of auto, peft"):
        load_adapter(Tiny(), folder, format="gguf")


def test_alpha(tmp_path):
    tensors = lora_tensors(Tiny())
    model = Tiny()
    report = load_adapter(model, write(tmp_path / "a", tensors), alpha=4)
    assert report.scales == {2.0: 6}
    assert any("alpha = 4 was given; the config's is 6" in warning for warning in report.warnings)
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 2.0)) <= 1e-5
    bare = write(tmp_path / "b", tensors, False)
    with pytest.raises(NotFoundError, match="or pass alpha="):
        load_adapter(Tiny(), bare)
    assert load_adapter(Tiny(), bare, alpha=4).scales == {2.0: 6}
    for wrong in (float("nan"), "16", 1e300):
        with pytest.raises(UsageError, match="alpha must be a number"):
            load_adapter(Tiny(), bare, alpha=wrong)


def test_loralib_needs_alpha_and_the_parts_that_are_on(tmp_path):
    path = tmp_path / "lora.pt"
    torch.save({"fused.lora_A": torch.randn(4, 8), "fused.lora_B": torch.randn(16, 2)}, path)
    model = nn.ModuleDict({"fused": nn.Linear(8, 24)})
    with pytest.raises(UsageError, match="pass alpha="):
        load_adapter(model, path)
    with pytest.raises(ShardloadError, match="pass enable_lora="):
        load_adapter(model, path, alpha=4)
    report = load_adapter(model, path, alpha=4, enable_lora=[True, False, True])
    assert (report.ranks, report.scales) == ({2: 1}, {2.0: 1})
    x = torch.randn(3, 8)
    change = model.fused(x) - nn.functional.linear(x, model.fused.weight, model.fused.bias)
    assert not change[:, 8:16].any()
    assert change[:, :8].any()
    assert change[:, 16:].any()


class Gadget:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("name", ["adapter_model.bin", "lora.pt", "lora.pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_runs_nothing(tmp_path, name, zipped):
    folder = tmp_path / "adapter"
    folder.mkdir()
    sentinel = str(tmp_path / "ran")
    content = {"layers.0.q.lora_A": torch.ones(2, 8), "layers.0.q.lora_B": Gadget(sentinel)}
    torch.save(content, folder / name, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ShardloadError):
        load_adapter(Tiny(), folder / name, alpha=4)
    assert not os.path.exists(sentinel)
    (folder / name).write_bytes(pickle.dumps(content))
    with pytest.raises(ShardloadError):
        load_adapter(Tiny(), folder / name, alpha=4)
    assert not os.path.exists(sentinel)


HOSTILE = [
    {"base_model_name_or_path": "../../../etc/passwd"},
    {"auto_mapping": {"base_model_class": "__import__('os').system", "parent_library": "/tmp/evil"}},
    {"target_modules": ["../x", "/etc", "\x00", "C:\\x"]},
    {"revision": "../../x", "megatron_core": "os.system"},
]
ABSURD = [
    {"r": 2**40},
    {"rank_pattern": {"q": 10**9}},
    {"trainable_token_indices": [2**40]},
    {"layer_replication": [[0, 10**12]]},
    {"enable_lora": [True] * 10_000},
    {"lora_alpha": 1e308},
]


@pytest.mark.parametrize("settings", HOSTILE, ids=str)
def test_paths_in_a_config_lead_nowhere(tmp_path, settings, monkeypatch):
    opened = []
    folder = write(tmp_path / "adapter", lora_tensors(Tiny()), config(**settings))

    def see(event, args):
        if event == "open" and opened is not None and isinstance(args[0], str):
            opened.append(args[0])

    _HOOK.see = see
    load_adapter(Tiny(), folder)
    _HOOK.see = None
    outside = [path for path in opened if "passwd" in path or "evil" in path or path.endswith("/x")]
    assert any("adapter_config.json" in path or "adapter_model" in path for path in opened)
    assert outside == []


@pytest.mark.parametrize("settings", ABSURD, ids=lambda settings: next(iter(settings)))
def test_absurd_numbers_are_refused_before_memory_is_taken(tmp_path, settings):
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(CorruptError, match=next(iter(settings))):
        load_adapter(model, write(tmp_path, lora_tensors(model), config(**settings)))
    assert_unchanged(model, before)


def test_rows_of_tokens_that_the_base_has_not(tmp_path):
    tensors = lora_tensors(Tiny()) | {f"{PREFIX}embed.token_adapter.trainable_tokens_delta": torch.ones(2, 8)}
    with pytest.raises(ShardloadError, match="has 11 rows"):
        load_adapter(Tiny(), write(tmp_path, tensors, config(trainable_token_indices=[1, 400])))


def test_rows_of_a_layer_that_has_no_rows_of_tokens(tmp_path):
    key = f"{PREFIX}layers.0.norm.token_adapter.trainable_tokens_delta"
    model = Tiny()
    before = snapshot(model)
    with pytest.raises(UnsupportedError, match=r"layers\.0\.norm is a LayerNorm"):
        load_adapter(
            model, write(tmp_path, {key: torch.ones(2, 8)}, config(trainable_token_indices={"norm": [1, 4]}))
        )
    assert_unchanged(model, before)


def test_a_truncated_pickle(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()), form="bin")
    path = folder / "adapter_model.bin"
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ShardloadError):
            load_adapter(Tiny(), folder)


def test_settings_twice_in_a_config(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    text = json.dumps(config())[:-1] + ', "lora_alpha": 600}'
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CorruptError, match="lora_alpha"):
        load_adapter(Tiny(), folder)


class _Hook:
    """One audit hook for the process: they can't be taken off."""

    see = None


_HOOK = _Hook()


def _listen():
    import sys

    def hook(event, args):
        if _HOOK.see is not None:
            _HOOK.see(event, args)

    sys.addaudithook(hook)


_listen()
