"""docs/shim.md names everything that the stand-in offers."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from shardload import transformers_shim as shim
from shardload.transformers_shim._index import PLACEHOLDER_MODULES, has_module, homes, names_by_module

PAGE = Path(__file__).parents[2] / "docs" / "shim.md"


def test_every_public_name_is_on_the_page():
    page = PAGE.read_text(encoding="utf-8")
    lacking = {
        f"{module}.{name}"
        for module, names in names_by_module().items()
        for name in names
        if not name.startswith("_") and f"`{name}`" not in page
    }
    assert not lacking, "run python scripts/shim_table.py"
    assert all(f"`{module}`" in page for module in PLACEHOLDER_MODULES)


def test_the_page_names_nothing_that_is_not_there():
    sections = PAGE.read_text(encoding="utf-8").split("\n## transformers.")[1:]
    for section in sections:
        module, *lines = section.splitlines()
        names = {line.split("`")[1] for line in lines if line.startswith("| `")}
        assert names <= names_by_module()[module], module


def test_every_public_name_is_offered_at_the_top():
    importlib.import_module(
        "shardload.transformers_shim.front"
    )  # the loader's way in; it makes names findable
    for name, home in homes().items():
        offered = getattr(importlib.import_module(f"shardload.transformers_shim.{home}"), name)
        assert getattr(shim, name) is offered, name


def test_what_is_read_from_the_files_is_what_they_have_when_imported():
    for name, module in homes().items():
        made = importlib.import_module(f"shardload.transformers_shim.{module}".rstrip("."))
        assert name in vars(made), f"{module}.{name}"
    assert "host" not in names_by_module()  # the loader's side of the stand-in
    assert not [name for name in homes() if name.startswith("_")]


def test_a_definition_wins_over_a_re_export():
    for name, module in homes().items():
        made = getattr(importlib.import_module(f"shardload.transformers_shim.{module}".rstrip(".")), name)
        defined = getattr(made, "__module__", "")
        if (
            isinstance(made, type)
            and made.__name__ == name
            and defined.startswith("shardload.")
            and "._" not in defined
        ):
            assert defined == f"shardload.transformers_shim.{module}", name


@pytest.mark.parametrize(
    ("module", "there"),
    [
        ("modeling_utils", True), ("utils.generic", True), ("", True), ("trainer", True), ("models.llama", True),
        ("models.llama.modeling_llama", True), ("models.a.b.c", False), ("models", True), ("no_such", False),
        ("_lengths", False), ("host", False),
    ],
)  # fmt: skip
def test_which_modules_there_are(module, there):
    assert has_module(module) is there
