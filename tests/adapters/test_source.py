"""Where an adapter's files are found, and files that are broken or hostile."""

from __future__ import annotations

import os
import pickle

import pytest
import torch

from shardload import from_pretrained
from shardload.adapters import load_adapter
from shardload.errors import (
    CorruptError,
    MismatchError,
    NotFoundError,
    ShardloadError,
    UsageError,
)
from tests.adapters.tiny import (
    TOKENS,
    Tiny,
    by_hand,
    config,
    error,
    lora_tensors,
    save_file,
    write,
)
from tests.hub_server import HubServer
from tests.tiny import write_checkpoint


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_file_with_its_config_beside_it(tmp_path, name):
    model = Tiny()
    tensors = lora_tensors(model)
    report = load_adapter(model, write(tmp_path, tensors) / name)
    assert report.modules == 6
    assert error(model(TOKENS), by_hand(Tiny(), tensors, 3.0)) <= 1e-5


def test_an_adapter_in_a_subfolder(tmp_path):
    tensors = lora_tensors(Tiny())
    write(tmp_path / "second", tensors)
    with pytest.raises(NotFoundError) as caught:
        load_adapter(Tiny(), tmp_path)
    path = caught.value.cure.rpartition("pass the path of one: ")[2]
    assert path == str(tmp_path / "second")
    assert load_adapter(Tiny(), path).modules == 6
    assert load_adapter(Tiny(), tmp_path, subfolder="second").modules == 6


def test_a_single_file_elsewhere(tmp_path):
    tensors = lora_tensors(Tiny())
    write(tmp_path, tensors)
    (tmp_path / "adapter_model.safetensors").unlink()
    save_file(tensors, tmp_path / "my-lora.safetensors")
    assert load_adapter(Tiny(), tmp_path / "my-lora.safetensors").modules == 6
    assert load_adapter(Tiny(), tmp_path).modules == 6


def test_no_adapter(tmp_path):
    (tmp_path / "readme.md").write_text("nothing")
    with pytest.raises(NotFoundError, match="holds no adapter"):
        load_adapter(Tiny(), tmp_path)


def test_a_truncated_file(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CorruptError):
        load_adapter(Tiny(), folder)


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


def test_a_truncated_pickle(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()), form="bin")
    path = folder / "adapter_model.bin"
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ShardloadError):
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


def test_an_adapter_of_a_hub_repo(tmp_path, monkeypatch):
    tensors = lora_tensors(Tiny())
    folder = write(tmp_path / "adapter", tensors)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with HubServer(tmp_path / "hub") as hub:
        commit = hub.commit("me/lora", {**files, "README.md": b"# LoRA", "optimizer.pt": b"not wanted"})
        hub.use(monkeypatch, cache=tmp_path / "cache")
        model = Tiny()
        report = load_adapter(model, "me/lora")
        assert hub.fetched() == {"adapter_config.json", "adapter_model.safetensors"}
        with pytest.raises(NotFoundError):
            load_adapter(Tiny(), "me/nothing")
    assert report.where == f"me/lora@{commit}/adapter_model.safetensors"
    assert torch.allclose(model(TOKENS), by_hand(Tiny(), tensors, 3.0), atol=1e-5)
    offline = Tiny()
    load_adapter(offline, "me/lora", revision=commit, local_files_only=True)
    assert torch.equal(offline(TOKENS), model(TOKENS))


def test_a_file_without_any_weight_was_saved_without_them(tmp_path):
    folder = write(tmp_path, lora_tensors(Tiny()))
    (folder / "adapter_model.safetensors").unlink()
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(CorruptError, match="holds no tensor") as caught:
        load_adapter(Tiny(), folder)
    assert "saved without its weights" in caught.value.cure


def test_what_a_trainer_leaves_beside_the_weights_is_no_choice(tmp_path):
    """A checkpoint of a trainer that saved the whole state dict under another name, with its optimizer."""
    model = Tiny()
    tensors = lora_tensors(model)
    whole = {f"base_model.model.{key}": value for key, value in model.state_dict().items()}
    torch.save({**whole, **tensors}, tmp_path / "pytorch_model.bin")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin"):
        torch.save({"state": 1}, tmp_path / name)
    with pytest.raises(MismatchError) as caught:
        load_adapter(model, tmp_path, alpha=6)
    assert "pass strict=False to leave out what is no LoRA tensor" in caught.value.cure
    load_adapter(model, tmp_path, alpha=6, **caught.value.cure.keywords)
    held = dict(model.named_parameters())
    assert all(torch.equal(held[_in_model(key)], value) for key, value in tensors.items())


def test_an_adapter_in_the_place_of_a_model_names_its_base(tmp_path):
    auto = {"auto_map": {"AutoModel": "modeling.Model"}}
    base = write_checkpoint(tmp_path / "base", Tiny().state_dict(), config=auto)
    code = "from tests.adapters.tiny import Tiny\n\n\ndef Model(config):\n    return Tiny()\n"
    (base / "modeling.py").write_text(code)
    folder = write(tmp_path / "lora", lora_tensors(Tiny()), config(base_model_name_or_path=str(base)))
    with pytest.raises(UsageError, match="this is an adapter, not a model") as caught:
        from_pretrained(folder, trust_remote_code=True)
    assert caught.value.cure == f"pass {base} as the place and adapter={str(folder)!r}"
    model = from_pretrained(base, trust_remote_code=True, progress=False, **caught.value.cure.keywords)
    assert model.state_dict().keys() > Tiny().state_dict().keys() - {"layers.0.up.weight"}
    unnamed = write(tmp_path / "unnamed", lora_tensors(Tiny()))
    with pytest.raises(UsageError, match="load its base, with the adapter on top"):
        from_pretrained(unnamed)


def _in_model(key):
    return key.removeprefix("base_model.model.").replace(".weight", ".default.weight")
