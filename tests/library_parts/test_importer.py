"""Parts as modules of Python: imported once, read by inspect, unpickled anywhere, in threads, without the library."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from shardload.library_parts.importer import part_module
from shardload.library_parts.release import installed, is_part, name_in_library
from shardload.transformers_shim.modeling_utils import PreTrainedModel

transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_part_is_the_librarys_file_in_the_stand_ins_world():
    llama = part_module("models.llama.modeling_llama")
    kind = llama.LlamaForCausalLM
    assert (
        llama.__file__ == sys.modules["transformers.models.llama.modeling_llama"].__file__
        if ("transformers.models.llama.modeling_llama" in sys.modules)
        else llama.__file__.endswith("modeling_llama.py")
    )
    assert issubclass(kind, PreTrainedModel)
    assert kind is not transformers.LlamaForCausalLM
    assert is_part(kind)
    assert not is_part(transformers.LlamaForCausalLM)
    assert name_in_library(kind) == "transformers.models.llama.modeling_llama.LlamaForCausalLM"
    assert "def rotate_half" in inspect.getsource(llama.rotate_half)


def test_the_library_is_not_imported_for_a_part():
    code = """
import sys
from shardload.library_parts.importer import part_module
import shardload
llama = part_module("models.llama.modeling_llama")
config = llama.LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
import torch
print(tuple(llama.LlamaForCausalLM(config)(torch.tensor([[1, 2]])).logits.shape), "transformers" in sys.modules)
"""
    assert run(code) == "(1, 2, 9) False\n"


def test_a_model_is_unpickled_in_a_process_that_has_imported_nothing(tmp_path):
    bert = part_module("models.bert.modeling_bert")
    sizes = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    model = bert.BertModel(bert.BertConfig(**sizes)).eval()
    expected = model(torch.tensor([[1, 2, 3]])).last_hidden_state
    (tmp_path / "model").write_bytes(pickle.dumps(model))
    code = f"""
import pickle, torch
model = pickle.load(open({str(tmp_path / "model")!r}, "rb"))
torch.save(model(torch.tensor([[1, 2, 3]])).last_hidden_state.detach(), {str(tmp_path / "made")!r})
"""
    run(code)
    assert torch.equal(torch.load(tmp_path / "made"), expected)


def test_a_part_of_another_release_is_refused_by_name():
    release = installed()
    assert release is not None
    with pytest.raises(ModuleNotFoundError, match=rf"another release.*{release.version} is installed"):
        __import__("shardload.library_parts.v0_1.models.llama.modeling_llama")


def test_threads_that_import_one_part_get_one_module():
    code = """
import threading
import shardload
from shardload.library_parts.importer import part_module
found = []
def get(): found.append(part_module("models.qwen2.modeling_qwen2").Qwen2Model)
threads = [threading.Thread(target=get) for _ in range(8)]
[one.start() for one in threads]; [one.join() for one in threads]
print(len(found), len(set(found)))
"""
    assert run(code) == "8 1\n"


def test_nothing_is_written_into_the_librarys_folder():
    assert threading.active_count() >= 1
    release = installed()
    assert release is not None
    before = set((release.folder / "models" / "albert").rglob("*"))
    part_module("models.albert.modeling_albert")
    assert set((release.folder / "models" / "albert").rglob("*")) == before


def test_the_bytes_that_were_hashed_run_and_not_a_cache_of_pythons(tmp_path):
    code = """
import importlib.util, marshal, os, pathlib, sys
sys.pycache_prefix = sys.argv[1]
from shardload.library_parts.importer import part_module
from shardload.library_parts.release import installed
path = str(installed().file("models.llama.configuration_llama"))
cache = pathlib.Path(importlib.util.cache_from_source(path))
cache.parent.mkdir(parents=True)
found = os.stat(path)
head = [0, int(found.st_mtime), found.st_size & 0xFFFFFFFF]
body = marshal.dumps(compile("LlamaConfig = 'another'", path, "exec"))
numbers = b"".join(number.to_bytes(4, "little") for number in head)
cache.write_bytes(importlib.util.MAGIC_NUMBER + numbers + body)
print(part_module("models.llama.configuration_llama").LlamaConfig.__name__)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout == "LlamaConfig\n", done.stderr
