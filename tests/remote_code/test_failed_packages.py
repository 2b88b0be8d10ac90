"""Errors of the packages that a repo's code imports."""

from __future__ import annotations

import sys

import pytest

from shardload.errors import RemoteCodeError
from shardload.remote_code.failed_packages import installed, package_error
from tests.remote_code.repos import MODEL, build, tiny


def error_of(folder, line: str, packages: dict[str, str] | None = None) -> RemoteCodeError:
    """Return the error of a repo whose model's file begins with `line`; `packages` are modules on sys.path."""
    site = folder / "site"
    site.mkdir()
    for name, text in (packages or {}).items():
        (site / f"{name}.py").write_text(text)
    sys.path.insert(0, str(site))
    try:
        with pytest.raises(RemoteCodeError) as caught:
            build(*tiny(folder / "repo", model=f"{line}\n{MODEL}"))
    finally:
        sys.path.remove(str(site))
        for name in packages or {}:
            sys.modules.pop(name, None)
    assert caught.value.where.startswith(str(folder / "repo" / "modeling_tiny.py:"))
    return caught.value


def test_a_package_that_fails_by_itself_is_named(tmp_path):
    inner = "def operator():\n    raise RuntimeError('operator nms does not exist')\noperator()\n"
    error = error_of(tmp_path, "import outer_pkg", {"outer_pkg": "import inner_pkg\n", "inner_pkg": inner})
    assert "outer_pkg fails while the repo's code imports it: RuntimeError: operator nms" in error.what
    assert installed("torch") in error.cure
    assert "pip install --force-reinstall --no-deps outer_pkg" in error.cure


def test_an_error_inside_a_call_of_a_package_is_the_repo_s(tmp_path):
    error = error_of(tmp_path, "import some_pkg; some_pkg.f()", {"some_pkg": "def f(): return 1 / 0\n"})
    assert "the repo's own code failed" in error.what


def test_a_package_without_the_name_or_the_module(tmp_path):
    error = error_of(tmp_path, "from old_pkg import Newer", {"old_pkg": ""})
    assert "needs old_pkg.Newer, which the installed old_pkg lacks" in error.what
    assert error.cure == "install a release of old_pkg that has it"
    (tmp_path / "second").mkdir()
    error = error_of(tmp_path / "second", "import json.newer")
    assert "needs json.newer, which the installed json lacks" in error.what


def test_a_package_that_an_installed_package_needs(tmp_path):
    error = error_of(tmp_path, "import half_pkg", {"half_pkg": "import absent_pkg"})
    assert error.what.startswith("half_pkg, which the repo's code imports, needs the package absent_pkg")
    assert error.cure == "pip install absent_pkg"


SAYS = "try:\n    import absent_pkg\nexcept ImportError:\n    raise ImportError({0!r})\n"


@pytest.mark.parametrize(
    ("says", "cure"),
    [
        ("Please run `pip install -U fla-core`", "as the code says: pip install -U fla-core"),
        ("needs pip install 'a[b]>=1'; and $(more)", "as the code says: pip install"),
        ("build it from source", "do what the code says there"),
    ],
)
def test_code_that_says_what_to_install(tmp_path, says, cure):
    error = error_of(tmp_path, SAYS.format(says))
    assert error.what == f"the repo's code needs the package absent_pkg, which is not installed: {says}"
    assert error.cure.startswith(cure if "'" not in says else "do what")
    assert "$" not in error.cure


def test_code_that_only_says_so(tmp_path):
    error = error_of(tmp_path, "raise ImportError('needs a GPU')")
    assert error.what == "the repo's code says that it lacks something: needs a GPU"


@pytest.mark.parametrize(
    ("module", "cure"),
    [
        ("fla.modules", "pip install flash-linear-attention"),
        ("rotary_emb", "pip install flash-attn"),
        ("apex.normalization", "build NVIDIA's apex from its source: github.com/NVIDIA/apex"),
        ("absent_pkg.x", "pip install absent_pkg"),
    ],
)
def test_what_to_install_for_a_module(module, cure):
    name = module.split(".", maxsplit=1)[0]
    error = package_error(ModuleNotFoundError("x", name=name), [], "here")
    assert (error.cure, error.where) == (cure, "here")
    assert f"needs the package {name}" in error.what


def test_other_errors_are_not_about_packages():
    assert package_error(ValueError("x"), [], None) is None
