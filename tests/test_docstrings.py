"""The examples in the docstrings of the public names, run as a reader would paste them: in an empty folder."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import shardload

PARSER = doctest.DocTestParser()
# What a target answers to the loader; the class's own example shows how one is used.
OF_THE_LOADER = {"OnDevice", "OnDevices", "Quantised", "QuantisedByTorchao"}


def documented() -> dict[str, str]:
    """The docstring of every public function and class, and of every public method of such a class."""
    found = {}
    for name in shardload.__all__:
        value = getattr(shardload, name)
        found[name] = inspect.getdoc(value) or ""
        if inspect.isclass(value) and name not in OF_THE_LOADER:
            for kind in value.__mro__:
                if kind.__module__.startswith("shardload."):
                    found |= {f"{kind.__name__}.{method}": text for method, text in methods_of(kind).items()}
    return found


def methods_of(kind: type) -> dict[str, str]:
    functions = (type(documented), classmethod, staticmethod)
    return {
        name: inspect.getdoc(value) or ""
        for name, value in vars(kind).items()
        if not name.startswith("_") and isinstance(value, functions)
    }


DOCSTRINGS = documented()


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_the_example_prints_what_it_says(name, tmp_path, monkeypatch):
    test = PARSER.get_doctest(DOCSTRINGS[name], {"__name__": "__main__"}, name, None, 0)
    assert test.examples, f"{name} has no example"
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    with torch.random.fork_rng(devices=[]):
        result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_an_example_is_short_and_looks_at_something(name):
    examples = PARSER.get_examples(DOCSTRINGS[name])
    assert any(example.want for example in examples), f"{name}: nothing is printed"
    lines = sum(len(example.source.splitlines()) + len(example.want.splitlines()) for example in examples)
    assert lines <= 16, f"{name}: {lines} lines"
