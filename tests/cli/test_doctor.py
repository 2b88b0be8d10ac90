"""`shardload doctor`: exit codes, the map that it writes, JSON, and never more than forty lines."""

from __future__ import annotations

import json
import shlex

import pytest
import torch

from shardload import fill, open_checkpoint
from shardload.keymap import KeyMap
from shardload.model.shell import build_shell
from tests.remote_code.repos import tiny
from tests.tiny import Net, assert_same_state, random_state, torch_filled, write_checkpoint

CODE = """
from tests.tiny import Net

def make(config=None):
    return Net()
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module of the working folder that makes a Net."""
    (tmp_path / "doctor_case.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    return ["--model", "doctor_case:make"]


def renamed(state):
    """Every kind of change at once: wrapper, names, a transpose of the blocks' matrices."""
    result = {}
    for key, value in state.items():
        name = key.replace("layers.", "encoder.h.").replace(".up.", ".fc1.").replace(".down.", ".fc2.")
        turned = value.dim() == 2 and ".fc" in name
        result[f"_orig_mod.{name}"] = value.t().contiguous() if turned else value
    return result


def test_a_clean_checkpoint_is_exit_code_0(tmp_path, call_cli, model):
    folder = write_checkpoint(tmp_path / "ok", random_state(Net()))
    done = call_cli("doctor", folder, *model)
    assert done.returncode == 0
    assert "fits Net (22 keys)" in done.stdout


def test_a_curable_one_is_exit_code_3_and_the_map_cures_it(tmp_path, call_cli, model):
    state = random_state(Net())
    folder = write_checkpoint(tmp_path / "old", renamed(state))
    done = call_cli("doctor", folder, *model, "--write-map", tmp_path / "map.json")
    assert done.returncode == 3
    assert "wrote " in done.stderr
    assert [line.split()[0] for line in done.stdout.split("\n") if line.startswith("E-")] == [
        "E-WRAP",
        "E-RENAME",
        "E-TRANSPOSE",
    ]
    assert "tried on the headers: it cures everything" in done.stdout
    shell = build_shell(Net)
    fill(shell, open_checkpoint(folder), key_map=KeyMap.read(tmp_path / "map.json"))
    assert_same_state(shell.model, torch_filled(Net, state))


def test_the_json_says_the_same_with_a_version(tmp_path, call_cli, model):
    folder = write_checkpoint(tmp_path / "old", renamed(random_state(Net())))
    done = call_cli("doctor", folder, *model, "--json")
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert document["exit_code"] == done.returncode == 3
    assert document["cured"] is True
    assert {finding["code"] for finding in document["findings"]} == {"E-WRAP", "E-RENAME", "E-TRANSPOSE"}
    for finding in document["findings"]:
        assert {"cause", "evidence", "explained", "nbytes", "confidence", "margin", "cure", "key_map"} <= set(
            finding
        )
    assert document["key_map"][0] == {"op": "rename", "source": "_orig_mod.{...}", "target": "{...}"}


def test_what_no_map_cures_is_exit_code_1(tmp_path, call_cli, model):
    folder = write_checkpoint(tmp_path / "big", random_state(Net(vocab=16)), config={"vocab_size": 12})
    done = call_cli("doctor", folder, *model, "--write-map", tmp_path / "map.json")
    assert done.returncode == 1
    assert "set vocab_size to 16" in done.stdout
    assert not (tmp_path / "map.json").exists()
    assert "no map was written" in done.stderr


def test_corrupt_files_are_exit_code_4(tmp_path, call_cli, model):
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    (tmp_path / "model.safetensors").write_bytes(pointer)
    done = call_cli("doctor", tmp_path / "model.safetensors", *model)
    assert done.returncode == 4
    assert done.stdout.startswith(str(tmp_path)[:4])
    assert "E-LFS" in done.stdout
    assert "git lfs pull" in done.stdout


def test_an_index_that_lies_is_exit_code_4(tmp_path, call_cli, model):
    folder = write_checkpoint(tmp_path / "ok", random_state(Net()))
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["head.bias"] = document["weight_map"].pop("head.weight")
    index.write_text(json.dumps(document))
    done = call_cli("doctor", folder, *model)
    assert done.returncode == 4
    assert "E-INDEX" in done.stdout
    assert "in the index, in no shard: head.bias" in done.stdout
    assert "in a shard, not in the index: head.weight" in done.stdout


def test_nothing_there_is_exit_code_2(tmp_path, call_cli):
    assert call_cli("doctor", tmp_path / "nowhere").returncode == 2


def test_another_checkpoint_stands_for_a_model(tmp_path, call_cli):
    state = random_state(Net())
    old = write_checkpoint(tmp_path / "old", renamed(state))
    new = write_checkpoint(tmp_path / "new", state)
    done = call_cli("doctor", old, "--like", new)
    assert done.returncode == 3
    assert str(new) in done.stdout.split("\n")[0]
    assert "note:" not in done.stderr


def test_what_a_map_does_not_cure_of_another_checkpoint_is_named(tmp_path, call_cli):
    state = random_state(Net())
    old = write_checkpoint(tmp_path / "old", {**renamed(state), "loss.0.center": torch.ones(3)})
    new = write_checkpoint(tmp_path / "new", {**state, "own.scale": torch.ones(1)})
    done = call_cli("doctor", old, "--like", new)
    assert done.returncode == 1
    assert "note: keys that are left over with the map (1): loss.0.center\n" in done.stderr
    assert "note: keys that are missing with the map (1): own.scale\n" in done.stderr


def test_without_a_model_headers_are_judged_alone(tmp_path, call_cli):
    folder = write_checkpoint(tmp_path / "ok", random_state(Net()))
    done = call_cli("doctor", folder)
    assert done.returncode == 0
    assert "headers and index are sound" in done.stdout
    assert "no model" in done.stderr


def test_a_class_that_nobody_has_is_asked_for_in_the_words_of_the_command(tmp_path, call_cli):
    folder = write_checkpoint(tmp_path / "ok", random_state(Net()), config={"architectures": ["NoSuchModel"]})
    done = call_cli("doctor", folder, "--write-map", tmp_path / "map.json")
    assert done.returncode == 0
    assert "pass --model MODULE:CLASS (a class or a function that takes the config)" in done.stderr
    assert "model_class" not in done.stderr
    assert "no map was written: nothing was compared" in done.stderr


def test_a_class_that_no_auto_map_names_has_the_cure_that_a_load_prints(tmp_path, call_cli):
    tiny(tmp_path)
    write_checkpoint(tmp_path, {"linear.weight": torch.ones(4, 4), "linear.bias": torch.ones(4)})
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["TinyModel"], "hidden_size": 4}))
    cure = call_cli("load", tmp_path, "--trust-remote-code").stderr.split("cure:  ")[1].strip()
    noted = call_cli("doctor", tmp_path).stderr
    entry = cure.split("add ")[1].split(" to config.json")[0]
    assert f"add {entry} to config.json, and pass --trust-remote-code" in noted
    config = json.loads((tmp_path / "config.json").read_text()) | json.loads("{" + entry + "}")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call_cli("doctor", tmp_path, "--trust-remote-code").returncode == 0


