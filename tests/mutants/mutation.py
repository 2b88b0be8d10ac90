"""mutations: changes a function in a module's syntax tree, in one small place at a time."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any

# A change: the node, its field, what the field becomes, and the change as text.
Change = tuple[ast.AST, str, Any, str]

_FALSE, _TRUE, _NONE = ast.Constant(False), ast.Constant(True), ast.Constant(None)
_NO_CONTEXT = ast.parse('__import__("contextlib").nullcontext()', mode="eval").body


def mutations(function: ast.AST) -> Iterator[str]:
    """Yield each mutation as text. The tree holds the mutation until the next one is asked for."""
    nodes = list(_walk(function))
    stores = Counter(node.id for node in nodes if isinstance(node, ast.Name) and _is_store(node))
    stores.subtract(
        node.target.id
        for node in nodes
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    )
    stores.update(node.arg for node in ast.walk(function) if isinstance(node, ast.arg))
    for node, field, value, text in [change for one in nodes for change in _changes(one, stores)]:
        old = getattr(node, field)
        setattr(node, field, value)
        yield text
        setattr(node, field, old)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes of a function in the order of the source; annotations, decorators and messages are left out."""
    yield node
    if isinstance(node, ast.Raise | ast.JoinedStr):
        return
    for field, value in ast.iter_fields(node):
        if field in {"annotation", "returns", "decorator_list"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.arguments):
                yield from _walk(child)


def _changes(node: ast.AST, stores: Counter[str]) -> Iterator[Change]:
    match node:
        case ast.If(test=test) | ast.IfExp(test=test):
            yield node, "test", _TRUE, f"`if {_text(test)}` → True"
            yield node, "test", _FALSE, f"`if {_text(test)}` → False"
            yield node, "test", ast.UnaryOp(ast.Not(), test), f"`if {_text(test)}` → not"
        case ast.comprehension(iter=source, ifs=tests):
            for test, rest in _each_dropped(tests):
                yield node, "ifs", rest, f"`for … in {_text(source)} if {_text(test)}` without its `if`"
        case ast.BoolOp(op=op, values=values):
            neutral, name = (_TRUE, "and") if isinstance(op, ast.And) else (_FALSE, "or")
            for at, value in enumerate(values):
                rest = [*values[:at], neutral, *values[at + 1 :]]
                yield node, "values", rest, f"`{_text(value)}` dropped from an `{name}`"
        case ast.Call(keywords=keywords):
            for keyword, rest in _each_dropped(keywords):
                yield node, "keywords", rest, f"`{_text(node)}` without `{keyword.arg or '**'}`"
        case ast.Return(value=value) if not isinstance(value, ast.Constant | None):
            yield node, "value", _NONE, f"`{_text(node)}` → None"
        case ast.For(iter=source, target=target):
            yield node, "iter", ast.Tuple([], ast.Load()), f"`for {_text(target)} in {_text(source)}` → ()"
        case ast.While(test=test):
            yield node, "test", _FALSE, f"`while {_text(test)}` → False"
        case ast.ExceptHandler(type=ast.AST() as kind):
            swapped = ast.Name("ZeroDivisionError", ast.Load())
            yield node, "type", swapped, f"`except {_text(kind)}` → ZeroDivisionError"
        case ast.withitem(context_expr=context, optional_vars=None):
            yield node, "context_expr", _NO_CONTEXT, f"`with {_text(context)}` dropped"
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            for item, rest in _each_dropped(items):
                if isinstance(item, ast.Starred) and not _is_store(node):
                    yield node, "elts", rest, f"`{_text(item)}` dropped from `{_text(node)}`"
        case ast.Dict(keys=keys, values=values):
            for at, value in enumerate(values):
                if keys[at] is None:
                    rest = [*values[:at], ast.Dict([], []), *values[at + 1 :]]
                    yield node, "values", rest, f"`**{_text(value)}` dropped from `{_text(node)}`"
    yield from _deletions(node, stores)


def _deletions(node: ast.AST, stores: Counter[str]) -> Iterator[Change]:
    for field in ("body", "orelse", "finalbody"):
        statements = getattr(node, field, None)
        if not isinstance(statements, list):
            continue
        if isinstance(node, ast.If) and len(statements) == 1 and not node.orelse:
            continue  # as if its condition were False
        for at, statement in enumerate(statements):
            if _can_go(statement, stores):
                rest = [*statements[:at], ast.Pass(), *statements[at + 1 :]]
                yield node, field, rest, f"`{_text(statement)}` deleted"


def _can_go(statement: ast.stmt, stores: Counter[str]) -> bool:
    """Whether all names of the function are still set without this statement: a NameError says nothing of a test."""
    match statement:
        case ast.Expr(value=value):
            return not isinstance(value, ast.Constant | ast.Yield)
        case ast.Assign(targets=targets):
            return all(
                stores[name.id] > 1
                for target in targets
                for name in ast.walk(target)
                if isinstance(name, ast.Name) and _is_store(name)
            )
        case ast.AnnAssign(target=target, value=value):
            return value is not None and not isinstance(target, ast.Name)
        case _:
            return isinstance(statement, ast.AugAssign | ast.Raise | ast.Delete | ast.Continue | ast.Break)


def _each_dropped(items: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    return ((item, items[:at] + items[at + 1 :]) for at, item in enumerate(items))


def _is_store(node: ast.AST) -> bool:
    return isinstance(getattr(node, "ctx", None), ast.Store)


def _text(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 90 else f"{text[:88]} …"
