"""One test for each trap that loaders were seen to fall into (docs/architecture.md, "Traps").

`scripts/take_fixes_out.py` takes each fix out of a copy of the package and shows that its test then fails.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import shardload
from shardload import CorruptError, MismatchError, OnDevice, check, fill, open_checkpoint
from tests.tiny import (
    Net,
    assert_same_state,
    build_shell,
    meta_names,
    random_state,
    run_python,
    save_safetensors,
    torch_filled,
    write_checkpoint,
)

# --- the shell ------------------------------------------------------------------------------------------------


class StubbornRotary(nn.Module):
    """Computes its table and refuses a stored one, as ChatGLM-6B's does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, 8, 2).float() / 8)))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        pass


class OldStyle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rotary = StubbornRotary()
        self.dense = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.half)


def test_skip_init_leaves_no_parameter_in_memory_and_a_refused_table_is_as_computed(tmp_path):
    state = {**random_state(OldStyle()), "rotary.inv_freq": torch.zeros(4)}
    shell = build_shell(OldStyle)
    assert [name for name, p in shell.model.named_parameters() if not p.is_meta] == []
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert meta_names(shell.model) == []
    assert torch.equal(shell.model.rotary.inv_freq, StubbornRotary().inv_freq)
    assert_same_state(shell.model, torch_filled(OldStyle, state))


def test_the_shell_pauses_the_collector():
    seen = []

    def make() -> nn.Module:
        seen.append(gc.isenabled())
        return nn.Linear(2, 2)

    build_shell(make)
    assert seen == [False]
    assert gc.isenabled()


class Operations(TorchDispatchMode):
    """Names of the operations that reach torch's kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_initialisers_cost_nothing_in_a_shell():
    """Counted, not timed: nothing but the making of empty tensors reaches torch."""
    operations = Operations()

    def make() -> nn.Module:
        with operations:
            model = nn.Sequential(nn.Linear(64, 64), nn.Embedding(100, 8), nn.Conv1d(4, 4, 3))
            nn.init.xavier_uniform_(model[0].weight)
            nn.init.orthogonal_(model[0].weight)
        return model

    build_shell(make)
    assert {
        name for name in operations.names if "empty" not in name and name not in ("detach", "new_empty")
    } == set()


def test_a_parameter_is_on_meta_as_soon_as_it_is_made():
    """Not only once the whole model stands: by then it would have been in memory whole."""
    seen = []

    def make() -> nn.Module:
        model = nn.utils.skip_init(nn.Linear, 4, 4, dtype=torch.half)
        seen.append(model.weight.is_meta)
        seen.append(model.half().weight.is_meta)
        seen.append(nn.Parameter(torch.ones(3)).is_meta)
        return model

    build_shell(make)
    assert seen == [True, True, True]


# --- the walk -------------------------------------------------------------------------------------------------


def _calls(work) -> int:
    count = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


class RenamingRoot(nn.Module):
    """A root hook that renames: the whole checkpoint has to pass through it at once."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))
        self._register_load_state_dict_pre_hook(self._rename)

    def _rename(self, state, prefix, *_args) -> None:
        for key in [key for key in state if key.startswith(f"{prefix}old.")]:
            state[key.replace("old.", "layers.", 1)] = state.pop(key)


@pytest.mark.parametrize("hooked", [False, True])
def test_work_is_linear_in_the_number_of_tensors(tmp_path, hooked):
    """torch's own load a shard at a time is quadratic; here twice the tensors are at most 2.2 times the calls."""
    counts = []
    for layers in (100, 200, 400):
        make = (lambda n=layers: RenamingRoot(n)) if hooked else (lambda n=layers: Many(n))
        state = random_state(make())
        checkpoint = open_checkpoint(write_checkpoint(tmp_path / f"{layers}", state, shards=10))
        shell = build_shell(make)
        counts.append(_calls(lambda shell=shell, checkpoint=checkpoint: fill(shell, checkpoint)))
    assert counts[2] - counts[1] < 2.2 * (counts[1] - counts[0])


