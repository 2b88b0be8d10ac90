"""A refused load names every fault at once and touches nothing; unsupported modules are declined by name."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import shardload
from shardload import MismatchError, OnDevice, UnsupportedError, build_shell, check, fill, open_checkpoint
from shardload.loading.judge import Comparison, Verdict
from tests.kinds import quietly
from tests.tiny import Net, assert_same_state, random_state, torch_filled, write_checkpoint


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


@pytest.mark.parametrize("leniency", [{"strict": False}, {"allow_unexpected": ["*_scale_inv"]}])
def test_leniency_does_not_take_a_quantised_checkpoint_for_another(tmp_path, leniency):
    state = {
        "weight": torch.ones(4, 4).to(torch.float8_e4m3fn), "weight_scale_inv": torch.ones(1, 1), "bias": torch.ones(4),
    }  # fmt: skip
    torch.save(state, tmp_path / "pytorch_model.bin")
    shell = build_shell(lambda: nn.Linear(4, 4))
    with pytest.raises(shardload.UnsupportedError, match="fp8") as caught:
        fill(shell, open_checkpoint(tmp_path), **leniency)
    # What `convert` writes has no parts of packed weights that a pattern could match.
    assert ("without the patterns" in caught.value.cure) == ("allow_unexpected" in leniency)
    fill(shell, open_checkpoint(tmp_path), **leniency, **caught.value.cure.keywords)
    assert torch.equal(shell.model.weight, torch.ones(4, 4, dtype=torch.bfloat16))


def test_an_overridden_load_state_dict_is_declined_by_name(tmp_path):
    class Own(Net):
        def load_state_dict(self, state_dict, *args, **kwargs):
            return super().load_state_dict(
                {k.removeprefix("x."): v for k, v in state_dict.items()}, *args, **kwargs
            )

    with pytest.raises(shardload.UnsupportedError, match="Own overrides load_state_dict"):
        fill(build_shell(Own), open_checkpoint(write_checkpoint(tmp_path, random_state(Net()))))


def test_a_scripted_module_is_declined_by_name(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), quietly(lambda: torch.jit.script(nn.Linear(2, 2))))
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, random_state(model)))
    with pytest.raises(UnsupportedError, match="scripted module") as caught:
        fill(model, checkpoint)
    assert caught.value.where == "1"


class TestRefusals:
    """A refused load names every fault at once and leaves the model as it was."""

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


class TestCheck:
    def test_check_reads_no_weight_and_changes_nothing(self, tmp_path):
        folder = write_checkpoint(tmp_path, random_state(Net()))
        checkpoint = open_checkpoint(folder)
        for path in folder.glob("*.safetensors"):
            header = path.read_bytes()
            size = 8 + int.from_bytes(header[:8], "little")
            path.write_bytes(header[:size])  # the file has no weights left
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

        report = fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, random_state(Net()))))
        document = json.loads(json.dumps(report.to_dict()))
        assert document["loaded"] == report.loaded
        assert document["memory"]["after"]["anon"] > 0


def test_a_comparison_touches_neither_weights_nor_the_model(tmp_path):
    folder = write_checkpoint(tmp_path, {"weight": torch.ones(2, 2), "extra": torch.ones(1)}, shards=1)
    checkpoint = open_checkpoint(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    shell = build_shell(lambda: nn.Linear(2, 2))
    found = Comparison(shell, checkpoint, None, OnDevice())
    assert sorted((fault.kind, fault.key) for fault in found.report.faults) == [
        ("missing", "bias"), ("unexpected", "extra")
    ]  # fmt: skip
    assert found.plan.direct.keys() == {"weight"}
    assert all(parameter.is_meta for parameter in shell.model.parameters())
    with pytest.raises(MismatchError):
        found.refuse_if_faulty(Verdict(list(found.report.faults)))
    allowed = Verdict([], {"asked": list(found.report.faults)})
    assert allowed.missing == ["bias"]
    found.refuse_if_faulty(allowed)
