"""fill and check against torch's own load_state_dict."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shardload import (
    KeyMap,
    MismatchError,
    OnDevice,
    UnsupportedError,
    UsageError,
    check,
    fill,
    open_checkpoint,
)
from tests.tiny import (
    Net,
    assert_same_state,
    build_shell,
    meta_names,
    random_state,
    torch_filled,
    write_checkpoint,
)

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


class TestRefusals:
    """A refused load names everything at once and leaves the model as it was."""

    def refuse(self, tmp_path, state, make=Net, **options):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, state))
        shell = build_shell(make)
        before = {name: id(p) for name, p in shell.model.named_parameters()}
        buffers = {name: (id(b), b.clone()) for name, b in shell.model.named_buffers()}
        with pytest.raises(MismatchError) as caught:
            fill(shell, checkpoint, **options)
        assert {name: id(p) for name, p in shell.model.named_parameters()} == before
        for name, buffer in shell.model.named_buffers():
            assert id(buffer) == buffers[name][0]
            assert torch.equal(buffer, buffers[name][1])
        return caught.value

    def test_missing_unexpected_and_misshapen_are_told_together(self, tmp_path):
        state = random_state(Net())
        del state["layers.0.up.bias"], state["layers.1.up.bias"]
        state["extra.weight"] = torch.zeros(2)
        state["head.weight"] = torch.zeros(13, 8)
        error = self.refuse(tmp_path, state)
        text = str(error)
        assert "2 missing" in text
        assert "1 unexpected" in text
        assert "1 misshapen" in text
        assert "layers.{0-1}.up.bias  [16] float32" in text
        assert "model [12, 8] float32, checkpoint [13, 8] float32" in text
        assert "model-0000" in text, "the shard is named"
        assert {fault.key for fault in error.report.faults} == {
            "layers.0.up.bias", "layers.1.up.bias", "extra.weight", "head.weight",
        }  # fmt: skip

    def test_holes_in_a_layer_range_are_exact(self, tmp_path):
        state = random_state(Net(layers=12))
        for layer in (0, 1, 2, 7):
            del state[f"layers.{layer}.down.weight"]
        error = self.refuse(tmp_path, state, make=lambda: Net(layers=12))
        assert "layers.{0-2,7}.down.weight" in str(error)

    def test_an_integer_for_a_float_is_refused(self, tmp_path):
        state = random_state(Net())
        state["head.weight"] = torch.zeros(12, 8, dtype=torch.int8)
        assert "packed or quantised" in str(self.refuse(tmp_path, state))

    def test_a_wrapper_is_found_and_its_cure_works(self, tmp_path):
        state = random_state(Net())
        error = self.refuse(tmp_path, {f"_orig_mod.module.{key}": value for key, value in state.items()})
        (finding,) = error.report.findings
        assert finding.code == "E-WRAP"
        assert "_orig_mod.module." in finding.cause
        shell = build_shell(Net)
        fill(shell, open_checkpoint(tmp_path), key_map=finding.key_map)
        assert_same_state(shell.model, torch_filled(Net, state))

    def test_a_resized_vocabulary_is_named(self, tmp_path):
        state = random_state(Net(vocab=16))
        error = self.refuse(tmp_path, state)
        assert "the checkpoint's vocabulary has 16 entries, the model's 12" in str(error)

    def test_a_quantised_checkpoint_is_declined_by_name(self, tmp_path):
        state = random_state(Net())
        weight = state.pop("head.weight")
        state |= {
            "head.qweight": weight.to(torch.int32),
            "head.qzeros": weight.to(torch.int32),
            "head.scales": weight,
        }
        with pytest.raises(UnsupportedError, match="GPTQ"):
            fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)))

    def test_a_checkpoint_of_something_else_never_loads_nothing(self, tmp_path):
        error = self.refuse(tmp_path, {"other": torch.zeros(3)}, strict=False)
        assert "1 unexpected" in str(error)


class TestLeniency:
    def test_a_missing_parameter_that_is_allowed_gets_the_class_value(self, tmp_path):
        class Scaled(Net):
            def __init__(self) -> None:
                super().__init__()
                self.gain = nn.Parameter(torch.full((8,), 3.0))
                self.more = nn.Linear(4, 4)
                nn.init.constant_(self.more.bias, 7.0)

        shell = build_shell(Scaled)
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
        report = fill(shell, checkpoint, allow_missing=["gain", "more.*"])
        assert torch.equal(shell.model.gain, torch.full((8,), 3.0))
        assert torch.equal(shell.model.more.bias, torch.full((4,), 7.0))
        assert 0 < float(shell.model.more.weight.detach().abs().max()) <= 0.5
        assert meta_names(shell.model) == []
        assert any("gain: not in the checkpoint, initialised by the class" in note for note in report.notes)
        assert {f.key for f in report.allowed["allow_missing"]} == {"gain", "more.weight", "more.bias"}

    def test_a_skipped_parameter_that_is_initialised_later_gets_its_value(self, tmp_path):
        """Its place in the order of creation has to be the same when the constructor runs again."""

        class Head(Net):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.utils.skip_init(nn.Linear, 4, 4)
                self.second = nn.utils.skip_init(nn.Linear, 4, 4)
                self.third = nn.Parameter(torch.full((2,), 3.0))
                nn.init.constant_(self.second.weight, 2.0)
                nn.init.zeros_(self.second.bias)

        state = random_state(Net()) | {"first.weight": torch.ones(4, 4), "first.bias": torch.ones(4)}
        shell = build_shell(Head)
        fill(shell, open_checkpoint(write_checkpoint(tmp_path, state)), allow_missing=["second.*", "third"])
        assert torch.equal(shell.model.second.weight, torch.full((4, 4), 2.0))
        assert torch.equal(shell.model.second.bias, torch.zeros(4))
        assert torch.equal(shell.model.third, torch.full((2,), 3.0))
        assert torch.equal(shell.model.first.weight, torch.ones(4, 4))

    def test_a_missing_parameter_that_the_class_leaves_uninitialised_is_an_error(self, tmp_path):
        class Uninitialised(Net):
            def __init__(self) -> None:
                super().__init__()
                self.more = nn.utils.skip_init(nn.Linear, 4, 4)

        shell = build_shell(Uninitialised)
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
        with pytest.raises(MismatchError, match="leaves it uninitialised"):
            fill(shell, checkpoint, allow_missing=["more.*"])
        assert all(p.is_meta for p in shell.model.parameters()), "nothing half done"

    def test_unexpected_that_is_allowed_is_left_out(self, tmp_path):
        state = random_state(Net())
        shell = build_shell(Net)
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, {**state, "extra": torch.zeros(2)}))
        report = fill(shell, checkpoint, allow_unexpected=["extra"])
        assert_same_state(shell.model, torch_filled(Net, state))
        assert [f.key for f in report.allowed["allow_unexpected"]] == ["extra"]

    @pytest.mark.parametrize("argument", ["allow_missing", "allow_unexpected"])
    @pytest.mark.parametrize(("pattern", "says"), [("nope.*", "matches no key"), ("*", "matches every key")])
    def test_a_pattern_that_matches_nothing_or_everything_is_an_error(
        self, tmp_path, argument, pattern, says
    ):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
        with pytest.raises(UsageError, match=says):
            fill(build_shell(Net), checkpoint, **{argument: [pattern]})

    def test_a_bare_text_is_no_list_of_patterns(self, tmp_path):
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
        with pytest.raises(UsageError, match="takes a list"):
            fill(build_shell(Net), checkpoint, allow_missing="head.weight")

    def test_strict_false_reports_what_it_let_pass(self, tmp_path):
        state = random_state(Net())
        del state["head.weight"]
        report = fill(
            build_shell(Net),
            open_checkpoint(write_checkpoint(tmp_path, {**state, "x": torch.ones(1)})),
            strict=False,
        )
        assert {f.key for f in report.allowed["strict=False"]} == {"head.weight", "x"}

    def test_strict_false_does_not_let_shapes_pass(self, tmp_path):
        state = {**random_state(Net()), "head.weight": torch.zeros(1, 1)}
        with pytest.raises(MismatchError, match="1 misshapen"):
            fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)), strict=False)


class TestCheck:
    def test_check_reads_no_weight_and_changes_nothing(self, tmp_path):
        folder = write_checkpoint(tmp_path, random_state(Net()))
        checkpoint = open_checkpoint(folder)
        for path in folder.glob("*.safetensors"):
            header = path.read_bytes()
            size = 8 + int.from_bytes(header[:8], "little")
            path.write_bytes(header[:size])  # no weights are left to read
        shell = build_shell(Net)
        assert check(shell, checkpoint).ok
        assert all(p.is_meta for p in shell.model.parameters())

    def test_check_and_fill_agree(self, tmp_path):
        state = random_state(Net())
        del state["stats.running_mean"]
        checkpoint = open_checkpoint(write_checkpoint(tmp_path, {**state, "y": torch.ones(1)}))
        shell = build_shell(Net)
        report = check(shell, checkpoint)
        with pytest.raises(MismatchError) as caught:
            fill(shell, checkpoint)
        assert set(report.faults) == set(caught.value.report.faults)

    def test_the_report_is_json(self, tmp_path):
        import json

        report = fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, random_state(Net()))))
        document = json.loads(json.dumps(report.to_dict()))
        assert document["loaded"] == report.loaded
        assert document["memory"]["after"]["anon"] > 0


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
    """The third shard is cut after the plan was made: two shards are loaded by then."""
    folder = write_checkpoint(tmp_path, random_state(Net()))
    checkpoint = open_checkpoint(folder)
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:-40])
    model = Net()
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    from shardload import CorruptError

    with pytest.raises(CorruptError, match="ends before"):
        fill(model, checkpoint)
    assert [name for name, _ in model.named_parameters()] == list(before)
    for name, parameter in model.named_parameters():
        assert id(parameter) == before[name][0]
        assert torch.equal(parameter, before[name][1])


def test_what_a_post_hook_forgives_gets_the_value_of_the_class(tmp_path):
    class Forgiving(Net):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.full((8,), 3.0))
            self.register_load_state_dict_post_hook(lambda _module, keys: keys.missing_keys.remove("gain"))

    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(Net())))
    shell = build_shell(Forgiving)
    assert check(shell, checkpoint).ok
    report = fill(shell, checkpoint)
    assert torch.equal(shell.model.gain, torch.full((8,), 3.0))
    assert [f.key for f in report.allowed["a load_state_dict hook of the class"]] == ["gain"]
    model = Forgiving()
    with torch.no_grad():
        model.gain.fill_(5.0)
    fill(model, checkpoint)
    assert torch.equal(model.gain, torch.full((8,), 5.0))