class Many(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(layers))


def test_a_root_hook_that_renames_loses_nothing(tmp_path):
    state = random_state(RenamingRoot())
    old = {key.replace("layers.", "old."): value for key, value in state.items()}
    shell = build_shell(RenamingRoot)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, old)))
    assert_same_state(shell.model, torch_filled(RenamingRoot, old))
    assert torch.equal(shell.model.layers[3].bias, state["layers.3.bias"])


class Fusing(nn.Module):
    """Stored as q, k, v; held as one weight. The three lie in different shards."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Parameter(torch.zeros(9, 4))
        self.runs: list[str] = []
        self._register_load_state_dict_pre_hook(self._fuse)

    def _fuse(self, state, prefix, *_args) -> None:
        parts = [state.pop(prefix + name) for name in ("q", "k", "v")]
        self.runs.append(str(parts[0].device))
        state[f"{prefix}qkv"] = torch.cat(parts)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn = Fusing()
        self.out = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.out.weight


def _unfused() -> dict[str, torch.Tensor]:
    parts = {f"attn.{name}": torch.randn(3, 4) for name in ("q", "k", "v")}
    return {**parts, "out.weight": torch.randn(4, 4), "out.bias": torch.randn(4), "tied.bias": torch.randn(4)}


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"target": OnDevice(dtype=torch.float16)}])
def test_a_hook_that_fuses_gets_all_its_tensors_from_two_shards(tmp_path, options):
    state = _unfused()
    shell = build_shell(Model)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, shards=3)), **options)
    fused = torch.cat([state["attn.q"], state["attn.k"], state["attn.v"]])
    assert torch.equal(shell.model.attn.qkv, fused.to(shell.model.out.weight.dtype))


def test_hooks_run_twice_first_on_meta(tmp_path):
    shell = build_shell(Model)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, _unfused())))
    assert shell.model.attn.runs == ["cpu"], "what the rehearsal appended is taken back"
    runs: list[str] = []
    shell = build_shell(Model)
    shell.model.attn._register_load_state_dict_pre_hook(
        lambda state, *_: runs.append(str(state["attn.qkv"].device))
    )
    fill(shell, open_checkpoint(tmp_path))
    assert runs == ["meta", "cpu"]


def test_the_rehearsal_judges_hooks_and_leaves_parameters_buffers_and_ties_alone(tmp_path):
    state = _unfused()
    model = Model()
    wrapped = nn.ModuleDict({"m": model})
    wrapped.register_load_state_dict_pre_hook(lambda *_: None)
    parameters = {name: id(p) for name, p in wrapped.named_parameters(remove_duplicate=False)}
    named = {f"m.{key}": value for key, value in state.items()}
    assert check(wrapped, open_checkpoint(write_checkpoint(tmp_path / "good", named))).ok
    named["m.attn.v"] = torch.randn(2, 4)
    report = check(wrapped, open_checkpoint(write_checkpoint(tmp_path / "bad", named)))
    assert [(f.kind, f.key) for f in report.faults] == [("misshapen", "m.attn.qkv")]
    assert {f"m.{name}": id(p) for name, p in model.named_parameters(remove_duplicate=False)} == parameters
    assert model.tied.weight is model.out.weight
    assert not any(p.is_meta for p in model.parameters())


def test_a_rehearsal_that_fails_leaves_the_model_alone_too(tmp_path):
    class Breaking(Model):
        def __init__(self) -> None:
            super().__init__()
            self.attn.register_load_state_dict_post_hook(lambda *_: 1 / 0)

    model = Breaking()
    ids = {name: id(p) for name, p in model.named_parameters()}
    check(model, open_checkpoint(write_checkpoint(tmp_path, _unfused())))
    assert {name: id(p) for name, p in model.named_parameters()} == ids


class Looking(nn.Module):
    """A hook that looks at values can't be rehearsed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self._register_load_state_dict_pre_hook(self._look)

    def _look(self, state, prefix, *_args) -> None:
        if float(state[f"{prefix}weight"].sum()) < 0:
            state[f"{prefix}wrong"] = state.pop(f"{prefix}weight")


