"""fill and check give the results of torch's own load_state_dict."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from shardload import (
    CorruptError,
    KeyMap,
    OnDevice,
    UsageError,
    build_shell,
    check,
    fill,
    from_pretrained,
    open_checkpoint,
    report_of,
    save,
)
from tests.tiny import Net, assert_same_state, meta_names, random_state, torch_filled, write_checkpoint

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("copy", [False, True])
def test_state_and_logits_are_bit_equal_to_torch(tmp_path, kind, shards, copy):
    state = random_state(Net())
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=shards, kind=kind))
    shell = build_shell(Net)
    report = fill(shell, checkpoint, copy=copy)
    oracle = torch_filled(Net, state)
    assert_same_state(shell.model, oracle)
    assert meta_names(shell.model) == []
    assert torch.equal(shell.model.eval()(IDS), oracle(IDS))
    assert report.ok
    assert report.loaded == len(state)
    assert len(report.shards) == shards


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_cast_is_torchs_cast(tmp_path, kind, dtype):
    state = random_state(Net())
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, kind=kind)), target=OnDevice(dtype=dtype))
    for key, value in shell.model.state_dict().items():
        expected = state[key].to(dtype) if state[key].is_floating_point() else state[key]
        assert value.dtype == expected.dtype, key
        assert torch.equal(value, expected), key
    block = shell.model.layers[0]
    assert block.scale.dtype == torch.float32, "a computed buffer keeps the dtype that the class gave it"
    assert block.slopes.dtype == torch.float32


def test_every_dtype_that_torch_stores_comes_back(tmp_path):
    dtypes = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64,
    ]  # fmt: skip

    class Buffers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number, dtype in enumerate(dtypes):
                self.register_buffer(f"b{number}", torch.zeros(3, 5).to(dtype))

    state = {f"b{n}": (torch.rand(3, 5) * 3).to(dtype) for n, dtype in enumerate(dtypes)}
    for kind in ("bin", "legacy"):
        shell = build_shell(Buffers)
        fill(shell, open_checkpoint(write_checkpoint(tmp_path / kind, state, kind=kind, shards=1)))
        for key, value in state.items():
            got = shell.model.state_dict()[key]
            assert got.dtype == value.dtype
            assert torch.equal(got.view(torch.uint8), value.view(torch.uint8))


def test_requires_grad_is_that_of_the_class(tmp_path):
    def make() -> Net:
        model = Net()
        model.embed.weight.requires_grad_(False)
        return model

    shell = build_shell(make)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, random_state(Net()))))
    assert not shell.model.embed.weight.requires_grad
    assert shell.model.head.weight.requires_grad


def test_an_existing_module_is_filled(tmp_path):
    state = random_state(Net())
    model = Net()
    fill(model, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert_same_state(model, torch_filled(Net, state))


def test_mapped_weights_can_be_trained_and_the_file_stays(tmp_path):
    state = random_state(Net())
    folder = write_checkpoint(tmp_path, state)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder))
    model = shell.model.train()
    model(IDS).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert not torch.equal(model.head.weight, state["head.weight"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_key_map_renames(tmp_path):
    state = random_state(Net())
    renamed = {key.replace("layers.", "h.").replace("embed.", "wte."): value for key, value in state.items()}
    key_map = KeyMap.of({"h.{}.{...}": "layers.{}.{...}", "wte.{...}": "embed.{...}"})
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, renamed)), key_map=key_map)
    assert_same_state(shell.model, torch_filled(Net, state))


def test_progress_counts_every_byte(tmp_path):
    seen = []
    state = random_state(Net())
    fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)), progress=seen.append)
    assert seen[-1].done_bytes == seen[-1].total_bytes == sum(t.nbytes for t in state.values())
    assert seen[-1].tensors == len(state)
    assert {p.shard for p in seen} == {path.name for path in tmp_path.glob("*.safetensors")}


def test_a_fault_in_the_middle_puts_everything_back(tmp_path):
    """The third shard is cut after planning: two shards are loaded before the load fails."""
    folder = write_checkpoint(tmp_path, random_state(Net()))
    checkpoint = open_checkpoint(folder)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-40])
    model = Net()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}

    with pytest.raises(CorruptError, match="ends before"):
        fill(model, checkpoint)
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "repo", random_state(Net()))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_in_the_middle_puts_everything_back(folder, error):
    def stop(progress) -> None:
        if progress.tensors == 9:
            raise error

    model = Net()
    before = {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())}
    with pytest.raises(error):
        fill(model, open_checkpoint(folder), progress=stop)
    assert {name: id(p) for name, p in (*model.named_parameters(), *model.named_buffers())} == before
    fill(model, open_checkpoint(folder))
    assert torch.equal(model.head.weight, random_state(Net())["head.weight"])


def test_two_models_of_one_checkpoint_do_not_share_what_is_trained(folder):
    checkpoint = open_checkpoint(folder)
    first, second = build_shell(Net), build_shell(Net)
    fill(first, checkpoint)
    fill(second, checkpoint)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1)
        first.model.stats.running_mean.add_(1)
    for key, value in random_state(Net()).items():
        assert torch.equal(second.model.state_dict()[key], value)


def test_copies_of_a_mapped_model_are_whole(folder, tmp_path):
    model = from_pretrained(folder, model_class=lambda _config: Net(), config={}, progress=False)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_state(twin, model)
        with torch.no_grad():
            twin.head.weight.zero_()
        assert float(model.head.weight.detach().abs().sum()) > 0
        with pytest.raises(UsageError, match="not made by from_pretrained"):
            report_of(twin)
    torch.save(model.state_dict(), tmp_path / "again.pt")
    total = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert (tmp_path / "again.pt").stat().st_size < 3 * total + 20_000, "no file is dragged along"
    model.share_memory()
    assert torch.equal(model.head.weight, random_state(Net())["head.weight"])


def test_saving_over_the_files_that_the_model_is_mapped_from(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder))
    with torch.no_grad():
        shell.model.head.weight.add_(1)
    save(shell.model, folder)
    again = build_shell(Net)
    fill(again, open_checkpoint(folder))
    assert_same_state(again.model, shell.model)
    assert torch.equal(again.model.head.weight, random_state(Net())["head.weight"] + 1)


def test_no_grad_around_a_load_leaves_parameters_that_can_be_trained(folder):
    with torch.no_grad():
        shell = build_shell(Net)
        fill(shell, open_checkpoint(folder))
    shell.model(torch.tensor([[1, 2, 3], [4, 5, 6]])).sum().backward()
    assert all(parameter.grad is not None for parameter in shell.model.parameters())


@pytest.mark.parametrize(
    "keywords",
    [
        {"allow_missing": None}, {"allow_missing": [3]}, {"allow_missing": "head.*"}, {"allow_unexpected": ["["]},
        {"key_map": 3}, {"key_map": [("a", "b")]}, {"key_map": {"a": 3}}, {"key_map": {3: "a"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_keyword_of_the_wrong_kind_is_a_typed_error(folder, keywords):
    model = Net()
    before = {name: id(p) for name, p in model.named_parameters()}
    with pytest.raises(UsageError):
        fill(model, open_checkpoint(folder), **keywords)
    assert {name: id(p) for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("wrong", [None, "text", {}, Net])
def test_a_model_or_a_checkpoint_of_the_wrong_kind_is_a_typed_error(folder, wrong):
    with pytest.raises(UsageError, match="is wanted"):
        fill(wrong, open_checkpoint(folder))
    with pytest.raises(UsageError, match="is wanted"):
        fill(Net(), wrong)
    with pytest.raises(UsageError, match="is wanted"):
        check(Net(), wrong)
