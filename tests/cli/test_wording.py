"""Keywords in messages become the options of the command that runs; what a user typed comes out as typed."""

from __future__ import annotations

import json
import os
import shlex

import click
import pytest
import torch

from shardload.cli import COMMANDS, commands
from shardload.cli.wording import options_of, worded, words_in
from shardload.errors import Cures, OfReport, Wording, keyword, said
from tests.tiny import write_checkpoint

CASES = [
    ("load", keyword("copy", True), "--copy"),
    ("load", keyword("verify", True), "--verify"),
    ("load", keyword("local_files_only", True), "--offline"),
    ("load", keyword("trust_remote_code", True), "--trust-remote-code"),
    ("load", keyword("trust_remote_code", "locked"), "--locked"),
    ("load", keyword("revision", "it's"), "--revision 'it'\"'\"'s'"),
    ("load", keyword("revision"), "--revision COMMIT"),
    ("load", keyword("key_map"), "--key-map OLD=NEW"),
    ("load", keyword("key_map", {"module.{...}": "{...}"}), "--key-map 'module.{...}={...}'"),
    ("load", keyword("key_map", {"a.b": None, "c": "d"}), "--key-map a.b= --key-map c=d"),
    ("load", keyword("allow_missing", ["a.*", "b"]), "--allow-missing 'a.*' --allow-missing b"),
    ("load", keyword("model_class"), "--model-class MODULE:CLASS"),
    ("doctor", keyword("model_class"), "--model MODULE:CLASS"),
    ("chat", keyword("model_class"), "model_class=…"),
    ("chat", Cures("mend it", keyword("model_class")), "mend it"),
    ("load", Cures("mend the config", keyword("config")), "mend the config"),
    ("inspect", keyword("copy", True), "copy=True"),
    ("inspect", keyword("alpha"), "--alpha ALPHA"),
    ("convert", keyword("verify", False), "--no-verify"),
    ("load", keyword("key_map", {"a.b": ["a.b", "c"]}), "--key-map a.b=a.b,c"),
    ("convert", keyword("key_map"), "--key-map OLD=NEW"),
    ("convert", keyword("key_map", {"a": None}), "--key-map a="),
    ("map", keyword("subfolder", "a b"), "--subfolder 'a b'"),
    (
        "load",
        Wording("pass {token} with access", token=...),
        "pass HF_TOKEN (in the environment) with access",
    ),
    ("load", keyword("copy", False), "copy=False"),
]


@pytest.mark.parametrize(("command", "text", "shown"), CASES)
def test_a_keyword_is_the_option_of_the_command(command, text, shown):
    words = options_of(commands.get_command(None, command))
    assert said(text, words) == shown
    assert worded({"a": [text, 1], "b": None}, words) == {"a": [shown, 1], "b": None}


def test_the_options_that_are_shown_are_taken_by_the_command():
    """What a shell makes of the words is parsed by the command itself."""
    for command, text, shown in CASES:
        if shown.startswith("--") and "MODULE:CLASS" not in shown and "ALPHA" not in shown:
            asked = commands.get_command(None, command)
            if command == "map":
                asked = asked.commands["apply"]
            known = {name for option in asked.params for name in option.opts}
            assert {word for word in shlex.split(shown) if word.startswith("--")} <= known, text


def test_without_a_command_the_words_are_those_of_python():
    assert said(keyword("copy", True), options_of(None)) == "copy=True"


@pytest.mark.parametrize(
    "name", ["dtype=bf16,seed=1", "a_copy=True", "run (adapter=best)", "x, or pass config=…", "{copy}"]
)
@pytest.mark.parametrize(
    "command", [name for name in COMMANDS if name not in {"chat", "demo", "map", "trust"}]
)
def test_a_path_comes_out_as_typed(tmp_path, call_cli, name, command):
    path = tmp_path / name
    path.mkdir()
    more = {"merge": ["adapter", "-o", "out"], "convert": ["-o", "out"], "diff": [path]}.get(command, [])
    done = call_cli(command, path, *more, "--json")
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert str(path) in error["what"] + error["where"]
    assert str(path) in call_cli(command, path, *more).stderr


def test_an_error_names_its_option_in_text_and_as_data(tmp_path, call_cli):
    where = tmp_path / "dtype=a"
    where.mkdir()
    (where / "real").mkdir()
    write_checkpoint(tmp_path / "elsewhere", {"a": torch.ones(2)})
    for file in os.listdir(tmp_path / "elsewhere"):
        os.symlink(tmp_path / "elsewhere" / file, where / file)
    done = call_cli("inspect", where, "--json")
    assert done.returncode == 4
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "E-UNSAFE"
    assert error["keywords"] == {"allow_links": True}
    assert error["options"] == ["--allow-links"]
    assert error["cure"].endswith("pass --allow-links if you made the link")
    assert "pass --allow-links if you made the link" in call_cli("inspect", where).stderr
    assert call_cli("inspect", where, *error["options"]).returncode == 0


def test_a_session_names_the_doctor_with_what_the_command_was_called_with():
    group = click.Context(commands, info_name="shardload")
    chat = commands.get_command(group, "chat")
    given = ["./a b", "--trust-remote-code", "--prompt", "x", "--revision", "v1"]
    with chat.make_context("chat", given, parent=group) as context:
        said = words_in(context)("key_map", OfReport("map.json"))
    line = "shardload doctor './a b' --trust-remote-code --revision v1"
    assert said == f"--map map.json, which `{line} --write-map map.json` writes"