def test_never_more_than_forty_lines(tmp_path, call_cli, model):
    generator = torch.Generator().manual_seed(1)
    strange = {
        f"part_{number}.{name}.x{number * 7}y": torch.rand(number % 5 + 1, 3, generator=generator)
        for number in range(80)
        for name in ("a", "b", "c")
    }
    folder = write_checkpoint(tmp_path / "odd", {**renamed(random_state(Net(vocab=16))), **strange})
    done = call_cli("doctor", folder, *model)
    assert done.returncode == 1
    assert len(done.stdout.strip().split("\n")) <= 40


def test_an_adapter_is_judged_on_its_base(tmp_path, call_cli, model):
    folder = write_checkpoint(tmp_path / "base", random_state(Net()))
    lora = {
        f"base_model.model.layers.{layer}.{name}.lora_{part}.weight": torch.zeros(shape)
        for layer in range(3)
        for name in ("up", "sideways")
        for part, shape in (("A", (2, 8)), ("B", (16, 2)))
    }
    adapter = write_checkpoint(tmp_path / "lora", {}, shards=0)
    from tests.tiny import save_safetensors

    save_safetensors(lora, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up", "sideways"]}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    done = call_cli("doctor", folder, *model, "--adapter", adapter)
    assert done.returncode == 1
    assert "E-LORA-UNEXPECTED" in done.stdout
    assert "sideways" in done.stdout
    assert "E-LORA" in done.stdout


def test_help_has_an_example(call_cli):
    done = call_cli("doctor", "--help")
    assert done.returncode == 0
    assert "shardload doctor ./old-checkpoint --like ./new-checkpoint" in done.stdout


def test_an_error_of_the_model_option_names_it(call_cli):
    done = call_cli("doctor", "x", "--model", "Identity")
    assert done.returncode == 2
    assert "where: --model\n" in done.stderr


def test_the_cure_of_a_load_says_what_to_type_also_for_names_with_a_sign(tmp_path, call_cli, model):
    stored = {f"a=b.{key}": value for key, value in random_state(Net()).items()}
    folder = write_checkpoint(tmp_path / "old", stored)
    done = call_cli("load", folder, "--model-class", model[1])
    command = f"shardload doctor {folder} --model {model[1]} --write-map map.json"
    assert f"1 rule: look at it, and load with --map map.json, which `{command}` writes" in done.stderr
    assert "error.report" not in done.stderr
    call_cli(*shlex.split(command)[1:])
    assert call_cli("load", folder, "--model-class", model[1], "--map", "map.json").returncode == 0


def test_the_rules_of_an_own_map_come_first_in_the_one_that_is_found(tmp_path, call_cli, model):
    state = random_state(Net())
    up = state.pop("layers.0.up.weight")
    stored = {f"module.{key}": value for key, value in state.items()}
    stored |= {"upper": up[:4].clone(), "lower": up[4:].clone()}
    folder = write_checkpoint(tmp_path / "old", stored)
    own = tmp_path / "own.json"
    own.write_text(KeyMap().cat(["upper", "lower"], "module.layers.0.up.weight").to_json())
    done = call_cli("load", folder, "--model-class", model[1], "--map", own)
    command = f"shardload doctor {folder} --model {model[1]} --map {own} --write-map map.json"
    assert f"look at them, and load with --map map.json, which `{command}` writes" in done.stderr
    assert call_cli(*shlex.split(command)[1:]).returncode == 3
    assert call_cli("load", folder, "--model-class", model[1], "--map", "map.json").returncode == 0


def test_an_own_map_is_not_for_another_checkpoint_or_an_adapter(tmp_path, call_cli):
    folder = write_checkpoint(tmp_path / "old", random_state(Net()))
    done = call_cli("doctor", folder, "--like", folder, "--key-map", "a=b")
    assert done.returncode == 2
    assert "leave out --like OTHER and --adapter WHERE" in done.stderr


def test_the_line_that_writes_the_map_can_be_typed(tmp_path, call_cli, model):
    stored = {**renamed(random_state(Net())), "loss.center": torch.ones(3)}
    folder = write_checkpoint(tmp_path / "given one", stored)
    done = call_cli("doctor", folder, *model)
    command = f"shardload doctor {shlex.quote(str(folder))} --model {model[1]} --write-map map.json"
    assert f"`{command}`" in done.stdout
    assert call_cli(*shlex.split(command)[1:]).returncode in {1, 3}
    done = call_cli("doctor", folder, *model, "--write-map", "mine.json")
    assert (tmp_path / "map.json").read_text() == (tmp_path / "mine.json").read_text()
    assert "load with --map mine.json and --allow-unexpected loss.center" in done.stdout
    assert "which `shardload doctor" not in done.stdout  # it is written
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("to load it: shardload ")]
    assert "--map mine.json --allow-unexpected loss.center" in line
    assert call_cli(*shlex.split(line.removeprefix("to load it: "))[1:]).returncode == 0


def test_no_load_is_printed_where_keywords_are_not_enough_beside_the_map(tmp_path, call_cli, model):
    state = {f"module.{key}": value for key, value in random_state(Net(vocab=16)).items()}
    folder = write_checkpoint(tmp_path / "big", state, config={"vocab_size": 12})
    done = call_cli("doctor", folder, *model, "--write-map", "map.json")
    assert "wrote map.json" in done.stderr
    assert "to load it" not in done.stderr
    assert "set vocab_size to 16 in config.json" in done.stdout