def test_a_hook_that_looks_at_values_is_judged_at_the_load(tmp_path):
    good = open_checkpoint(write_checkpoint(tmp_path / "good", {"weight": torch.ones(3)}, shards=1))
    bad = open_checkpoint(write_checkpoint(tmp_path / "bad", {"weight": -torch.ones(3)}, shards=1))
    report = check(build_shell(Looking), good)
    assert report.ok
    assert any("can't be rehearsed" in note for note in report.notes)
    shell = build_shell(Looking)
    fill(shell, good)
    assert torch.equal(shell.model.weight, torch.ones(3))
    shell = build_shell(Looking)
    with pytest.raises(MismatchError, match="1 missing"):
        fill(shell, bad)
    assert shell.model.weight.is_meta


def test_num_batches_tracked_of_an_old_checkpoint_is_not_missing(tmp_path):
    """torch fills it in where the stored version is below 2; a .bin without _metadata has none."""
    state = random_state(Net())
    del state["stats.num_batches_tracked"]
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, kind="bin")))
    assert meta_names(shell.model) == []
    assert (
        int(shell.model.stats.num_batches_tracked)
        == int(torch_filled(Net, state).stats.num_batches_tracked)
        == 0
    )


def test_metadata_versions_reach_the_modules(tmp_path):
    """With a stored version 2 the same key is missing, as torch has it."""
    model = Net()
    state = model.state_dict()
    del state["stats.num_batches_tracked"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="num_batches_tracked"):
        Net().load_state_dict(torch.load(tmp_path / "pytorch_model.bin", weights_only=True))
    report = check(build_shell(Net), open_checkpoint(tmp_path))
    assert [(f.kind, f.key) for f in report.faults] == [("missing", "stats.num_batches_tracked")]


def test_an_override_that_copies_in_place_fills_a_shell(tmp_path):
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4))

        def _load_from_state_dict(self, state, prefix, *_args) -> None:
            with torch.no_grad():
                self.weight.copy_(state[f"{prefix}stored"] * 2)

    shell = build_shell(InPlace)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, {"stored": torch.ones(4)}, shards=1)))
    assert torch.equal(shell.model.weight, torch.full((4,), 2.0))


class Ignoring(nn.Module):
    def __init__(self, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((4,), 5.0) if weight is None else weight)

    def _load_from_state_dict(self, *_args) -> None:
        pass


IGNORED = {"0.weight": torch.ones(4), "1.weight": torch.ones(2, 2), "1.bias": torch.ones(2)}


def test_an_override_that_ignores_its_weight_leaves_it_as_the_class_makes_it(tmp_path):
    make = lambda: nn.Sequential(Ignoring(), nn.Linear(2, 2))  # noqa: E731
    shell = build_shell(make)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, IGNORED)))
    assert_same_state(shell.model, torch_filled(make, IGNORED))
    assert torch.equal(shell.model[0].weight, torch.full((4,), 5.0))
    assert any("was handed 1 tensors and filled 0" in note for note in report.notes)


def test_an_override_that_ignores_its_weight_never_leaves_it_uninitialised(tmp_path):
    shell = build_shell(lambda: nn.Sequential(Ignoring(torch.empty(4)), nn.Linear(2, 2)))
    with pytest.raises(MismatchError, match=r"0\.weight"):
        fill(shell, open_checkpoint(write_checkpoint(tmp_path, IGNORED)))


