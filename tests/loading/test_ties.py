"""Tied parameters: one stored copy fills every name, two stored copies have to be equal."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import MismatchError, OnDevice, build_shell, check, diff, fill, open_checkpoint
from shardload.keymap import KeyMap
from shardload.loading.ties import as_bytes, same_bytes
from tests.tiny import Net, random_state, write_checkpoint


class TiedNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("lacking", ["head.weight", "embed.weight"])
def test_one_stored_copy_fills_both_names_of_a_tie(tmp_path, lacking):
    state = random_state(TiedNet())
    state["head.weight"] = state["embed.weight"]
    kept = {key: value for key, value in state.items() if key != lacking}
    shell = build_shell(TiedNet)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, kept)))
    assert shell.model.head.weight is shell.model.embed.weight
    assert torch.equal(shell.model.head.weight, state["embed.weight"])


def test_two_equal_stored_copies_of_a_tie_are_compared_and_noted(tmp_path):
    state = random_state(TiedNet())
    state["head.weight"] = state["embed.weight"].clone()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    shell = build_shell(TiedNet)
    assert any("two copies, compared at load" in note for note in check(shell, checkpoint).notes)
    fill(shell, checkpoint)
    assert shell.model.head.weight is shell.model.embed.weight


def test_two_stored_copies_of_a_tie_that_differ_are_never_overwritten_in_silence(tmp_path):
    state = random_state(TiedNet())
    state["head.weight"] = state["embed.weight"] + 1
    shell = build_shell(TiedNet)
    with pytest.raises(MismatchError, match="one parameter in the model, and differ in the checkpoint"):
        fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert all(p.is_meta for p in shell.model.parameters())


def test_two_copies_of_a_tie_that_come_through_a_hook_are_compared_too(tmp_path):
    class Renaming(TiedNet):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(self._rename)

        def _rename(self, _module, state, _prefix, *_args) -> None:
            for key in list(state):
                state[key.removeprefix("old.")] = state.pop(key)

    state = {f"old.{key}": value for key, value in random_state(TiedNet()).items()}
    state["old.head.weight"] = state["old.embed.weight"].clone()
    shell = build_shell(Renaming)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path / "equal", state)))
    assert shell.model.head.weight is shell.model.embed.weight
    state["old.head.weight"] += 1
    with pytest.raises(MismatchError, match="were given different values"):
        fill(build_shell(Renaming), open_checkpoint(write_checkpoint(tmp_path / "apart", state)))


def test_copies_of_a_tie_are_compared_bit_for_bit_and_cast_once(tmp_path):
    state = random_state(TiedNet())
    state["embed.weight"][0, 0] = float("nan")
    state["head.weight"] = state["embed.weight"].clone()
    placed: list[str] = []

    class Noting(OnDevice):
        def place(self, key: str, stored: torch.Tensor) -> torch.Tensor:
            placed.append(key)
            return super().place(key, stored)

    fill(build_shell(TiedNet), open_checkpoint(write_checkpoint(tmp_path, state)), target=Noting())
    assert len({"embed.weight", "head.weight"} & set(placed)) == 1


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8)
        self.head.weight = self.embed.weight


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("copy", [False, True])
def test_a_pickle_that_kept_the_tie_is_stated_once(tmp_path, dtype, copy):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, Tables().state_dict(), kind="bin", shards=1))
    shell = build_shell(Tables)
    stated = fill(shell, checkpoint, target=OnDevice(dtype=dtype), copy=copy).stated
    held = sum(parameter.nbytes for parameter in shell.model.parameters())
    if copy:  # both names are read
        assert stated.anonymous == held + shell.model.embed.weight.nbytes
    else:
        assert (stated.anonymous, stated.mapped) == ((0, held) if dtype is None else (held, 0))


def test_a_tie_that_is_stored_under_no_name_is_missing_once(tmp_path):
    state = random_state(TiedNet())
    del state["head.weight"], state["embed.weight"]
    report = check(build_shell(TiedNet), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert [f.key for f in report.faults if f.kind == "missing"] == ["embed.weight"]


class StoredMirror(nn.Module):
    """Has a persistent buffer that is the same tensor as its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("mirror", self.weight)


@pytest.mark.parametrize("stored", [["weight"], ["mirror"], ["weight", "mirror"]])
def test_a_buffer_that_is_a_parameter_is_a_tie(tmp_path, stored):
    shell = build_shell(StoredMirror)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, dict.fromkeys(stored, torch.ones(4)), shards=1)))
    model = shell.model
    assert model.mirror is model.weight
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    assert [name for name, _ in model.named_buffers()] == ["mirror"]
    assert torch.equal(model.weight, torch.ones(4))


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.ones(2), torch.ones(2).half(), False),
        (torch.ones(2, 3), torch.ones(3, 2), False),
        (torch.arange(6.0).view(2, 3).t(), torch.arange(6.0).view(2, 3).t().contiguous(), True),
        (torch.empty(0), torch.empty(0), True),
    ],
)
def test_bits_are_compared_and_not_numbers(first, second, same):
    assert same_bytes(first, second) is same


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_a_single_element_of_any_stride_is_compared_by_its_bytes(shape):
    one = torch.arange(4.0).as_strided(shape, (2,) * len(shape))
    assert as_bytes(one).tolist() == [0, 0, 0, 0]
    assert same_bytes(one, torch.zeros(shape))
    assert not same_bytes(one, torch.ones(shape))


def test_a_single_element_that_was_stored_with_a_stride_is_compared(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        torch.save({"x": torch.arange(4.0).as_strided((1,), (2,))}, tmp_path / name / "pytorch_model.bin")
    assert not diff(tmp_path / "a", tmp_path / "b", values=True).values


@pytest.mark.parametrize("own", [{"model.{...}": "{...}"}, None, "joined"])
def test_to_drop_one_copy_keeps_the_key_map_of_the_call(tmp_path, own):
    state = random_state(TiedNet())
    state["head.weight"] = state["embed.weight"] + 1
    stored = {f"model.{key}" if own else key: value for key, value in state.items()}
    key_map = own
    if own == "joined":
        key_map = KeyMap().cat(["a", "b"], "model.layers.0.up.weight").rename("model.{...}", "{...}")
        stored["a"], stored["b"] = stored.pop("model.layers.0.up.weight").chunk(2)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, stored))
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(TiedNet), checkpoint, key_map=key_map)
    untie, drop = caught.value.cure.parts
    assert untie == "untie them in the class"
    if own == "joined":  # no mapping of names says a rule that joins
        assert drop == "drop one: end the key map with a rule that drops head.weight"
        key_map = key_map.drop("head.weight")
    else:
        key_map = drop.keywords["key_map"]
    shell = build_shell(TiedNet)
    fill(shell, checkpoint, key_map=key_map)
    assert torch.equal(shell.model.head.weight, state["embed.weight"])
