"""docs/shim.md names everything that the stand-in offers."""

from __future__ import annotations

from pathlib import Path

from shardload.transformers_shim._index import PLACEHOLDER_MODULES, names_by_module

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
