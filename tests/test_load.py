"""from_pretrained end to end on local checkpoints."""

from __future__ import annotations

import gc
import json
import os
import re
import threading

import pytest
import torch
from torch import nn

from shardload import (
    KeyMap,
    MismatchError,
    NotFoundError,
    OnDevice,
    UsageError,
    build_shell,
    fill,
    from_pretrained,
    load_config,
    open_checkpoint,
    report_of,
)
from shardload.errors import ShardloadError
from tests.adapters import tiny as adapters
from tests.configured import SIZES, Configured
from tests.tiny import (
    Net,
    assert_same_state,
    meta_names,
    random_state,
    run_python,
    torch_filled,
    write_checkpoint,
)

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()), config=SIZES)


@pytest.fixture
def oracle():
    return torch_filled(Net, random_state(Net()))


# --- the whole road -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_folder_with_config_and_class(tmp_path, oracle, kind):
    write_checkpoint(tmp_path, random_state(Net()), kind=kind, config=SIZES)
    model = from_pretrained(tmp_path, model_class=Configured)
    assert_same_state(model, oracle)
    assert torch.equal(model(IDS), oracle(IDS))
    assert meta_names(model) == []
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_it_is_the_composition_of_the_public_steps(folder):
    checkpoint = open_checkpoint(folder)
    config = load_config(folder)
    shell = build_shell(lambda: Configured(config))
    fill(shell, checkpoint, target=OnDevice(dtype=torch.float16))
    assert_same_state(from_pretrained(folder, model_class=Configured, dtype="float16"), shell.model)


def every_way_to_say(folder):
    index = folder / "model.safetensors.index.json"
    return [
        folder,
        str(folder),
        f"{folder}/",
        index,
        os.path.relpath(folder),
        f"{folder.parent}/./{folder.name}",
        f"{folder.parent}/{folder.name}/../{folder.name}",
    ]


@pytest.mark.parametrize("way", range(7))
def test_every_way_to_name_a_folder(folder, oracle, way):
    assert_same_state(from_pretrained(every_way_to_say(folder)[way], model_class=Configured), oracle)


def test_a_single_file_takes_the_config_beside_it(tmp_path, oracle):
    write_checkpoint(tmp_path, random_state(Net()), shards=1, config=SIZES)
    model = from_pretrained(tmp_path / "model.safetensors", model_class=Configured)
    assert_same_state(model, oracle)
    assert model.config.width == 8