class Padding(nn.Module):
    """Writes its stored rows in place and leaves the padding below them as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, 2))

    def _load_from_state_dict(self, state, prefix, *_args) -> None:
        with torch.no_grad():
            self.weight[:3].copy_(state[f"{prefix}weight"])


def test_an_override_that_writes_a_part_leaves_the_rest_as_the_class_makes_it(tmp_path):
    state = {"weight": torch.ones(3, 2)}
    shell = build_shell(Padding)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, shards=1)))
    assert torch.equal(shell.model.weight, torch_filled(Padding, state).weight)


def test_an_override_that_copies_in_place_into_a_real_module_is_undone(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Padding(), nn.Linear(2, 2)

    state = {"a.weight": torch.ones(3, 2), "b.weight": torch.ones(2, 2), "b.bias": torch.ones(2)}
    model = Two()

    def stop(_progress: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(model, open_checkpoint(write_checkpoint(tmp_path, state, shards=1)), progress=stop)
    assert torch.equal(model.a.weight, torch.zeros(5, 2))


def test_an_override_that_assigns_as_torch_does_needs_no_memory(tmp_path):
    class Passing(nn.Linear):
        def _load_from_state_dict(self, *args) -> None:
            super()._load_from_state_dict(*args)

    shell = build_shell(lambda: Passing(512, 512))
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(512, 512), "bias": torch.ones(512)}, shards=1)
    with Operations() as operations:
        fill(shell, open_checkpoint(folder))
    assert not {"full", "clone", "fill_"} & set(operations.names)


def test_what_an_override_computes_keeps_its_dtype_in_a_cast(tmp_path):
    class Computing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("inverse", torch.zeros(3), persistent=False)

        def _load_from_state_dict(self, state, prefix, *args) -> None:
            super()._load_from_state_dict(state, prefix, *args)
            if not state[f"{prefix}weight"].is_meta:
                self.inverse = 1 / state[f"{prefix}weight"]

    shell = build_shell(Computing)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"weight": torch.full((3,), 3.0)}, shards=1))
    fill(shell, checkpoint, target=OnDevice(dtype=torch.bfloat16))
    assert shell.model.weight.dtype == torch.bfloat16
    assert shell.model.inverse.dtype == torch.float32


def test_a_complex_weight_for_a_real_one_is_refused_below_a_hook_too(tmp_path):
    def make() -> nn.Module:
        model = nn.Linear(2, 2, bias=False)
        model.register_load_state_dict_pre_hook(lambda *_: None)
        return model

    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path, {"weight": torch.ones(2, 2, dtype=torch.complex64)}, kind="bin", shards=1)
    )
    with pytest.raises(MismatchError, match="holds real numbers"):
        fill(build_shell(make), checkpoint)


def test_versions_follow_a_key_map(tmp_path):
    model = nn.ModuleDict({"module": Net()})
    state = model.state_dict()
    del state["module.stats.num_batches_tracked"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    report = check(build_shell(Net), open_checkpoint(tmp_path), key_map={"module.{...}": "{...}"})
    assert [(f.kind, f.key) for f in report.faults] == [("missing", "stats.num_batches_tracked")]


def test_a_root_hook_is_no_way_to_load_nothing(tmp_path):
    def make() -> nn.Module:
        model = Net()
        model.register_load_state_dict_pre_hook(lambda *_: None)
        return model

    state = {f"module.{key}": value for key, value in random_state(Net()).items()}
    with pytest.raises(MismatchError, match="E-WRAP"):
        fill(build_shell(make), open_checkpoint(write_checkpoint(tmp_path, state)), strict=False)


def test_what_a_hook_drops_is_not_counted_as_loaded(tmp_path):
    def make() -> nn.Module:
        model = nn.Linear(2, 2)
        model.register_load_state_dict_pre_hook(
            lambda _m, state, prefix, *_: state.pop(f"{prefix}junk", None)
        )
        return model

    state = {"weight": torch.ones(2, 2), "bias": torch.ones(2), "junk": torch.ones(9)}
    report = fill(build_shell(make), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert report.loaded == 2
    assert any("was handed 3 tensors and filled 2" in note for note in report.notes)


@pytest.mark.parametrize("leniency", [{"strict": False}, {"allow_unexpected": ["*_scale_inv"]}])
def test_leniency_does_not_take_a_quantised_checkpoint_for_another(tmp_path, leniency):
    state = {
        "weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1), "bias": torch.ones(4),
    }  # fmt: skip
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(shardload.UnsupportedError, match="fp8"):
        fill(build_shell(lambda: nn.Linear(4, 4)), open_checkpoint(tmp_path), **leniency)


def test_an_uninitialised_buffer_is_no_value_either(tmp_path):
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("good", torch.full((2,), 4.0))
            self.register_buffer("bad", torch.empty(64))

    state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    with pytest.raises(
        MismatchError, match="bad: not in the checkpoint, and the class leaves it uninitialised"
    ):
        fill(build_shell(Table), checkpoint, allow_missing=["good", "bad"])
    full = open_checkpoint(write_checkpoint(tmp_path / "full", {**state, "bad": torch.ones(64)}))
    shell = build_shell(Table)
    fill(shell, full, allow_missing=["good"])
    assert torch.equal(shell.model.good, torch.full((2,), 4.0))


def test_a_stored_value_for_a_plain_attribute_is_never_passed_over(tmp_path):
    """A buffer that was not registered: torch's strict load calls its key unexpected."""

    class Forgotten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.scale = torch.ones(3)
            self.inv_freq = torch.ones(3)

    state = {"linear.weight": torch.ones(2, 2), "linear.bias": torch.ones(2), "inv_freq": torch.ones(3)}
    fill(build_shell(Forgotten), open_checkpoint(write_checkpoint(tmp_path / "a", state)))
    state["scale"] = torch.full((3,), 7.0)
    with pytest.raises(MismatchError, match="plain attribute"):
        fill(build_shell(Forgotten), open_checkpoint(write_checkpoint(tmp_path / "b", state)))


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.steps = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def test_extra_state_is_loaded(tmp_path):
    model = Extra()
    model.steps = 7
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    shell = build_shell(Extra)
    fill(shell, open_checkpoint(tmp_path))
    assert shell.model.steps == 7
    assert torch.equal(shell.model.linear.weight, model.linear.weight)


