"""40 hostile names in an index, in configs and in an adapter's config, and links, open nothing outside the folder.

The tests run in one process, whose audit hook records every file that is opened and every folder that is listed.
"""

from __future__ import annotations

import json

import pytest
import torch

from tests.adapters import tiny as adapters
from tests.tiny import run_python, write_checkpoint

# `{out}` is a folder outside of the repo; relative names lead from the repo to it.
NAMES = [
    "../outside/evil.safetensors", "../outside/./evil.safetensors", "./../outside/evil.safetensors",
    "sub/../../outside/evil.safetensors", "sub/../model.safetensors", "sub/..", "..", ".", "../", "./",
    "../../{base}/outside/evil.safetensors", "..//outside//evil.safetensors", "sub//model.safetensors",
    "./model.safetensors", "sub/./model.safetensors", "sub/", "/", "//", "",
    "{out}/evil.safetensors", "/{out}/evil.safetensors", "//{out}/evil.safetensors",
    "{out}/../outside/evil.safetensors", "~/../{out}/evil.safetensors", "file://{out}/evil.safetensors",
    "..\\outside\\evil.safetensors", "sub\\..\\..\\outside\\evil.safetensors", "\\\\host\\share\\evil.safetensors",
    "\\outside\\evil.safetensors", "C:evil.safetensors", "C:\\evil.safetensors", "c:/outside/evil.safetensors",
    "model.safetensors\0", "../outside/evil.safetensors\0.bin", "\0", "model\ud800.safetensors",
    "link.safetensors", "linked/evil.safetensors", "hop.safetensors", "loop.safetensors",
    "%2e%2e/outside/evil.safetensors", "..%2foutside/evil.safetensors", "../outside", "https://h/evil.safetensors",
]  # fmt: skip
assert len(NAMES) >= 40

CODE = """
import json, os, sys, pathlib
base = pathlib.Path(sys.argv[1])
sys.path.insert(0, ".")
import torch
import shardload
from shardload.errors import ShardloadError, printable
from tests.adapters import tiny as adapters
from tests.checkpoint.test_paths import NAMES, PLACES
outside, watching, opened = str(base / "outside"), False, []
def hook(event, args):
    if watching and event in {"open", "os.scandir", "os.listdir", "import", "exec"} and args:
        text = os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else ""
        if text and os.path.realpath(text).startswith(outside):
            opened.append([event, text])
sys.addaudithook(hook)
watching = True
open(base / "outside" / "evil.py").close()
assert opened == [["open", str(base / "outside" / "evil.py")]], "the hook sees nothing"
watching = False
opened.clear()
repo, results = base / "repo", {}
for place, (file, fill) in PLACES.items():
    for raw in NAMES:
        name = raw.replace("{out}", outside.lstrip("/") if raw.startswith("/{") else outside)
        name = name.replace("{base}", base.name)
        original = (repo / file).read_text()
        (repo / file).write_text(json.dumps(fill(json.loads(original), name)))
        watching = True
        said = []
        for call in (
            lambda: shardload.open_checkpoint(repo),
            lambda: shardload.from_pretrained(repo, model_class=lambda _: adapters.Tiny()),
            lambda: shardload.load_config(repo, trust_remote_code=True),
            lambda: shardload.resolve_class(repo, trust_remote_code=True),
            lambda: shardload.load_tokenizer(repo, trust_remote_code=True),
            lambda: shardload.load_adapter(adapters.Tiny(), repo / "adapter"),
        ):
            try:
                call()
                said.append("done")
            except ShardloadError as error:
                str(error).encode()
                said.append(type(error).__name__)
        watching = False
        (repo / file).write_text(original)
        results[f"{place}: {ascii(raw)}"] = said
print(json.dumps([opened, results]))
"""


def _index(document, name):
    return {**document, "weight_map": {**document["weight_map"], "out.weight": name}}


def _auto_map(document, name):
    return {
        **document,
        "auto_map": dict.fromkeys(("AutoConfig", "AutoModel", "AutoTokenizer"), f"{name}.Evil"),
    }


def _fields(document, name):
    names = (
        "_name_or_path",
        "vocab_file",
        "tokenizer_file",
        "weights",
        "custom_generate",
        "quantization_config",
    )
    return {**document, **dict.fromkeys(names, name)}


def _tokenizer(document, name):
    return {
        **document,
        "auto_map": {"AutoTokenizer": [f"{name}.Evil", None]},
        "vocab_file": name,
        "chat_template": name,
    }


def _adapter(document, name):
    auto = {"base_model_class": name, "parent_library": name}
    return {**document, "base_model_name_or_path": name, "auto_mapping": auto, "modules_to_save": [name]}


PLACES = {
    "index": ("model.safetensors.index.json", _index),
    "config, auto_map": ("config.json", _auto_map),
    "config, other fields": ("config.json", _fields),
    "tokenizer config": ("tokenizer_config.json", _tokenizer),
    "adapter config": ("adapter/adapter_config.json", _adapter),
}


