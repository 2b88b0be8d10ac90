"""No call anywhere in the package can unpickle: not with weights_only=False, not with it True, not as a fallback."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

import shardload
from shardload import CorruptError, UnsafeError, UnsupportedError, from_pretrained
from shardload.checkpoint.formats import FORMATS
from tests.checkpoint.formats.files import torch_zip
from tests.checkpoint.formats.test_gadgets import CALLS, wrap
from tests.tiny import Net, run_python

PACKAGE = Path(shardload.__file__).parent
FILES = sorted(
    path for path in PACKAGE.rglob("*.py") if PACKAGE / "cli" / "demo_repo" / "chatglm2" not in path.parents
)
UNPICKLERS = {
    "torch.load", "torch.serialization.load", "torch.jit.load", "torch.hub.load", "pickle.load", "pickle.loads",
    "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "numpy.load",
    "np.load", "cloudpickle.load", "torch.package.PackageImporter", "torch._weights_only_unpickler",
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_of_the_package_names_an_unpickler(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in UNPICKLERS, f"{path.name}:{node.lineno}"
        if isinstance(node, ast.keyword):
            assert node.arg != "weights_only", f"{path.name}:{node.lineno}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names} | {getattr(node, "module", "") or ""}
            assert not names & {"pickle", "marshal", "dill", "shelve", "cloudpickle", "joblib"}, (
                f"{path}:{node.lineno}"
            )


def test_loading_bins_never_calls_torchs_loader_nor_python_s_unpickler(tmp_path):
    torch.save(Net().state_dict(), tmp_path / "pytorch_model.bin")
    torch.save(Net().state_dict(), tmp_path / "legacy.bin", _use_new_zipfile_serialization=False)
    code = """
import pickle, sys, torch
sys.path.insert(0, ".")
from shardload import from_pretrained, verify
from tests.tiny import Net
def never(*_args, **_keywords):
    raise AssertionError("an unpickler was called")
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("pickle.") else None)
torch.load = torch.serialization.load = pickle.load = pickle.loads = pickle.Unpickler = never
for name in ("pytorch_model.bin", "legacy.bin"):
    from_pretrained(f"{sys.argv[1]}/{name}", model_class=lambda _: Net(), config={})
    verify(f"{sys.argv[1]}/{name}", values=True)
print(seen)
"""
    assert run_python(code, str(tmp_path)).stdout == "[]\n"


@pytest.mark.parametrize("name", list(CALLS)[:30])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_thirty_gadget_files_at_the_front_door_leave_no_trace(tmp_path, monkeypatch, name, legacy):
    """Through from_pretrained, with every way of asking for leniency: refused, and nothing happens."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repo").mkdir()
    body = b"}" + b"X\x06\x00\x00\x00weight" + CALLS[name] + b"s."
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(wrap(body, legacy))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    for keywords in ({}, {"strict": False, "trust_remote_code": True, "copy": True}):
        with pytest.raises(UnsafeError) as caught:
            from_pretrained(tmp_path / "repo", model_class=lambda _: Net(), config={}, **keywords)
        assert caught.value.exit_code == 4
        assert "pytorch_model.bin" in str(caught.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "keyword", ["weights_only", "pickle_module", "safe_serialization", "use_safetensors"]
)
def test_no_keyword_asks_for_an_unpickler(tmp_path, keyword):
    torch.save(Net().state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises((shardload.UsageError, UnsupportedError, TypeError)):
        from_pretrained(tmp_path, model_class=lambda _: Net(), config={}, **{keyword: False})


def test_a_broken_bin_is_no_reason_to_try_another_way(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(torch_zip(b"\x80\x02}q\x00."[:-2]))
    with pytest.raises(CorruptError):
        from_pretrained(tmp_path, model_class=lambda _: Net(), config={})
    assert [fmt.name for fmt in FORMATS] == ["safetensors", "torch zip", "torch legacy", "gguf"]