def test_extra_state_that_is_lacking_is_missing(tmp_path):
    state = {key: value for key, value in Extra().state_dict().items() if key != "_extra_state"}
    report = check(build_shell(Extra), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert [(f.kind, f.key) for f in report.faults] == [("missing", "_extra_state")]


def test_an_entry_that_is_no_tensor_is_never_dropped(tmp_path):
    torch.save({**random_state(Net()), "epoch": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(MismatchError, match="epoch  - an entry of type int"):
        fill(build_shell(Net), open_checkpoint(tmp_path))
    fill(build_shell(Net), open_checkpoint(tmp_path), allow_unexpected=["epoch"])


def test_an_overridden_load_state_dict_is_declined_by_name(tmp_path):
    class Own(Net):
        def load_state_dict(self, state_dict, *args, **kwargs):
            return super().load_state_dict(
                {k.removeprefix("x."): v for k, v in state_dict.items()}, *args, **kwargs
            )

    with pytest.raises(shardload.UnsupportedError, match="Own overrides load_state_dict"):
        fill(build_shell(Own), open_checkpoint(write_checkpoint(tmp_path, random_state(Net()))))


def test_an_rnn_keeps_using_the_weights_that_were_loaded(tmp_path):
    """It holds its weights in a list beside its parameters; assigning behind its back leaves the list on meta."""
    state = random_state(nn.LSTM(4, 4))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
    shell, existing = build_shell(lambda: nn.LSTM(4, 4)), nn.LSTM(4, 4)
    x = torch.randn(2, 3, 4)
    for model in (shell, existing):
        fill(model, checkpoint)
    # torch's forward mends the list by itself in some versions; code that reads it does not.
    assert existing._flat_weights[0] is existing.weight_ih_l0
    assert shell.model._flat_weights[0] is shell.model.weight_ih_l0
    expected = torch_filled(lambda: nn.LSTM(4, 4), state)(x)[0]
    assert torch.equal(shell.model(x)[0], expected)
    assert torch.equal(existing(x)[0], expected)


def test_parameters_that_a_module_also_keeps_in_a_list_are_the_loaded_ones(tmp_path):
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.all = [self.linear.weight, (self.linear.bias, 1)]
            self.named = {"bias": self.linear.bias}

    shell = build_shell(Listing)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, random_state(Listing()))))
    model = shell.model
    assert model.all[0] is model.linear.weight
    assert model.all[1][0] is model.linear.bias
    assert model.named["bias"] is model.linear.bias


