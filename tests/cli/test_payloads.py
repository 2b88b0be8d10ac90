"""Names that attack a terminal or a page: whatever prints them, they arrive as harmless text."""

from __future__ import annotations

import json

import pytest
import torch

from shardload import (
    KeyMap,
    ShardloadError,
    build_shell,
    check,
    from_pretrained,
    load_adapter,
    open_checkpoint,
)
from shardload.cli import run
from shardload.errors import UsageError, printable
from tests.adapters import tiny as adapters
from tests.tiny import Net, random_state, save_safetensors, write_checkpoint

PAYLOADS = {
    "clear the screen": "\x1b[2J\x1b[H", "colour": "\x1b[31mred", "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;http://x\x07click", "paste": "\x1b[200~rm -rf ~\x1b[201~", "answer back": "\x05",
    "bell": "\x07", "backspace": "safe\x08\x08\x08\x08evil", "carriage return": "good\rEVIL",
    "new line": "a\nerror: nothing is wrong", "form feed": "a\x0cb", "NUL": "a\x00b", "DEL": "a\x7f",
    "C1 control": "\x9b2J", "bidi override": "\u202egnp.exe", "bidi isolate": "\u2066x\u2069",
    "zero width": "a\u200bb", "joiner": "a\u200db", "line separator": "a\u2028b", "paragraph": "a\u2029b",
    "BOM": "\ufeffa", "tag characters": "a\U000e0041\U000e0042", "private use": "\ue000", "soft hyphen": "a\xadb",
    "interlinear": "\ufff9x\ufffb", "script": "<script>alert(1)</script>", "image": "<img src=x onerror=alert(1)>",
    "entity": "&lt;&#60;", "rich": "[bold red]x[/]", "percent": "%s%n%x", "braces": "{0.__class__}",
    "template": "{{ 7 * 7 }}", "quote": '"\';--', "long": "x" * 3000,
}  # fmt: skip
assert len(PAYLOADS) >= 20


def harmless(text: str) -> bool:
    """Whether a terminal only shows it: printable lines, and no style of ours (this is no terminal)."""
    return all(line.isprintable() for line in text.split("\n"))


@pytest.fixture
def repo(tmp_path):
    def write(payload: str):
        folder = tmp_path / "repo"
        state = {**random_state(Net()), f"layers.{payload}.weight": torch.ones(2)}
        write_checkpoint(folder, state, shards=1, config={"model_type": payload, "architectures": [payload]})
        for path in [*folder.glob("model-*"), *folder.glob("*.index.json")]:
            path.unlink()
        save_safetensors(state, folder / "model.safetensors")
        return folder

    return write


@pytest.mark.parametrize("name", PAYLOADS)
def test_every_command_prints_it_harmless(repo, capsys, tmp_path, name):
    folder = repo(PAYLOADS[name])
    other = write_checkpoint(tmp_path / "other", random_state(Net()), shards=1)
    key_map = tmp_path / "map.json"
    key_map.write_text(KeyMap().rename("layers.{...}", "blocks.{...}").to_json())
    for arguments in (
        ["inspect", folder], ["inspect", folder, "--tensors"], ["inspect", folder, "--json"], ["load", folder],
        ["load", folder, "--json"], ["verify", folder], ["verify", folder, "--json"], ["trust", folder],
        ["inspect", PAYLOADS[name].replace("\x00", "")], ["load", folder, "--allow-missing", PAYLOADS[name]],
        ["plan", folder], ["plan", folder, "--json"], ["doctor", folder, "--like", other], ["diff", folder, other],
        ["doctor", folder, "--like", other, "--json"], ["diff", other, folder, "--json"], ["doctor", folder],
        ["map", "apply", key_map, folder], ["map", "apply", key_map, folder, "--json"],
        ["convert", folder, "-o", tmp_path / "out"], ["load", folder, "--model-class", PAYLOADS[name]],
        ["load", folder, "--revision", PAYLOADS[name]],
    ):  # fmt: skip
        code = run([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert harmless(shown.out), arguments
        assert harmless(shown.err), arguments
        assert code in {0, 1, 2, 3, 4}, arguments
        if "--json" in arguments:
            json.loads(shown.out)


@pytest.mark.parametrize("name", PAYLOADS)
def test_reports_and_errors_are_harmless_and_one_line_a_name(repo, name):
    folder = repo(PAYLOADS[name])
    report = check(build_shell(Net), open_checkpoint(folder))
    assert not report.ok
    assert harmless(str(report))
    with pytest.raises(ShardloadError) as caught:
        from_pretrained(folder, model_class=lambda _: Net(), config={})
    assert harmless(str(caught.value))
    # A new line in a name would let it write a line of its own.
    assert not any(line.startswith("error: nothing") for line in str(caught.value).split("\n"))
    assert len(str(caught.value).split("\n")) < 12


@pytest.mark.parametrize("name", PAYLOADS)
def test_an_adapters_names_are_harmless(tmp_path, name):
    model = adapters.Tiny()
    tensors = {
        **adapters.lora_tensors(model),
        f"base_model.model.{PAYLOADS[name]}.lora_A.weight": torch.ones(2, 2),
    }
    where = adapters.write(tmp_path / "adapter", tensors)
    with pytest.raises(ShardloadError) as caught:
        load_adapter(model, where)
    assert harmless(str(caught.value))


def test_escaping_keeps_what_is_harmless_and_loses_nothing():
    for name, payload in PAYLOADS.items():
        shown = printable(payload)
        assert shown.isprintable(), name
        if payload.isprintable():
            assert shown == payload
        else:
            assert (
                shown.encode("ascii", "ignore").decode("unicode_escape") == payload or not payload.isascii()
            )
    assert printable("日本語 ünïcode") == "日本語 ünïcode"
    assert str(UsageError("a\nb", where="\x1b[2J")) == "a\nb\n  where: \\x1b[2J"
