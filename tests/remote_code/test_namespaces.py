"""Models of repos' own code in one process: versions side by side, threads, copies, sources, reloads."""

from __future__ import annotations

import copy
import inspect
import linecache
import pickle
import sys
import threading
import traceback

import pytest
import torch

import shardload
from shardload.remote_code.namespaces import install_finder, namespace_of

from .repos import MODEL, build, module_of, tiny

CACHING = MODEL.replace(
    "        return CausalLMOutputWithPast(logits=self.linear(x))",
    "        if x.shape[-1] != self.config.hidden_size:\n"
    "            raise ValueError('of the wrong width')\n"
    "        from transformers.cache_utils import DynamicCache\n"
    "        return CausalLMOutputWithPast(logits=self.linear(x) * FACTOR, past_key_values=DynamicCache())",
)


def checkpoint(folder, factor):
    tiny(folder, model=f"FACTOR = {factor}\n{CACHING}")
    weights = {"linear.weight": torch.eye(4), "linear.bias": torch.zeros(4)}
    torch.save(weights, folder / "pytorch_model.bin")
    return folder


def load(folder):
    return shardload.from_pretrained(folder, trust_remote_code=True)


def test_two_versions_compute_each_its_own(tmp_path):
    one, two = load(checkpoint(tmp_path / "a", 2)), load(checkpoint(tmp_path / "b", 3))
    x = torch.ones(1, 4)
    for _ in range(2):
        assert (one(x).logits[0, 0], two(x).logits[0, 0]) == (2, 3)
    assert type(one) is not type(two)
    assert type(one.config) is not type(two.config)
    assert type(one(x).past_key_values) is type(two(x).past_key_values)


def test_a_change_of_the_files_is_seen_by_the_next_load_and_not_by_the_model_before(tmp_path):
    one = load(checkpoint(tmp_path, 2))
    two = load(checkpoint(tmp_path, 3))
    three = load(checkpoint(tmp_path, 2))
    x = torch.ones(1, 4)
    assert [model(x).logits[0, 0].item() for model in (one, two, three)] == [2, 3, 2]
    assert type(three) is type(one)


def test_versions_load_in_threads_at_once(tmp_path):
    folders = [checkpoint(tmp_path / str(number), number + 2) for number in range(4)]
    results: dict[int, float] = {}

    def work(number):
        for _ in range(3):
            results[number] = load(folders[number])(torch.ones(1, 4)).logits[0, 0].item()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: 2, 1: 3, 2: 4, 3: 5}


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_weights_and_config_of_its_own(tmp_path, how):
    model = load(checkpoint(tmp_path, 2))
    again = how(model)
    with torch.no_grad():
        again.linear.weight.fill_(0)
    again.config.hidden_size = 5
    assert type(again) is type(model)
    assert model(torch.ones(1, 4)).logits[0, 0] == 2
    assert model.config.hidden_size == 4


def test_outputs_and_caches_can_be_copied(tmp_path):
    with torch.no_grad():
        output = load(checkpoint(tmp_path, 2))(torch.ones(1, 4))
    again = copy.deepcopy(output)
    assert torch.equal(again.logits, output.logits)
    assert again.past_key_values is not output.past_key_values


def test_sources_and_tracebacks_are_those_of_the_repos_files(tmp_path):
    model = load(checkpoint(tmp_path, 17))
    text = (tmp_path / "modeling_tiny.py").read_text()
    assert inspect.getsource(module_of(model)) == text
    assert inspect.getsource(type(model)) in text
    assert inspect.getsourcefile(type(model)) == str(tmp_path / "modeling_tiny.py")
    assert "FACTOR" in inspect.getsource(type(model).forward)
    with pytest.raises(ValueError, match="wrong width") as caught:
        model(torch.ones(1, 3))
    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.filename, frame.line) == (
        str(tmp_path / "modeling_tiny.py"),
        "raise ValueError('of the wrong width')",
    )
    linecache.checkcache()  # what the traceback module does before it reads lines
    assert "raise ValueError" in "".join(linecache.getlines(str(tmp_path / "modeling_tiny.py")))


def test_a_late_import_in_one_version_never_reaches_another(tmp_path):
    model = load(checkpoint(tmp_path, 2))
    before = set(sys.modules)
    model(torch.ones(1, 4))
    assert not {name for name in set(sys.modules) - before if name.split(".")[0] != "shardload"}
    assert "transformers" not in before or sys.modules["transformers"].__name__ == "transformers"


def test_only_names_below_a_trusted_package_are_in_a_namespace(tmp_path):
    source, config = tiny(tmp_path)
    module = module_of(build(source, config))
    namespace = namespace_of(module.__name__)
    assert module.__name__.startswith(f"{namespace.package}.")
    assert namespace_of(namespace.package) is namespace
    assert namespace_of("json") is namespace_of("shardload.remote_code") is None
    assert namespace_of(namespace.package + "x") is None
    finders = list(sys.meta_path)
    install_finder()
    assert sys.meta_path == finders  # it is there once