@pytest.fixture
def base(tmp_path):
    repo, outside = tmp_path / "repo", tmp_path / "outside"
    model = adapters.Tiny()
    write_checkpoint(repo, model.state_dict(), shards=2, config={"hidden_size": 4})
    adapters.write(repo / "adapter", adapters.lora_tensors(model))
    (repo / "tokenizer_config.json").write_text("{}")
    (repo / "sub").mkdir()
    write_checkpoint(outside, {"out.weight": torch.ones(3)}, shards=1, config={})
    (outside / "model.safetensors").rename(outside / "evil.safetensors")
    (outside / "evil.py").write_text("raise SystemExit('ran')\n")
    (repo / "link.safetensors").symlink_to(outside / "evil.safetensors")
    (repo / "linked").symlink_to(outside)
    (repo / "hop.safetensors").symlink_to("link.safetensors")
    (repo / "loop.safetensors").symlink_to("loop.safetensors")
    return tmp_path


def test_nothing_outside_is_opened_for_any_name_in_any_file(base):
    done = run_python(CODE, str(base))
    opened, results = json.loads(done.stdout)
    assert opened == []
    assert len(results) == len(NAMES) * len(PLACES) >= 200
    for key, said in results.items():
        if key.startswith("index"):
            # A name that leads to no file is missing; each other name is refused for its own reason.
            assert said[0] in {"UnsafeError", "NotFoundError"}, key
            inside = "%2" in key or "loop" in key or "'..%" in key or "'./model" in key
            assert said[0] == "UnsafeError" or inside, (key, said)
        if key.startswith("config, auto_map"):
            assert "done" not in said[2:4], key


LINKED = ["config.json", "model.safetensors.index.json", "tokenizer_config.json", "adapter/adapter_config.json",
          "adapter/adapter_model.safetensors", "model-00001-of-00002.safetensors", "SHA256SUMS"]  # fmt: skip


def test_a_file_that_is_a_link_to_outside_is_refused_and_not_opened(base):
    """Each file in turn is replaced by a link, and restored afterwards."""
    code = """
import json, os, pathlib, sys
sys.path.insert(0, ".")
import shardload
from tests.adapters import tiny as adapters
from tests.checkpoint.test_paths import LINKED
base, opened, results = pathlib.Path(sys.argv[1]), [], {}
repo, outside, watching = base / "repo", str(base / "outside"), False
sys.addaudithook(lambda event, args: opened.append(args[0]) if watching and event == "open"
                 and isinstance(args[0], (str, bytes)) and os.path.realpath(args[0]).startswith(outside) else None)
for name in LINKED:
    path, target = repo / name, base / "outside" / name.replace("/", "-")
    content = path.read_bytes() if path.exists() else None
    target.write_bytes(content or b"")
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    watching, said = True, []
    for call in (
        lambda: shardload.open_checkpoint(repo), lambda: shardload.load_config(repo),
        lambda: shardload.load_tokenizer(repo), lambda: shardload.load_adapter(adapters.Tiny(), repo / "adapter"),
        lambda: shardload.verify(repo),
    ):
        try:
            call()
            said.append("done")
        except shardload.ShardloadError as error:
            said.append(type(error).__name__)
    watching = False
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    results[name] = said
print(json.dumps([opened, results]))
"""
    opened, results = json.loads(run_python(code, str(base)).stdout)
    assert opened == []
    assert set(results) == set(LINKED)
    assert {name for name, said in results.items() if "UnsafeError" not in said} == set()


@pytest.mark.parametrize("command", ["convert", "merge"])
def test_what_stands_beside_the_weights_is_not_copied_from_outside(base, command, capsys):
    """Tokenizer files and the like are copied: a link among them would copy a private file of the user."""
    from shardload.cli import run

    repo, out = base / "repo", base / "out"
    for path in repo.iterdir():
        if path.is_symlink():
            path.unlink()
    (base / "outside" / "secret.json").write_text("{}")
    (repo / "tokenizer.json").symlink_to(base / "outside" / "secret.json")
    arguments = [str(repo), *([str(repo / "adapter")] if command == "merge" else []), "-o", str(out)]
    assert run([command, *arguments]) == 4
    assert "link that leads out" in capsys.readouterr().err
    assert not out.exists() or list(out.iterdir()) == []
    (repo / "tokenizer.json").unlink()
    assert run([command, *arguments]) == 0


@pytest.mark.parametrize("command", ["convert", "merge"])
def test_nothing_is_written_into_the_source(base, command):
    from shardload.cli import run

    repo = base / "repo"
    before = {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    more = [str(repo / "adapter")] if command == "merge" else []
    for out in (repo, repo / "sub" / ".." / "." / ""):
        assert run([command, str(repo), *more, "-o", str(out)]) == 2
    assert {path: path.read_bytes() for path in repo.rglob("*") if path.is_file()} == before
