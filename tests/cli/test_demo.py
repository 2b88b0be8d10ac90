import json

import pytest


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_every_step_is_shown(small_repo, call_cli, kind):
    done = call_cli("demo", "--folder", small_repo, "--format", kind)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split() for line in done.stdout.splitlines()]
    stem = "pytorch_model" if kind == "bin" else "model"
    shards = [row for row in rows if row and row[0].startswith(f"{stem}-0000")]
    assert [row[1] for row in shards] == ["1", "13", "8", "11", "9", "3", "1"]
    for expected in (
        "configuration_chatglm.ChatGLMConfig",
        "modeling_chatglm.ChatGLMForConditionalGeneration",
        "shardload's own stand-in for transformers",
        "layers.{0-5}.self_attention.query_key_value",
        "[1, 16, 8192], all finite",
        "after the weights",
        "shardload load ./chatglm2-6b",
    ):
        assert expected in done.stdout
    assert "\x1b" not in done.stdout


def test_the_repo_is_written_into_the_cache_and_said_on_stderr(tmp_path, run_cli):
    done = run_cli("demo")
    assert done.returncode == 0
    assert done.stderr.startswith("writing 0.09 GB into ")
    assert (tmp_path / "cache" / "demo-chatglm2-small" / "config.json").exists()


def test_json_is_one_document_with_the_figures(small_repo, call_cli):
    done = call_cli("demo", "--folder", small_repo, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["report"]["loaded"] == 46
    assert document["report"]["adapters"][0]["modules"] == 6
    assert document["forward"]["shape"] == [1, 16, 8192]
    assert document["forward_with_adapter"]["largest_change"] > 0
    memory = document["memory"]
    gained = memory["after the weights"]["anon"] - memory["before the weights"]["anon"]
    assert gained < 8e6  # 43.5 MB of weights are mapped, not copied


def test_a_folder_of_something_else_is_refused(tmp_path, call_cli):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = call_cli("demo", "--folder", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert str(tmp_path) in done.stderr
