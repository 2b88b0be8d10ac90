"""Which files are found by parsing."""

from __future__ import annotations

import pytest

from shardload.errors import NotFoundError, RemoteCodeError
from shardload.remote_code import code_files
from shardload.remote_code.code import collect

from .repos import COMMIT, HubLike, tiny, write


def found(folder, files, *modules):
    source, _config = write(folder, files)
    return [file.name for file in collect(source, modules or ["main"]).files]


def test_from_dot_module(tmp_path):
    assert found(tmp_path, {"main.py": "from .a import x", "a.py": "", "b.py": ""}) == ["a.py", "main.py"]


def test_from_dot_import_module(tmp_path):
    files = {"main.py": "from . import a, b as c", "a.py": "", "b.py": ""}
    assert found(tmp_path, files) == ["a.py", "b.py", "main.py"]


def test_sub_packages_with_and_without_init(tmp_path):
    files = {
        "main.py": "from .sub.deep.x import y\nfrom .plain.z import w",
        "sub/__init__.py": "",
        "sub/deep/__init__.py": "",
        "sub/deep/x.py": "from ..up import q\nfrom ...top import r",
        "sub/up.py": "",
        "plain/z.py": "",
        "top.py": "",
        "other.py": "",
    }
    assert found(tmp_path, files) == sorted(set(files) - {"other.py"})


def test_a_package_is_followed_through_its_init(tmp_path):
    files = {
        "main.py": "from .sub import thing",
        "sub/__init__.py": "from .impl import thing",
        "sub/impl.py": "",
    }
    assert found(tmp_path, files) == sorted(files)


def test_undotted_imports_of_files_in_the_repo(tmp_path):
    files = {
        "main.py": "import configuration_x\nfrom sub.y import z\nimport logging\nimport torch.nn",
        "configuration_x.py": "",
        "sub/y.py": "import beside",
        "sub/beside.py": "",
        "logging.py": "raise RuntimeError",
        "torch.py": "raise RuntimeError",
    }
    assert found(tmp_path, files) == ["configuration_x.py", "main.py", "sub/beside.py", "sub/y.py"]


def test_imports_in_functions_and_guards_are_found_and_may_be_absent(tmp_path):
    code = "try:\n    from .absent import x\nexcept ImportError:\n    x = None\ndef f():\n    from .late import y"
    assert found(tmp_path, {"main.py": code, "late.py": ""}) == ["late.py", "main.py"]


def test_what_only_looks_like_an_import_is_not_followed(tmp_path):
    code = '"""\nfrom .doc import x\n"""\n# from .comment import y\ns = "from .text import z"'
    files = {"main.py": code, "doc.py": "", "comment.py": "", "text.py": ""}
    assert found(tmp_path, files) == ["main.py"]


def test_import_module_with_a_literal_name_is_followed(tmp_path):
    code = "import importlib\ndef f():\n    return importlib.import_module('.late', __package__)"
    assert found(tmp_path, {"main.py": code, "late.py": ""}) == ["late.py", "main.py"]


def test_cycles_end(tmp_path):
    assert found(tmp_path, {"main.py": "from . import a", "a.py": "from . import main"}) == [
        "a.py",
        "main.py",
    ]


def test_file_names_with_dots_and_dashes(tmp_path):
    source, _ = write(tmp_path, {"modeling-x.py": "", "modeling_x.py": "", "modeling_v1.5.py": ""})
    code = collect(source, ["modeling-x", "modeling_x", "modeling_v1.5"])
    modules = {code.module_of(file.name) for file in code.files}
    assert len(modules) == 3
    assert all(name.isidentifier() for name in modules)


def test_the_hash_changes_with_content_name_and_base(tmp_path):
    source, _ = write(tmp_path / "a", {"main.py": "x = 1"})
    other, _ = write(tmp_path / "b", {"main.py": "x = 2"})
    again, _ = write(tmp_path / "c", {"main.py": "x = 1"})
    code = collect(source, ["main"])
    assert code.sha256("shim") == collect(again, ["main"]).sha256("shim")
    assert (
        len({code.sha256("shim"), code.sha256("transformers"), collect(other, ["main"]).sha256("shim")}) == 3
    )


def test_a_missing_module_names_the_file(tmp_path):
    source, _ = write(tmp_path, {"main.py": ""})
    with pytest.raises(NotFoundError, match=r"no file sub/absent\.py"):
        collect(source, ["sub.absent"])


def test_a_syntax_error_names_file_and_line(tmp_path):
    source, _ = write(tmp_path, {"main.py": "x = 1\ndef f(:\n"})
    with pytest.raises(RemoteCodeError) as caught:
        collect(source, ["main"])
    assert caught.value.where == f"{tmp_path / 'main.py'}:2"


@pytest.mark.parametrize("text", ["x = a" + ".b" * 200_000, "x = " + "-" * 200_000 + "1"])
def test_code_that_is_nested_too_deeply_for_python_is_typed(tmp_path, text):
    source, _ = write(tmp_path, {"main.py": text})
    with pytest.raises(RemoteCodeError, match="not valid Python"):
        collect(source, ["main"])


def test_code_files_lists_what_would_run_and_runs_nothing(tmp_path):
    source, config = tiny(
        tmp_path, model="from .configuration_tiny import TinyConfig\nraise SystemExit", unused_py=""
    )
    listed = code_files(source, config)
    assert [file.name for file in listed] == ["configuration_tiny.py", "modeling_tiny.py"]
    assert all(len(file.sha256) == 64 for file in listed)


def test_code_files_of_another_repo_are_listed_without_opening_it(tmp_path):
    source, _ = write(tmp_path, {})
    config = {"auto_map": {"AutoModel": "org/other--modeling_x.M"}}
    (listed,) = code_files(source, config)
    assert (listed.name, listed.sha256, listed.label) == ("modeling_x.py", None, "org/other")


def test_a_repo_that_names_itself_is_its_own(tmp_path):
    _source, _ = write(tmp_path, {"modeling_x.py": ""})
    config = {"auto_map": {"AutoModel": "org/name--modeling_x.M"}}
    (listed,) = code_files(HubLike(tmp_path), config)
    assert listed.label == f"org/name@{COMMIT}"
    assert listed.sha256
