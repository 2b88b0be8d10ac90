"""The files that a file imports, found without running it; Python itself says what an import of a package runs."""

from __future__ import annotations

import json

import pytest

from shardload.remote_code.imports import home_of, imported_files
from tests.tiny import run_python

FILES = frozenset({
    "main.py", "a.py", "sub/__init__.py", "sub/b.py", "sub/deep/__init__.py", "sub/deep/c.py", "plain/d.py",
    "logging.py", "torch.py", "both.py", "both/__init__.py", "both/e.py",
})  # fmt: skip


@pytest.mark.parametrize(
    ("line", "name", "found"),
    [
        ("import a", "main.py", {"a.py"}),
        ("from a import x, y", "main.py", {"a.py"}),
        ("from . import a", "main.py", {"a.py"}),
        ("from .sub import b", "main.py", {"sub/__init__.py", "sub/b.py"}),
        ("from .sub.deep.c import x", "main.py", {"sub/__init__.py", "sub/deep/__init__.py", "sub/deep/c.py"}),
        ("import sub.deep.c as x", "main.py", {"sub/__init__.py", "sub/deep/__init__.py", "sub/deep/c.py"}),
        ("import plain.d", "main.py", {"plain/d.py"}),
        ("from ..a import x", "sub/b.py", {"a.py"}),
        ("from . import something", "sub/b.py", {"sub/__init__.py"}),
        ("from . import deep", "sub/b.py", {"sub/deep/__init__.py"}),
        ("from ... import a", "sub/b.py", set()),  # above the root
        ("import b", "sub/deep/c.py", set()),
        ("import both.e", "main.py", {"both/__init__.py", "both/e.py"}),  # a package hides a module of its name
        ("import logging, torch, json, transformers", "main.py", set()),
        ("from transformers import x", "main.py", set()),
        ("def f():\n    if 0:\n        from .a import x", "main.py", {"a.py"}),
        ("import importlib; importlib.import_module('.a', __package__)", "main.py", {"a.py"}),
        ("from importlib import import_module as i, import_module\nimport_module('sub.b')", "main.py",
         {"sub/__init__.py", "sub/b.py"}),
        ("import importlib; importlib.import_module('a' + x)", "main.py", set()),
        ("x = 'import a'", "main.py", set()),
    ],
)  # fmt: skip
def test_what_a_line_imports(line, name, found):
    assert imported_files(line.encode(), name, FILES) == found


@pytest.mark.parametrize(
    "line", ["import sub.deep.c", "from sub import b", "from sub.deep import c", "import both.e, a"]
)
def test_it_is_what_python_runs(tmp_path, line):
    for name in FILES - {"logging.py", "torch.py"}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    code = (
        f"import sys, json\nsys.path.insert(0, {str(tmp_path)!r})\n{line}\n"
        "print(json.dumps([m.__file__ for m in list(sys.modules.values()) if getattr(m, '__file__', None)]))\n"
    )
    ran = {
        file[len(str(tmp_path)) + 1 :]
        for file in json.loads(run_python(code).stdout)
        if file.startswith(str(tmp_path))
    }
    assert imported_files(line.encode(), "main.py", FILES) == ran


def test_what_is_no_python_is_said():
    with pytest.raises(SyntaxError):
        imported_files(b"import (", "main.py", FILES)
    with pytest.raises((ValueError, SyntaxError)):
        imported_files(b"x = 1\0", "main.py", FILES)


def test_an_undotted_name_is_looked_for_in_its_own_folder_first():
    names = frozenset({"a.py", "sub/a.py", "sub/c.py", "json.py"})
    assert home_of("a", "sub/c.py", names) == "sub"
    assert home_of("a", "main.py", names) == ""
    assert home_of("sub", "sub/c.py", names) == ""
    assert home_of("json", "main.py", names) is home_of("absent", "main.py", names) is None
