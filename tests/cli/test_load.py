import json
import sys

import pytest

from shardload import KeyMap
from shardload.cli.load import find_class
from shardload.errors import UsageError


def test_the_report_is_printed(small_repo, call_cli):
    done = call_cli("load", small_repo, "--trust-remote-code", "--adapter", small_repo / "adapter")
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "ChatGLMForConditionalGeneration",
        "model-00007-of-00007.safetensors",
        "46 float16",
        "rank 8",
    ):
        assert expected in done.stdout
    assert "\x1b" not in done.stdout


def test_an_adapter_is_merged_while_loading(small_repo, call_cli):
    adapter = ["--adapter", small_repo / "adapter"]
    done = call_cli("load", small_repo, "--trust-remote-code", *adapter, "--merge")
    assert (done.returncode, done.stderr) == (0, "")
    assert "merged, at least" in done.stdout
    alone = call_cli("load", small_repo, "--trust-remote-code", "--merge")
    assert alone.returncode == 2
    assert "pass --adapter" in alone.stderr


def test_json_is_the_report(small_repo, call_cli):
    done = call_cli("load", small_repo, "--trust-remote-code", "--dtype", "bfloat16", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["loaded"], report["nbytes"], report["ok"]) == (46, 43_538_464, True)
    assert [row["tensors"] for row in report["shards"]] == [1, 13, 8, 11, 9, 3, 1]


def test_a_device_map_is_shown_row_by_row(small_repo, call_cli):
    over = ["--device-map", "auto", "--max-memory", "cpu=20MB"]
    done = call_cli("load", small_repo, "--trust-remote-code", *over)
    assert (done.returncode, done.stderr) == (0, "")
    (row,) = [line for line in done.stdout.splitlines() if line.startswith("  cpu ")]
    assert row.endswith("20.0 MB")
    assert "are mapped: views of their files" in done.stdout
    done = call_cli("load", small_repo, "--trust-remote-code", "--device-map", "transformr=cpu")
    assert done.returncode == 2
    assert "'transformr' is no part of the model; the nearest is 'transformer'" in done.stderr


def test_code_runs_only_when_it_is_trusted(small_repo, call_cli):
    done = call_cli("load", small_repo)
    assert (done.returncode, done.stdout) == (4, "")
    assert "--trust-remote-code" in done.stderr
    assert "trust_remote_code=True" not in done.stderr


