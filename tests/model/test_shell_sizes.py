"""A config may ask for any size: a load makes no parameters many times the checkpoint unless the caller names them."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from shardload import MismatchError, ShardloadError, build_shell, fill, from_pretrained, open_checkpoint
from tests.tiny import run_python, write_checkpoint


class Wide(nn.Module):
    """`head` is not in the checkpoint; its width comes from the config."""

    def __init__(self, config) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, config.width, bias=False)


class Excusing(Wide):
    _keys_to_ignore_on_load_missing = ("head",)


BODY = {"body.weight": torch.ones(4, 4), "body.bias": torch.ones(4)}


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path, BODY, shards=1, config={"width": 100_000_000})


@pytest.mark.parametrize(("cls", "keywords"), [(Wide, {"strict": False}), (Excusing, {})])
def test_over_four_times_and_a_gigabyte_is_refused_before_it_is_made(folder, cls, keywords):
    with pytest.raises(MismatchError, match=r"takes 1,600,000,080 bytes and its checkpoint has 80") as caught:
        from_pretrained(folder, model_class=cls, **keywords)
    assert "head.weight" in caught.value.where
    assert "allow_missing" in caught.value.cure


@pytest.mark.parametrize("width", [10, 60_000_000])
def test_below_a_gigabyte_it_is_not_the_loaders_business(tmp_path, width):
    folder = write_checkpoint(tmp_path, BODY, shards=1)
    shell = build_shell(lambda: Wide(SimpleNamespace(width=width)))
    if width == 10:
        fill(shell, open_checkpoint(folder), strict=False)
        assert shell.model.head.weight.shape == (10, 4)
    assert sum(slot.nbytes for slot in shell.slots.values()) < 10**9


def test_who_names_the_rest_gets_it(folder):
    """Only the rule is tested: a load would take 960 MB more."""
    from shardload.loading.judge import Comparison
    from shardload.placement.target import Target

    shell = build_shell(lambda: Wide(SimpleNamespace(width=100_000_000)))
    comparison = Comparison(shell, open_checkpoint(folder), None, Target())
    comparison.refuse_oversized(comparison.judge(allow_missing=["head.*"]))
    with pytest.raises(MismatchError):
        comparison.refuse_oversized(comparison.judge(strict=False))


def test_ties_are_counted_once_and_a_real_module_is_the_callers_own(folder):
    from shardload.loading.judge import Comparison
    from shardload.placement.target import Target

    def tied():
        model = Wide(SimpleNamespace(width=50_000_000))
        model.again = nn.Linear(4, 1, bias=False)
        model.again.weight = model.head.weight
        return model

    comparison = Comparison(build_shell(tied), open_checkpoint(folder), None, Target())
    comparison.refuse_oversized(comparison.judge(strict=False))  # 800 MB


def test_a_number_of_layers_without_end_ends_soon(folder):
    made = iter(range(10**12))

    def endless(config):
        return nn.ModuleList(nn.Linear(1, 1) for _ in made)

    with pytest.raises(MismatchError, match=r"over 25,032 parameters"):
        from_pretrained(folder, model_class=endless)
    assert next(made) <= 25_032 // 2 + 1  # two parameters each


@pytest.mark.parametrize(
    "make",
    [
        lambda _: nn.Linear(10**6, 10**9),
        lambda _: nn.Embedding(2**62, 2**10),
        lambda _: nn.ParameterList([torch.ones(10**13)]),
        lambda _: torch.ones(10**7, 10**7),
    ],
    ids=["Linear of 10^15", "Embedding beyond 2^64", "a table of 10^13", "a mask of 10^14"],
)
def test_a_tensor_that_no_machine_holds_is_one_typed_error(folder, make):
    with pytest.raises(MismatchError, match="no memory for"):
        from_pretrained(folder, model_class=make)


LARGE = {
    "layers": {"num_hidden_layers": 10**9}, "vocabulary": {"vocab_size": 10**12}, "width": {"hidden_size": 10**7},
    "positions": {"max_position_embeddings": 10**12}, "heads": {"num_attention_heads": 10**9},
    "negative": {"hidden_size": -8}, "text": {"hidden_size": "many"}, "null": {"vocab_size": None},
    "inner": {"intermediate_size": 10**13}, "a list": {"num_hidden_layers": [1] * 1000},
}  # fmt: skip


def test_hostile_sizes_for_a_class_of_transformers_are_typed_small_and_quick(tmp_path):
    pytest.importorskip("transformers")
    small = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1,
             "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 16}  # fmt: skip
    for name, values in LARGE.items():
        write_checkpoint(tmp_path / name, BODY, shards=1, config={**small, **values})
    code = """
import json, re, sys, pathlib
import transformers, torch
from transformers import LlamaForCausalLM
from shardload import from_pretrained, ShardloadError
from tests.calls import calls_of
def high_water():
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1000
found, before = {}, high_water()
def kind_of(folder):
    try:
        from_pretrained(folder, strict=False)
        found[folder.name] = ["accepted"]
    except ShardloadError as error:
        found[folder.name] = [type(error).__name__]
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    calls = calls_of(lambda: kind_of(folder))
    found[folder.name].append(calls)
print(json.dumps([found, high_water() - before]))
"""
    found, grown = json.loads(run_python(code, str(tmp_path)).stdout.splitlines()[-1])
    assert set(found) == set(LARGE)
    assert {kind for kind, _ in found.values()} <= {"MismatchError", "CorruptError", "UnsupportedError"}, (
        found
    )
    assert max(calls for _, calls in found.values()) < 5_000_000, found
    assert grown < 200, f"{grown} MB"


def test_the_limit_is_no_matter_for_honest_models(tmp_path):
    """Many small parameters in few stored tensors, as fused experts have them."""
    model = nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2000))
    write_checkpoint(tmp_path, model.state_dict(), shards=1, config={})
    loaded = from_pretrained(
        tmp_path,
        model_class=lambda _: nn.ModuleList(nn.Linear(1, 1, bias=False) for _ in range(2000)),
    )
    assert torch.equal(loaded[1999].weight, model[1999].weight)
    assert issubclass(MismatchError, ShardloadError)