# --- lines in the report, not faults --------------------------------------------------------------------------


def test_a_stored_copy_of_a_computed_buffer_is_a_note(tmp_path):
    state = {**random_state(Net()), "layers.0.scale": torch.zeros(1)}
    shell = build_shell(Net)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert float(shell.model.layers[0].scale) == 0.5
    assert any("layers.0.scale: a stored copy" in note for note in report.notes)


def test_a_stored_copy_of_a_computed_buffer_is_a_note_below_a_hook_too(tmp_path):
    class Hooked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_load_state_dict_pre_hook(lambda *_: None)

    state = {**random_state(Net()), "layers.0.scale": torch.zeros(1)}
    shell = build_shell(Hooked)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    assert float(shell.model.layers[0].scale) == 0.5
    assert any("layers.0.scale: a stored copy" in note for note in report.notes)


def test_keys_that_the_class_declares_are_lines_and_not_faults(tmp_path):
    class Declaring(Net):
        _keys_to_ignore_on_load_missing = (r"head\.bias",)
        _keys_to_ignore_on_load_unexpected = (r"rotary_emb\.inv_freq",)

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 12)

    state = {**random_state(Net()), "layers.0.rotary_emb.inv_freq": torch.zeros(4)}
    shell = build_shell(Declaring)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    text = str(report)
    assert "missing: head.bias (by the class's _keys_to_ignore_on_load_missing)" in text
    assert "unexpected: layers.0.rotary_emb.inv_freq (by the class's" in text
    assert meta_names(shell.model) == []


# --- ties -----------------------------------------------------------------------------------------------------


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


def test_a_tie_that_is_stored_under_no_name_is_missing_once(tmp_path):
    state = random_state(TiedNet())
    del state["head.weight"], state["embed.weight"]
    report = check(build_shell(TiedNet), open_checkpoint(write_checkpoint(tmp_path, state)))
    assert [f.key for f in report.faults if f.kind == "missing"] == ["embed.weight"]


# --- bytes ----------------------------------------------------------------------------------------------------


def test_a_region_does_not_keep_the_tensor_alive(tmp_path):
    save_safetensors({"big": torch.randn(1000, 100)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    rows = checkpoint.read("big", (slice(5, 15), slice(None)))
    assert rows.untyped_storage().nbytes() == 10 * 100 * 4
    part = checkpoint.read("big", (slice(0, 1000), slice(3, 5)))
    assert part.untyped_storage().nbytes() == 1000 * 2 * 4
    assert torch.equal(rows, checkpoint.read("big")[5:15])
    assert torch.equal(part, checkpoint.read("big")[:, 3:5])


def test_each_parameter_has_a_storage_of_its_own_extent(tmp_path):
    state = random_state(Net())
    shell = build_shell(Net)
    fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)))
    for parameter in shell.model.parameters():
        assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()


def test_a_legacy_pickle_is_loaded_without_holding_it_whole(tmp_path):
    """torch reads such a file into memory once; its storages lie one after the other and can be taken singly."""
    state = random_state(Net())
    shell = build_shell(Net)
    report = fill(shell, open_checkpoint(write_checkpoint(tmp_path, state, kind="legacy", shards=1)))
    assert report.format == "torch legacy"
    assert_same_state(shell.model, torch_filled(Net, state))


def test_an_unaligned_tensor_is_copied(tmp_path):
    header = json.dumps({
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }).encode()  # fmt: skip
    values = torch.tensor([1.5, -2.0])
    from tests.tiny import tensor_bytes

    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\7" + tensor_bytes(values))
    got = open_checkpoint(tmp_path).read("b")
    assert torch.equal(got, values)
    assert got.data_ptr() % 4 == 0