def test_a_tilde_is_the_home_folder(folder, oracle, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert_same_state(from_pretrained("~/repo", model_class=Configured), oracle)


def test_subfolder_and_variant(tmp_path):
    state = random_state(Net(), torch.float16)
    write_checkpoint(tmp_path / "repo" / "unet", random_state(Net()), shards=1, config=SIZES)
    folder = write_checkpoint(tmp_path / "fp16", state, shards=1)
    (folder / "model.safetensors").rename(tmp_path / "repo" / "unet" / "model.fp16.safetensors")
    model = from_pretrained(tmp_path / "repo", subfolder="unet", variant="fp16", model_class=Configured)
    assert_same_state(model, torch_filled(Net, state))
    plain = from_pretrained(tmp_path / "repo", subfolder="unet", model_class=Configured)
    assert plain.head.weight.dtype == torch.float32


def test_the_keywords_of_fill_reach_it(folder):
    class More(Configured):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.more = nn.Linear(2, 2)

    seen = []
    key_map = KeyMap().rename("head.{...}", "top.{...}")

    class Renamed(More):
        def __init__(self, config) -> None:
            super().__init__(config)
            self.top = self.head
            del self.head, self.stats
            self.stats = nn.Identity()

    model = from_pretrained(
        folder,
        model_class=Renamed,
        key_map=key_map,
        allow_missing=["more.*"],
        allow_unexpected=["stats.*"],
        progress=seen.append,
        copy=True,
    )
    assert torch.equal(model.top.weight, random_state(Net())["head.weight"])
    assert seen[-1].done_bytes == seen[-1].total_bytes == report_of(model).nbytes
    with pytest.raises(MismatchError):
        from_pretrained(folder, model_class=More)
    assert "strict=False" in report_of(from_pretrained(folder, model_class=More, strict=False)).allowed


def test_progress_true_is_a_bar_on_stderr_and_false_is_silence(folder, capfd):
    from_pretrained(folder, model_class=Configured, progress=False)
    from_pretrained(folder, model_class=Configured)
    assert capfd.readouterr() == ("", ""), "without a terminal nothing is said"
    from_pretrained(folder, model_class=Configured, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "loading" in err


def test_the_bar_shows_bytes_rate_and_shard(folder):
    code = """
import functools, sys, tqdm
sys.path.insert(0, ".")
from shardload import from_pretrained
from tests.tiny import Net
tqdm.tqdm = functools.partial(tqdm.tqdm, mininterval=0, miniters=1)  # every tensor is drawn
from_pretrained(sys.argv[1], model_class=lambda _: Net(), progress=True)
"""
    done = run_python(code, str(folder))
    total = sum(value.nbytes for value in Net().state_dict().values())
    assert done.stdout == ""
    drawn = done.stderr.split("\r")
    assert any(f"/{total / 1e3:.2f}k [" in line for line in drawn), drawn
    assert any(re.search(r"[\d.]+[kMG]B/s", line) for line in drawn), drawn
    for path in folder.glob("*.safetensors"):
        assert any(line.rstrip().endswith(f"{path.name[-17:]}]") for line in drawn), drawn


def test_a_constructor_that_fails_says_so_in_its_own_words(folder):
    def make(_config):
        raise KeyError("hidden_size")

    with pytest.raises(KeyError, match="hidden_size"):
        from_pretrained(folder, model_class=make)


@pytest.mark.parametrize("made", [lambda _config: None, lambda config: config, lambda _config: Net])
def test_a_model_class_that_makes_no_module(folder, made):
    with pytest.raises(UsageError, match="not an nn.Module"):
        from_pretrained(folder, model_class=made)


# --- refusals -------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_contradicts_its_index_builds_no_model(folder):
    def make(_config):
        raise AssertionError("the constructor ran")

    next(folder.glob("*00002*")).unlink()
    with pytest.raises(NotFoundError, match="1 of 3 shards are missing"):
        from_pretrained(folder, model_class=make)


def test_a_refusal_reads_no_weight_and_tells_everything(folder):
    for path in folder.glob("*.safetensors"):
        header = path.read_bytes()
        size = 8 + int.from_bytes(header[:8], "little")
        path.write_bytes(header[:size] + b"\xff" * (len(header) - size))  # NaN, were it read
    (folder / "config.json").write_text(json.dumps({**SIZES, "width": 16}))
    with pytest.raises(MismatchError) as caught:
        from_pretrained(folder, model_class=Configured)
    assert {fault.kind for fault in caught.value.report.faults} == {"misshapen"}
    assert "layers.{0-2}.up.weight" in str(caught.value)
    assert caught.value.report.shards == []


# --- adapters -------------------------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path):
    return write_checkpoint(tmp_path / "base", adapters.Tiny().state_dict())


def test_an_adapter_on_top(base, tmp_path):
    tensors = adapters.lora_tensors(adapters.Tiny())
    adapter = adapters.write(tmp_path / "lora", tensors)
    model = from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter=adapter)
    expected = adapters.by_hand(adapters.Tiny(), tensors, 3)
    torch.testing.assert_close(model(adapters.TOKENS), expected)
    (report,) = report_of(model).adapters
    assert report.modules == 6
    assert str(adapter) in str(report_of(model))
    assert report_of(model).to_dict()["adapters"][0]["modules"] == 6


def test_an_adapter_for_another_model_is_refused(base, tmp_path):
    adapter = adapters.write(
        tmp_path / "lora", {key.replace("layers", "h"): v for key, v in lora_of_another().items()}
    )
    with pytest.raises(MismatchError):
        from_pretrained(base, model_class=lambda _config: adapters.Tiny(), adapter=adapter)


def lora_of_another():
    return adapters.lora_tensors(adapters.Block(), names=("q", "up"))


def test_an_adapter_that_is_not_there(base, tmp_path):
    with pytest.raises(NotFoundError):
        from_pretrained(
            base, model_class=lambda _config: adapters.Tiny(), adapter=tmp_path / "no", local_files_only=True
        )


# --- one file -------------------------------------------------------------------------------------------------


def test_a_file_that_is_named_is_reported_and_refused_by_its_name(tmp_path):
    path = tmp_path / "mixed.pth"
    torch.save(random_state(Net()), path)
    assert report_of(from_pretrained(path, model_class=lambda _: Net())).where == str(path)
    with pytest.raises(MismatchError) as caught:
        from_pretrained(path, model_class=lambda _: Net(layers=2))
    assert caught.value.where == str(path)
    assert caught.value.report.where == str(path)


# --- in a process of its own ----------------------------------------------------------------------------------


def test_a_load_needs_neither_numpy_nor_transformers_nor_the_network(folder):
    code = """
import socket, sys
from types import SimpleNamespace
def refuse(*args, **kwargs): raise AssertionError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
for name in ("numpy", "transformers", "accelerate"): sys.modules[name] = None
sys.path.insert(0, ".")
from shardload import from_pretrained, report_of
from tests.tiny import Net
model = from_pretrained(sys.argv[1], model_class=lambda c: Net(c.width, c.layers, c.vocab))
print(report_of(model).loaded, "huggingface_hub" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == [str(len(random_state(Net()))), "False"]


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_a_local_load_imports_neither_huggingface_hub_nor_transformers(tmp_path, kind):
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(4, 4), "bias": torch.ones(4)}, kind=kind)
    code = """
import sys, torch
from shardload import from_pretrained
from_pretrained(sys.argv[1], model_class=lambda config: torch.nn.Linear(4, 4), config={})
print(sorted({"huggingface_hub", "transformers"} & set(sys.modules)))
"""
    assert run_python(code, str(folder)).stdout.strip() == "[]"


def test_loads_in_several_threads(folder):
    models, errors = [], []

    def work() -> None:
        try:
            for _ in range(3):
                model = from_pretrained(folder, model_class=lambda _config: Net(), config={}, progress=False)
                models.append(model)
        except BaseException as error:
            errors.append(error)

    new = nn.Parameter.__new__
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(models) == 18
    for model in models:
        assert meta_names(model) == []
        assert_same_state(model, models[0])
    assert gc.isenabled()
    assert nn.Parameter.__new__ is new


@pytest.mark.parametrize("where", [None, 3, "", " ", "a/b/c", "http://x/y", "no/such\0name", ["x"]])
def test_a_place_that_is_none_is_a_typed_error(where):
    with pytest.raises(ShardloadError):
        from_pretrained(where, model_class=lambda _config: Net(), config={}, local_files_only=True)
