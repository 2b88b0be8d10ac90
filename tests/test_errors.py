"""Errors keep texts, code and report when they cross to another process; keywords in their texts are data."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
from pathlib import Path

import pytest

import shardload
from shardload import (
    CorruptError,
    MismatchError,
    ShardloadError,
    UsageError,
    build_shell,
    errors,
    fill,
    open_checkpoint,
)
from shardload.errors import Cures, Wording, keywords_of
from tests.tiny import Net, random_state, write_checkpoint

PACKAGE = Path(shardload.__file__).parent


def test_an_error_is_pickled_whole():
    error = pickle.loads(pickle.dumps(UsageError("what", where="here", cure="do", code="E-THIS")))
    assert (type(error), error.what, error.where, error.cure) == (UsageError, "what", "here", "do")
    assert error.code == "E-THIS"
    assert str(error) == "what\n  where: here\n  cure:  do"


def test_a_mismatch_is_pickled_with_its_report(tmp_path):
    state = random_state(Net())
    state = {f"module.{key}": value for key, value in state.items()}
    with pytest.raises(MismatchError) as caught:
        fill(build_shell(Net), open_checkpoint(write_checkpoint(tmp_path, state)))
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.report.to_dict() == caught.value.report.to_dict()
    assert copy.report.faults
    assert copy.code == "E-WRAP"
    assert keywords_of(copy.cure) == {"key_map": {"module.{...}": "{...}"}}


def classes(kind=ShardloadError):
    return [kind, *(inner for sub in kind.__subclasses__() for inner in classes(sub))]


def test_every_class_has_a_code_of_its_own_and_the_table_shows_it():
    own = [kind for kind in classes() if kind.__module__ == "shardload.errors"]
    codes = [kind.code for kind in own]
    assert len(set(codes)) == len(codes) == 14
    for kind in own[1:]:
        assert re.search(rf"{kind.__name__} .*{kind.code} +{kind.exit_code}\n", errors.__doc__), kind


def test_the_dict_has_the_code_and_the_keywords():
    cure = Cures("mend it", Wording("pass {token} and {copy}", token=..., copy=True))
    assert CorruptError("torn", where="a.bin", cure=cure).to_dict() == {
        "kind": "CorruptError",
        "code": "E-CORRUPT",
        "what": "torn",
        "where": "a.bin",
        "cure": "mend it; or pass token=… and copy=True",
        "keywords": {"token": None, "copy": True},
    }
    assert UsageError("x", code="E-Y").to_dict()["code"] == "E-Y"


# --- no keyword in prose ---------------------------------------------------------------------------------------

# Texts that no command can say better: a repr, a row of a report, examples, faults of adapters (which no command has
# an option against), an argument of the stand-in for transformers.
NOT_A_CURE = {
    ("adapters/fingerprint.py", "strict"),
    ("adapters/formats/mlx.py", "strict"),
    ("adapters/formats/peft.py", "strict"),
    ("adapters/layers/layer.py", "bias"),
    ("adapters/layers/merged.py", "enable_lora"),
    ("adapters/variants.py", "strict"),
    ("cli/demo.py", "trust_remote_code"),
    ("loading/leniency.py", "strict"),
    ("remote_code/config.py", "model_class"),
    ("transformers_shim/_encoding.py", "text"),
}


def public_keywords():
    public = [getattr(shardload, name) for name in shardload.__all__]
    kinds = {
        own
        for kind in public
        if inspect.isclass(kind)
        for own in kind.__mro__
        if own.__module__[:9] == "shardload"
    }
    methods = [vars(kind)[name] for kind in kinds for name in vars(kind) if name[0] != "_"]
    found = set()
    for function in (*public, *methods):
        function = getattr(function, "__func__", function)
        if callable(function):
            try:
                found |= set(inspect.signature(function).parameters)
            except ValueError:
                continue
    return found - {"self", "cls"}


def texts(tree):
    """Yield every string of a file that is no docstring."""
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_no_message_writes_a_keyword_into_its_prose():
    names = public_keywords()
    assert {"copy", "token", "key_map", "trust_remote_code", "dtype", "batch_dim", "sizes"} <= names
    written = re.compile(rf"(?<![\w.-])({'|'.join(sorted(names, key=len, reverse=True))})=(?!=)")
    found = {
        (str(path.relative_to(PACKAGE)), match[1])
        for path in PACKAGE.rglob("*.py")
        if path
        != PACKAGE / "keywords" / "table.py"  # answers to a call from Python that has a keyword too many
        for text in texts(ast.parse(path.read_text()))
        for match in written.finditer(text)
    }
    assert found - NOT_A_CURE == set(), "write it as Wording('pass {name}', name=value)"
    assert found == NOT_A_CURE


def test_no_text_is_made_of_a_wording_by_formatting():
    """An f-string keeps the words and drops the keywords, so a command would print Python's."""
    of_wordings = {"Wording", "Cures", "keyword", "joined"}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        wordings = {
            target.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and getattr(getattr(node.value, "func", None), "id", "") in of_wordings
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        formatted = {
            node.value.id
            for node in ast.walk(tree)
            if isinstance(node, ast.FormattedValue) and isinstance(node.value, ast.Name)
        }
        assert not wordings & formatted, f"{path}: use Wording('… {{0}}', part), or Cures"


def test_templates_of_wordings_are_literal():
    """A template with somebody's text in it would take the braces in it for keywords."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", "") == "Wording"
                and path.name != "wording.py"
            ):
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
