"""Commands that take a checkpoint share the source options; those that run its code, the trust options."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import pytest
import torch

from shardload import KeyMap, UsageError, open_checkpoint
from shardload.cli import COMMANDS
from shardload.cli.options import renames, source_keywords, trust_keywords
from tests.cli import chatty
from tests.remote_code.repos import MODEL
from tests.remote_code.test_library import LACKING, checkpoint, without
from tests.tiny import write_checkpoint

SOURCE = {
    "--revision",
    "--cache-dir",
    "--offline",
    "--subfolder",
    "--variant",
    "--state-dict",
    "--allow-links",
}
TRUST = {"--trust-remote-code", "--locked", "--lock", "--code-revision", "--remote-base"}
KEY_MAP = {"--map", "--key-map"}
RUN_CODE = {"load", "chat", "doctor", "plan"}
QUANTISE = {"--load-in-8bit", "--load-in-4bit"}
TAKE_A_KEY_MAP = {"load", "chat", "doctor", "plan", "convert", "diff"}


def options_of(name):
    command = importlib.import_module(f"shardload.cli.{name}").command
    command = getattr(command, "commands", {}).get("apply", command)
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "demo"])
def test_a_command_has_the_options_that_mean_something_for_it(name):
    options = options_of(name)
    assert options >= SOURCE
    trust = {"--lock", "--code-revision"} if name == "trust" else TRUST if name in RUN_CODE else set()
    assert TRUST & options == trust
    assert QUANTISE & options == (QUANTISE if name in {"load", "chat", "plan"} else set())
    assert KEY_MAP & options == (KEY_MAP if name in TAKE_A_KEY_MAP else set())


def test_doctor_asks_whom_the_caller_chose(tmp_path, call_cli):
    where = checkpoint(tmp_path)
    assert call_cli("doctor", where, "--trust-remote-code", "--remote-base", "shim").returncode == 0
    where = checkpoint(tmp_path / "lacking", LACKING + MODEL)
    done = call_cli("doctor", where, "--trust-remote-code", "--remote-base", "shim")
    assert done.returncode == 1
    assert "dynamic_module_utils" in done.stderr


@without
def test_the_tokenizer_of_a_chat_is_served_as_its_model_is(tmp_path, call_cli):
    folder = chatty.write(tmp_path, method=chatty.STREAM)
    done = call_cli("chat", folder, "--trust-remote-code", "--remote-base", "transformers", "--prompt", "x")
    assert done.returncode == 2
    assert "not installed" in done.stderr


@pytest.mark.parametrize("command", ["plan", "convert", "diff"])
def test_single_renames_are_a_key_map(tmp_path, call_cli, command):
    a = write_checkpoint(tmp_path / "a", {"module.x": torch.ones(2), "y": torch.ones(3)})
    b = write_checkpoint(tmp_path / "b", {"x": torch.ones(2)})
    rules = ["--key-map", "module.{...}={...}", "--key-map", "y="]
    more = {"plan": [], "convert": ["-o", tmp_path / "new"], "diff": [b]}[command]
    done = call_cli(command, a, *more, *rules, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    if command == "plan":
        assert (document["tensors"], document["dropped"]) == (1, 1)
    if command == "diff":
        assert document["ok"]
    (tmp_path / "map.json").write_text(KeyMap().drop("y").to_json())
    done = call_cli(command, a, *more, *rules, "--map", tmp_path / "map.json")
    assert done.returncode == 2
    assert "can't be combined" in done.stderr


def test_renames_are_rules_in_their_order():
    assert (
        renames(["h.{}.w=layers.{}.w", "junk="]).rules
        == KeyMap().rename("h.{}.w", "layers.{}.w").drop("junk").rules
    )
    assert renames(["e.w=e.w,head.w", "wte=e,head"]).rules == (
        KeyMap().alias("e.w", "head.w").rename("wte", "e").alias("e", "head").rules
    )
    assert renames([]).rules == ()
    for text in ("a", "=b", ""):
        with pytest.raises(UsageError, match="renames nothing"):
            renames([text])


def test_source_options_become_the_keywords_of_open_checkpoint():
    options = {
        "revision": "r", "cache_dir": "c", "offline": True, "subfolder": "s", "variant": None, "state_dict": None,
        "allow_links": False, "storage_options": ("region=x", "allow_http=true"), "no_disk": True,
        "other": 1,
    }  # fmt: skip
    found = source_keywords(options)
    assert options == {"other": 1}
    assert found["local_files_only"] is True
    assert (found["disk"], found["storage_options"]) == (False, {"region": "x", "allow_http": True})
    assert found.keys() <= set(inspect.signature(open_checkpoint).parameters)


def trust(**given):
    return trust_keywords({
        "trust_remote_code": False, "locked": False, "lock": None, "code_revision": None, "remote_base": "auto", **given
    })["trust_remote_code"]  # fmt: skip


def test_code_runs_by_a_flag_or_by_a_lock_and_not_by_both():
    assert trust() is False
    assert trust(trust_remote_code=True) is True
    assert trust(locked=True) == "locked"
    assert trust(locked=True, lock="x.lock") == Path("x.lock")
    for given in ({"locked": True}, {"lock": "x.lock"}):
        with pytest.raises(UsageError, match="does not approve"):
            trust(trust_remote_code=True, **given)


def test_an_entry_with_two_signs_is_refused_because_either_may_end_the_name():
    with pytest.raises(UsageError, match="several signs") as caught:
        renames(["a=b.{...}={...}"])
    assert "--map FILE" in caught.value.cure
