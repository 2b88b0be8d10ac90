import json
import subprocess
import sys

import pytest

from shardload.cli.inspect import config_summary
from shardload.cli.tree import build_tree, group_tensors, walk
from shardload.tensor_ref import Span, TensorRef
from tests.calls import calls_of


def ref(name, shape=(2, 3), dtype="F16"):
    return TensorRef(name, dtype, shape, "a.safetensors", Span(0, 12))


def tree_of(*refs):
    tensors = {ref.name: ref for ref in refs}
    return [(depth, name, node.count) for depth, name, node in walk(build_tree(group_tensors(tensors)))]


def test_layers_are_collapsed_with_their_exact_numbers():
    names = [f"h.{number}.{part}" for number in (0, 1, 2, 5) for part in ("norm", "mlp.up", "mlp.down")]
    assert tree_of(*map(ref, names), ref("head")) == [
        (0, "h.{0-2,5}", 12),
        (1, "norm", 4),
        (1, "mlp", 8),
        (2, "up", 4),
        (2, "down", 4),
        (0, "head", 1),
    ]


def test_a_layer_of_another_shape_has_a_line_of_its_own():
    assert tree_of(ref("h.0.w"), ref("h.1.w"), ref("h.2.w", (9,))) == [
        (0, "h", 3),
        (1, "{0-1}.w", 2),
        (1, "2.w", 1),
    ]


def test_a_name_may_be_both_tensor_and_module():
    assert tree_of(ref("a"), ref("a.b")) == [(0, "a", 2), (1, "b", 1)]


def test_a_very_deep_name_is_no_recursion():
    name = ".".join(["x", "y"] * 5000)
    assert tree_of(ref(name), ref(name[:-2] + ".z"))[0][2] == 2


def test_the_tree_of_a_repo(small_repo, run_cli):
    done = run_cli("inspect", small_repo)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["layers.{0-5}", "42", "26.8", "MB"] in lines
    assert ["weight", "6", "4.7", "MB", "[768,", "512]"] in lines
    assert ["model-00007-of-00007.safetensors", "1", "8.4", "MB"] in lines
    assert "modeling_chatglm.ChatGLMForConditionalGeneration" in done.stdout
    assert "43.5 MB in 46 tensors" in done.stdout
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("where", [".", "pytorch_model.bin.index.json"])
def test_json_has_the_totals_of_the_files(small_repo, run_cli, where):
    done = run_cli("inspect", small_repo / where, "--json", "--tensors")
    document = json.loads(done.stdout)
    assert document["totals"] == {"tensors": 46, "elements": 21_769_232, "nbytes": 43_538_464}
    assert document["dtypes"] == {"float16": {"tensors": 46, "nbytes": 43_538_464}}
    assert [shard["tensors"] for shard in document["shards"]] == [1, 13, 8, 11, 9, 3, 1]
    assert sum(group["count"] for group in document["groups"]) == 46
    assert len(document["tensors"]) == 46
    assert document["config"]["layers"] == 6


def test_the_list_has_every_tensor_once(small_repo, run_cli):
    done = run_cli("inspect", small_repo, "--tensors")
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("  transformer.")]
    assert len({row[0] for row in rows}) == len(rows) == 46
    assert rows[0][-1] == "model-00001-of-00007.safetensors"


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_it_never_imports_torch(small_repo, name):
    code = (
        "import sys\n"
        "from shardload.cli import run\n"
        "code = run(['inspect', sys.argv[1]])\n"
        "heavy = {'torch', 'huggingface_hub', 'transformers', 'numpy', 'rich'} & {*sys.modules}\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, str(small_repo / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_ninety_thousand_tensors_take_calls_that_grow_with_their_number(write_headers, call_cli):
    parts = ("q.weight", "k.weight", "v.weight", "o.weight")
    shapes = {
        f"model.layers.{layer}.experts.{expert}.{part}": (2, 2)
        for layer in range(88)
        for expert in range(256)
        for part in parts
    }
    path = write_headers(shapes)
    shown = []
    calls = calls_of(lambda: shown.append(call_cli("inspect", path)))
    assert calls < 100 * len(shapes)
    (done,) = shown
    assert "model.layers.{0-87}.experts.{0-255}" in done.stdout
    assert "90,112 tensors" in done.stdout


def test_hostile_names_are_escaped(write_headers, run_cli):
    path = write_headers({"a\x1b[2J\u202eb.weight": (2,)})
    for arguments in ([], ["--tensors"]):
        done = run_cli("inspect", path, *arguments)
        assert "a\\x1b[2J\\u202eb" in done.stdout
        assert "\x1b" not in done.stdout
    assert run_cli("inspect", path, "--json", "--tensors").stdout.isascii()


def test_damage_is_told_and_coded(tmp_path, write_headers, run_cli):
    path = write_headers({"w": (64,)})
    path.write_bytes(path.read_bytes()[:-1])
    done = run_cli("inspect", path)
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("error: ")
    assert "model.safetensors" in done.stderr
    error = json.loads(run_cli("inspect", path, "--json").stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("CorruptError", 4)
    (tmp_path / "empty").mkdir()
    assert run_cli("inspect", tmp_path / "empty").returncode == 2


def test_config_summary_copes_with_odd_configs():
    assert config_summary(None) == {}
    odd = {
        "auto_map": ["x"],
        "architectures": "A",
        "n_layer": 3,
        "quantization_config": {"quant_method": "gptq"},
    }
    assert config_summary(odd) == {"layers": 3, "quantisation": "gptq"}