def test_a_file_that_was_cut_after_it_was_opened_is_a_clean_error(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    checkpoint = open_checkpoint(folder)
    os.truncate(folder / "model.safetensors", 900)
    for copy in (False, True):
        with pytest.raises(CorruptError, match="ends before"):
            fill(build_shell(Net), checkpoint, copy=copy)


def test_a_file_that_changes_while_it_is_loaded_is_noticed(tmp_path):
    folder = write_checkpoint(tmp_path, random_state(Net()), shards=1)
    path = folder / "model.safetensors"

    def touch(_progress: object) -> None:
        os.utime(path, ns=(1, 1))

    shell = build_shell(Net)
    with pytest.raises(CorruptError, match="changed while it was being loaded"):
        fill(shell, open_checkpoint(folder), progress=touch)
    assert all(p.is_meta for p in shell.model.parameters())


def test_copy_true_survives_a_file_that_is_cut_later(tmp_path):
    """A mapped weight would kill the process with SIGBUS; a read one does not need the file any more."""
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(512, 1024), "bias": torch.ones(512)}, shards=1)
    code = """
import os, sys, torch
from shardload import build_shell, fill, open_checkpoint
shell = build_shell(lambda: torch.nn.Linear(1024, 512))
fill(shell, open_checkpoint(sys.argv[1]), copy=True)
os.truncate(sys.argv[1] + "/model.safetensors", 100)
print(float(shell.model.weight.sum()))
"""
    assert run_python(code, str(folder)).stdout.strip() == str(float(512 * 1024))


def test_neither_reads_nor_loads_hold_descriptors_and_reads_share_a_mapping(tmp_path):
    """Python's own mmap holds a descriptor; one a shard ends at the usual limit of 1,024."""
    state = {f"{n}.weight": torch.full((2, 1), float(n)) for n in range(300)}
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, state, shards=30))
    shell = build_shell(lambda: nn.Sequential(*(nn.Linear(1, 2, bias=False) for _ in range(300))))
    before = len(os.listdir("/proc/self/fd"))
    fill(shell, checkpoint)
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    held = [checkpoint.read(name) for name in state]
    now = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(tmp_path) in line]
    assert len(os.listdir("/proc/self/fd")) == before
    assert (len(mapped), len(now)) == (30, 60)
    assert all(torch.equal(tensor, state[name]) for name, tensor in zip(state, held, strict=True))
    del held, shell
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text(), "unmapped with the last tensor"


# --- imports --------------------------------------------------------------------------------------------------


def test_importing_shardload_brings_in_nothing_heavy():
    code = """
import sys, shardload
heavy = {"torch", "huggingface_hub", "transformers", "tqdm", "click", "rich", "safetensors", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run_python(code).stdout.strip() == "[]"


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


def test_a_load_with_skip_init_does_not_import_sympy(tmp_path):
    """torch's own to_empty does, by way of a Python kernel: more than half of a small load's time."""
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(4, 4), "bias": torch.ones(4)})
    code = """
import sys, torch
from shardload import from_pretrained
make = lambda config: torch.nn.utils.skip_init(torch.nn.Linear, 4, 4)
before = "sympy" in sys.modules
from_pretrained(sys.argv[1], model_class=make, config={})
print(before, "sympy" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == ["False", "False"]


@pytest.mark.parametrize("kind", ["safetensors", "bin", "legacy"])
def test_opening_a_folder_does_not_import_torch(tmp_path, kind):
    folder = write_checkpoint(tmp_path, random_state(Net()), kind=kind)
    code = """
import sys
from shardload import open_checkpoint
checkpoint = open_checkpoint(sys.argv[1])
print(len(checkpoint.tensors), "torch" in sys.modules)
"""
    assert run_python(code, str(folder)).stdout.split() == [str(len(random_state(Net()))), "False"]


# --- casting --------------------------------------------------------------------------------------------------


def test_a_cast_does_not_change_torchs_thread_count_or_default_dtype(tmp_path):
    threads = torch.get_num_threads()
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    fill(build_shell(Net), checkpoint, target=OnDevice(dtype=torch.bfloat16))
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == torch.float32
