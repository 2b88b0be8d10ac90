"""What `import` means inside a repo's modules."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest

from shardload.errors import RemoteCodeError
from shardload.remote_code.bound_imports import builtins_for

from .repos import run


def test_every_form_of_relative_import_runs(tmp_path):
    module = run(
        tmp_path / "re-po.v1",
        "from .a import one\nfrom . import b\nfrom .sub.c import three\nfrom .sub import d as four\n"
        "from .pkg import five\nimport e\nfrom f import six\nimport plain.g\nimport plain.g as g",
        a_py="one = 1",
        b_py="from .a import one",
        sub__c_py="from ..a import one\nfrom . import d\nthree = d.x",
        sub__d_py="x = 3",
        **{"pkg/__init__.py": "from .impl import five", "pkg/impl.py": "five = 5"},
        e_py="from a import one",
        f_py="six = 6",
        plain__g_py="x = 7",
    )
    assert (module.one, module.b.one, module.three, module.four.x, module.five) == (1, 1, 3, 3, 5)
    assert (module.e.one, module.six, module.plain.g.x, module.g.x) == (1, 6, 7, 7)


def test_transformers_is_the_shim_and_never_in_sys_modules_under_that_name(tmp_path):
    there_before = sys.modules.get("transformers")
    module = run(
        tmp_path,
        "import transformers\nfrom transformers import PretrainedConfig\nimport transformers.utils as u",
    )
    assert module.transformers.__name__ == "shardload.transformers_shim"
    assert module.u.__name__ == "shardload.transformers_shim.utils"
    assert sys.modules.get("transformers") is there_before


def test_a_real_transformers_beside_it_is_untouched(tmp_path):
    real = pytest.importorskip("transformers")
    module = run(tmp_path, "from transformers import PretrainedConfig")
    assert module.PretrainedConfig is not real.PretrainedConfig
    assert sys.modules["transformers"] is real
    from transformers import PretrainedConfig

    assert PretrainedConfig is real.PretrainedConfig


def test_imports_inside_functions_get_the_shim_and_the_repos_files(tmp_path):
    module = run(
        tmp_path,
        "def late():\n    from transformers.utils import logging\n    import transformers.activations\n"
        "    from .helper import x\n    return logging, transformers, x",
        helper_py="x = 8",
    )
    logging, top, x = module.late()
    assert (logging.__name__, top.__name__, x) == (
        "shardload.transformers_shim.utils.logging",
        "shardload.transformers_shim",
        8,
    )


def test_import_module_and_find_spec_see_the_shim(tmp_path):
    module = run(
        tmp_path,
        "import importlib, importlib.util, importlib.metadata\nfrom importlib import import_module\n"
        "from importlib.util import find_spec\nfrom importlib.metadata import version\n"
        "a = importlib.import_module('transformers.utils')\nb = import_module('transformers')\n"
        "c = importlib.util.find_spec('transformers')\nd = find_spec('transformers.no_such')\n"
        "e = version('transformers')\nf = import_module('.helper', __package__)\ng = import_module('json')\n"
        "h = find_spec('no_such_package')\ni = importlib.metadata.version('torch')\nj = __import__('transformers')",
        helper_py="x = 8",
    )
    assert module.a.__name__ == "shardload.transformers_shim.utils"
    assert module.b is module.j
    assert module.c.name == module.b.__name__ == "shardload.transformers_shim"
    assert module.d is None
    assert module.e == module.b.__version__ == "4.40.2"
    assert module.f.x == 8
    assert module.g is sys.modules["json"]
    assert module.h is None
    assert module.i.startswith("2.")
    assert importlib.util.find_spec.__module__ == "importlib.util"


def test_a_repos_logging_py_does_not_replace_pythons(tmp_path):
    module = run(tmp_path, "import logging", logging_py="raise RuntimeError")
    assert module.logging is sys.modules["logging"]


def test_a_relative_import_above_the_root_is_refused(tmp_path):
    with pytest.raises(RemoteCodeError, match="above the repo's root"):
        run(tmp_path, "from ..importer import open_code")


def importer(base="shim", *files, modules=None):
    code = SimpleNamespace(
        files=[SimpleNamespace(name=name) for name in files],
        modules={module: SimpleNamespace(name=name) for module, name in (modules or {}).items()},
    )
    return builtins_for(SimpleNamespace(package="pkg", code=code, base=base))["__import__"]


@pytest.mark.parametrize(
    ("base", "name", "target"),
    [
        ("shim", "transformers", "shardload.transformers_shim"),
        ("shim", "transformers.utils", "shardload.transformers_shim.utils"),
        ("transformers", "transformers.utils", None),
        ("shim", "json", None),
        ("shim", "logging", None),  # Python's own, whatever the repo calls its files
        ("shim", "torch.nn", None),
        ("shim", "helper", "pkg.helper"),
        ("shim", "sub.inner", "pkg.sub.inner"),
        ("shim", "absent", None),
    ],
)
def test_what_the_code_means_by_a_name(base, name, target):
    found = importer(base, "helper.py", "logging.py", "torch.py", "sub/inner.py")
    assert found.target_of(name, {}) == target


def test_a_file_looks_in_its_own_folder_first():
    found = importer("shim", "a.py", "sub/a.py", "sub/main.py", modules={"sub.main": "sub/main.py"})
    assert found.target_of("a", {"__name__": "pkg.sub.main"}) == "pkg.sub.a"
    assert found.target_of("a", {"__name__": "pkg.main"}) == "pkg.a"


def test_everything_else_of_the_builtins_is_python_s():
    import builtins

    made = builtins_for(
        SimpleNamespace(package="pkg", code=SimpleNamespace(files=[], modules={}), base="shim")
    )
    assert {name: value for name, value in made.items() if name != "__import__"} == {
        name: value for name, value in vars(builtins).items() if name != "__import__"
    }
    assert made["__import__"]("json") is json
    assert made["__import__"]("os.path", fromlist=("join",)).join is __import__("os").path.join


def test_what_code_sets_on_its_importlib_stays_there(tmp_path):
    module = run(tmp_path, "import importlib\nimportlib.mine = 3\nimportlib.import_module = None")
    assert module.importlib.mine == 3
    assert not hasattr(importlib, "mine")
    assert importlib.import_module is not None