@pytest.fixture
def tiny_module(tmp_path, monkeypatch):
    (tmp_path / "tiny_own_model.py").write_text(
        "from torch import nn\n"
        "class Tiny(nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(3))\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("tiny_module")
def test_a_map_file_is_applied(write_headers, call_cli, tmp_path):
    path = write_headers({"module.fused": (6, 2), "step": (1,)})
    targets = [f"layers.{n}.weight" for n in range(3)]
    key_map = KeyMap().rename("module.{...}", "{...}").split("fused", targets).drop("step")
    (tmp_path / "map.json").write_text(key_map.to_json())
    own = ["--model-class", "tiny_own_model:Tiny", "--map", tmp_path / "map.json"]
    done = call_cli("load", path, *own, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["loaded"] == 3
    done = call_cli("load", path, *own, "--key-map", "a=b")
    assert (done.returncode, done.stdout) == (2, "")
    assert "can't be combined" in done.stderr
    (tmp_path / "map.json").write_text("{}")
    done = call_cli("load", path, *own)
    assert (done.returncode, done.stdout) == (2, "")
    assert "map.json" in done.stderr


@pytest.mark.usefixtures("tiny_module")
def test_ones_own_class_and_a_mismatch(write_headers, call_cli):
    shapes = {"layers.0.weight": (2, 2), "layers.1.weight": (2, 2), "layers.2.weight": (2, 3), "extra": (1,)}
    path = write_headers(shapes)
    own = ["--model-class", "tiny_own_model:Tiny"]
    done = call_cli("load", path, *own)
    assert (done.returncode, done.stdout) == (1, "")
    assert "1 misshapen" in done.stderr
    assert "layers.2.weight" in done.stderr
    # To leave out `extra` would end in a second refusal: nothing is known for the other shape.
    assert "no cure is known" in done.stderr
    assert "--allow-unexpected" not in done.stderr
    document = json.loads(call_cli("load", path, *own, "--json").stdout)
    assert (document["error"]["kind"], document["error"]["exit_code"]) == ("MismatchError", 1)
    assert {fault["key"] for fault in document["report"]["faults"]} == {"layers.2.weight", "extra"}


@pytest.mark.usefixtures("tiny_module")
def test_named_keys_may_differ(write_headers, call_cli):
    path = write_headers({"layers.0.weight": (2, 2), "layers.1.weight": (2, 2), "extra": (1,)})
    allowed = ["--allow-missing", "layers.2.*", "--allow-unexpected", "extra"]
    done = call_cli("load", path, "--model-class", "tiny_own_model:Tiny", *allowed)
    assert done.returncode == 0, done.stderr
    assert "allowed" in done.stdout
    assert "layers.2.weight" in done.stdout


def test_find_class_says_what_is_wrong():
    assert find_class("collections:OrderedDict.fromkeys") is not None
    for reference, message in (
        ("collections", "package.module:Class"),
        ("collections:Nope", "Nope"),
        ("no_such_module_here:X", "no_such_module_here"),
        ("sys:maxsize", "can't be called"),
    ):
        with pytest.raises(UsageError) as caught:
            find_class(reference)
        assert message in str(caught.value)
    assert sys.path.count("") <= 1


BROKEN = {
    "syntax": ("def (", "can't be imported: SyntaxError", 2),
    "importing": ("raise RuntimeError('at import')", "can't be imported: RuntimeError: at import", 2),
    "leaving": ("import sys; sys.exit(0)", "can't be imported: SystemExit", 2),
    "constructing": ("def V(config): raise ValueError('in the class')", "broken_own_model.py:1", 1),
    "ending": ("def V(config): import sys; sys.exit(0)", "SystemExit: 0", 1),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_class_of_ones_own_that_fails_is_no_defect_of_shardload(
    write_headers, call_cli, tmp_path, monkeypatch, case
):
    source, message, code = BROKEN[case]
    (tmp_path / "broken_own_model.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_own_model", raising=False)
    arguments = ("load", write_headers({"weight": (2, 2)}), "--model-class", "broken_own_model:V")
    done = call_cli(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    monkeypatch.delitem(sys.modules, "broken_own_model", raising=False)
    error = json.loads(call_cli(*arguments, "--json").stdout)["error"]
    assert error["exit_code"] == code


def test_a_repo_whose_code_ends_the_program_does_not_pass_for_a_success(tmp_path, call_cli, write_headers):
    write_headers({"a": (1,)})
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.M"}}')
    (tmp_path / "modeling_x.py").write_text("import sys\ndef M(config):\n    sys.exit(0)\n")
    done = call_cli("load", tmp_path, "--trust-remote-code")
    assert (done.returncode, done.stdout) == (1, "")
    assert "SystemExit" in done.stderr
    assert "modeling_x.py:3" in done.stderr
    assert "--model-class" in done.stderr


@pytest.mark.usefixtures("tiny_module")
def test_a_wrapped_checkpoint_is_cured_by_what_the_message_says(write_headers, call_cli):
    shapes = {f"module.layers.{number}.weight": (2, 2) for number in range(3)}
    path = write_headers({**shapes, "step": (1,)})
    own = ["--model-class", "tiny_own_model:Tiny"]
    done = call_cli("load", path, *own)
    assert done.returncode == 1
    assert "--key-map 'module.{...}={...}'" in done.stderr
    assert "key_map" not in done.stderr
    done = call_cli("load", path, *own, "--key-map", "module.{...}={...}", "--key-map", "step=")
    assert done.returncode == 0, done.stderr
    assert "3 float16" in done.stdout


@pytest.mark.usefixtures("tiny_module")
@pytest.mark.parametrize("entry", ["module", "=new", "a.{}=b"])
def test_a_key_map_that_is_none(write_headers, call_cli, entry):
    path = write_headers({"layers.0.weight": (2, 2)})
    done = call_cli("load", path, "--model-class", "tiny_own_model:Tiny", "--key-map", entry)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
